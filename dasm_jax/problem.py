"""What stays fixed during a run: data on the device, network, decoder, recipes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dasm_jax import nets, sampling
from dasm_jax.errors import UserError
from dasm_jax.loops import Loop, loop_for
from dasm_jax.mesh import make_mesh, place
from dasm_jax.methods import Method, Surroundings, make_method
from dasm_jax.nets import Network
from dasm_jax.parameterization import Parameterization, make_parameterization
from dasm_jax.sampling import IndexTable
from dasm_jax.schema import Settings
from dasm_jax.training import normalize, to_unit
from dasm_jax.types import ArrayDataset, Dataset, Normalization
from dasm_jax.whitening import fit_whitening

# Of a trainer on an accelerator; long enough that launching costs nothing.
STEPS_PER_CALL = 100


class Problem(NamedTuple):
    """A dataset and everything that is made once from it and the settings."""

    settings: Settings
    dataset: Dataset
    real: ArrayDataset  # the train split on the device, u8
    class_indices: list[np.ndarray]  # i64[n_c] per class, into the train split
    statistics: Normalization
    network: Network
    parameterization: Parameterization
    method: Method
    loop: Loop


def channel_statistics(images: np.ndarray) -> Normalization:
    """Mean and standard deviation per channel of u8[N, H, W, C], images in [0, 1]."""
    levels = np.arange(256) / 255.0
    mean, std = [], []
    for channel in range(images.shape[-1]):
        values = images[..., channel].reshape(-1)
        share = np.bincount(values, minlength=256) / values.size
        mean.append(float(share @ levels))
        std.append(float(np.sqrt(share @ levels**2 - mean[-1] ** 2)))
    # A channel that never changes carries nothing; 1 keeps it finite.
    return Normalization(tuple(mean), tuple(s if s > 0 else 1.0 for s in std))


def make_problem(settings: Settings, dataset: Dataset) -> Problem:
    """Put the data on the device and build the pure pieces of a run.

    Raises:
      UserError: the network does not fit the images, or there are not so many devices.
    """
    shape, n_classes = dataset.image_shape, dataset.n_classes
    mesh = make_mesh(settings.devices)
    network = _make_network(settings.network.architecture, dataset)
    around = Surroundings(
        network=network,
        parameterization=make_parameterization(
            settings.synthetic.formation, settings.factor, shape[:2]
        ),
        statistics=_statistics(settings, dataset),
        n_classes=n_classes,
        loop=loop_for(jax.default_backend(), STEPS_PER_CALL, mesh),
        nested=settings.dasm.polish_nested,
    )
    return Problem(
        settings=settings,
        dataset=dataset,
        real=place(
            mesh,
            ArrayDataset(dataset.train.images, dataset.train.labels.astype(np.int32)),
        ),
        class_indices=[
            np.flatnonzero(dataset.train.labels == c) for c in range(n_classes)
        ],
        statistics=around.statistics,
        network=network,
        parameterization=around.parameterization,
        method=make_method(settings, around),
        loop=around.loop,
    )


def network_for(problem: Problem, text: str) -> Network:
    """A network named as ``"resnet18/batch"`` (``nets.parse_architecture``).

    Raises:
      UserError: there is no such network, or it does not fit the images.
    """
    try:
        architecture = nets.parse_architecture(
            text, problem.settings.network.architecture
        )
    except ValueError as error:
        raise UserError(f"config.evaluate.architectures: {error}") from None
    return _make_network(architecture, problem.dataset)


def _make_network(architecture: nets.Architecture, dataset: Dataset) -> Network:
    try:
        return nets.make_network(architecture, dataset.image_shape, dataset.n_classes)
    except ValueError as error:
        raise UserError(f"config.{error}") from None


def _statistics(settings: Settings, dataset: Dataset) -> Normalization:
    given = Normalization(settings.data.mean, settings.data.std)
    statistics = given if given.mean else channel_statistics(dataset.train.images)
    if not settings.data.zca:
        return statistics
    images = normalize(to_unit(jnp.asarray(dataset.train.images)), statistics)
    return statistics._replace(whitening=fit_whitening(np.asarray(images)))


def decode_segments(
    problem: Problem, segments: list[np.ndarray], total: int
) -> tuple[ArrayDataset, IndexTable]:
    """Decode finished segments into one buffer that has room for ``total`` images.

    Args:
      problem: the fixed pieces.
      segments: stored pixels f32[C, n_k, H, W, ch] of each.
      total: decoded images of the complete set; the buffer's length never changes, so
        that no training step is compiled twice.

    Returns:
      images f32[total, H, W, ch] with labels, in order of segment, class and tile, and
      a table that says how many of them exist.
    """
    images = np.zeros((total, *problem.dataset.image_shape), np.float32)
    labels = np.zeros(total, np.int32)
    filled = 0
    for pixels in segments:
        formation = problem.parameterization.tiles(pixels.shape[1])
        for label, of_class in enumerate(pixels):
            decoded = problem.parameterization.decode(jnp.asarray(of_class), formation)
            images[filled : filled + len(decoded)] = decoded
            labels[filled : filled + len(decoded)] = label
            filled += len(decoded)
    data = jax.device_put(ArrayDataset(images, labels))
    return data, sampling.prefix_table(filled, total)


def decoded_count(problem: Problem, sizes: tuple[int, ...]) -> int:
    """Decoded images of all classes, for segments of these sizes."""
    per_class = sum(len(problem.parameterization.tiles(n).sources) for n in sizes)
    return per_class * problem.dataset.n_classes
