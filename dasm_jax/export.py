"""``synthetic.npz``: the one file that a user takes away."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dasm_jax.files import write_atomically
from dasm_jax.parameterization import Parameterization
from dasm_jax.types import Normalization, SyntheticSet


def save_synthetic(
    path: Path,
    synthetic: SyntheticSet,
    *,
    parameterization: Parameterization,
    statistics: Normalization,
    class_names: tuple[str, ...],
) -> None:
    """Write a set with everything needed to train on it; loads without pickles.

    Fields: ``images`` f32[M, H, W, C] in [0, 1] with ``labels`` and ``segments`` i32[M]
    are decoded and ready to train on; ``stored_pixels`` f32[N, H, W, C] with
    ``stored_labels`` and ``stored_segments`` are what counts as IPC; ``source`` i32[M]
    is the stored image of each decoded one; ``factor``, ``formation``, ``mean``,
    ``std`` and ``class_names`` say how they were made and normalised. Where networks
    saw whitened images, ``zca_mean`` f32[D], ``zca_matrix`` and ``zca_inverse``
    f32[D, D] go with it: flat rows x = (images − mean) / std become
    (x − zca_mean) @ zca_matrix, and back y @ zca_inverse + zca_mean. Equal sets give
    equal bytes.

    Raises:
      UserError: the file cannot be written.
    """
    images, source = [], []
    for segment in np.unique(synthetic.segments):
        for label in range(len(class_names)):
            index = np.flatnonzero(
                (synthetic.segments == segment) & (synthetic.labels == label)
            )
            formation = parameterization.tiles(len(index))
            pixels = jnp.asarray(synthetic.pixels[index])
            images.append(np.asarray(parameterization.decode(pixels, formation)))
            source.append(index[np.asarray(formation.sources)])
    source = np.concatenate(source).astype(np.int32)
    whitening: dict[str, Any] = {}
    if statistics.whitening is not None:
        fields = statistics.whitening._asdict().items()
        whitening = {f"zca_{name}": np.asarray(value) for name, value in fields}
    write_atomically(
        path,
        lambda file: np.savez(
            file,
            images=np.concatenate(images),
            labels=synthetic.labels[source],
            segments=synthetic.segments[source],
            source=source,
            stored_pixels=synthetic.pixels,
            stored_labels=synthetic.labels,
            stored_segments=synthetic.segments,
            factor=np.int32(parameterization.factor),
            formation=np.str_(parameterization.kind),
            mean=np.array(statistics.mean, np.float32),
            std=np.array(statistics.std, np.float32),
            class_names=np.array(class_names, dtype=np.str_),
            **whitening,
        ),
    )
