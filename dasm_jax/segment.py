"""The active segment: what changes, what is read, and which images it shows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from dasm_jax.parameterization import Formation, Parameterization
from dasm_jax.sampling import Clusters, IndexTable, SamplerState
from dasm_jax.types import Array, ArrayDataset


class Variables(NamedTuple):
    """What is optimised."""

    pixels: Array  # f32[C, n, H, W, ch], the active segment only
    learned: Any  # beside them: the student's step size f32[], or ()


class SegmentState(NamedTuple):
    """Everything that changes while one segment is matched."""

    variables: Variables
    image_opt: Any
    learned_opt: Any
    learner: Any  # networks that are matched on
    real: SamplerState  # place in the pool, per class
    step: Array  # i32[] inner steps done in this segment


class SegmentData(NamedTuple):
    """What an update reads: device arrays, so that segments alike share a program."""

    real: ArrayDataset  # u8[N, H, W, ch], i32[N]
    pool: IndexTable  # per class, what this segment is matched against
    network_data: IndexTable  # one group, what networks are trained on
    frozen: Array  # f32[C, IPC, H, W, ch] finished segments first, or C × 0 images
    frozen_count: Array  # i32[] finished images per class
    segment: Array  # i32[], counted from 1
    pool_round: Array  # i32[] how often this segment's pool was made
    clusters: Clusters | None = None  # of the pool, where each gives an image per step


# (pixels f32[n, H, W, ch], frozen f32[IPC, H, W, ch], frozen_count i32[], key, most)
#   -> images f32[m, H, W, ch] of one class, weights f32[m] (0: does not exist yet)
ClassImages = Callable[..., tuple[Array, Array]]
# The same arguments -> groups of these, which a matcher summarises apart
Groups = Callable[..., list[tuple[Array, Array]]]


def join_formations(formations: list[Formation]) -> Formation:
    """Formation of several segments whose stored images lie one after another."""
    joined, offset = [], 0
    for formation in formations:
        sources = np.asarray(formation.sources)
        joined.append((sources + offset, formation.rows, formation.columns))
        offset += int(sources.max()) + 1
    return Formation(*(np.concatenate(field) for field in zip(*joined)))


def choose_images(
    key: Key[jax.Array, ""] | None,
    formation: Formation,
    stored: Int[jax.Array, ""] | int,
    most: int | None,
) -> tuple[Formation, Float[jax.Array, " m"]]:
    """Choose up to ``most`` decoded images of one class before decoding them.

    Only images whose stored image comes before ``stored`` exist; the others get weight
    zero, so that shapes stay the same while the set grows. With ``most=None`` all are
    taken and no key is needed.
    """
    exists = jnp.asarray(formation.sources) < stored
    count = exists.size
    if most is None or count <= most:
        return formation, exists.astype(jnp.float32)
    assert key is not None
    draws = jnp.where(exists, jax.random.uniform(key, (count,)), 2.0)
    chosen = jnp.argsort(draws)[:most]
    return formation.take(chosen), exists[chosen].astype(jnp.float32)


def make_class_images(
    parameterization: Parameterization,
    segment_sizes: tuple[int, ...] | None,
) -> ClassImages:
    """Decoded synthetic images of one class, as a function of its active pixels.

    Args:
      parameterization: stored pixels to images.
      segment_sizes: images per class of all segments, where finished segments stand
        beside the active one; ``None`` where they do not.
    """

    def images(pixels, frozen, frozen_count, key, most):
        if segment_sizes is None:
            formation = parameterization.tiles(pixels.shape[0])
            stored = pixels.shape[0]
        else:
            formation = join_formations(
                [parameterization.tiles(n) for n in segment_sizes]
            )
            stored = frozen_count + pixels.shape[0]
            zero = jnp.zeros_like(frozen_count)
            pixels = jax.lax.dynamic_update_slice(
                frozen, pixels, (frozen_count, zero, zero, zero)
            )
        formation, weights = choose_images(key, formation, stored, most)
        return parameterization.decode(pixels, formation), weights

    return images


def make_groups(
    parameterization: Parameterization,
    segment_sizes: tuple[int, ...] | None,
    *,
    apart: bool,
) -> Groups:
    """What a matcher is shown of one class: all images together, or by segments.

    Args:
      parameterization: stored pixels to images.
      segment_sizes: as of ``make_class_images``.
      apart: in a polish, where all segments are active, each is a group, of its share
        of ``most`` images (one at least). Weights say how many images of the segment
        each stands for.
    """
    together = make_class_images(parameterization, segment_sizes)

    def groups(pixels, frozen, frozen_count, key, most):
        sizes = segment_sizes or ()
        if not apart or len(sizes) < 2 or pixels.shape[0] != sum(sizes):
            return [together(pixels, frozen, frozen_count, key, most)]
        formations = [parameterization.tiles(n) for n in sizes]
        counts = [len(formation.sources) for formation in formations]
        ends = np.cumsum([0, *counts]) * most // sum(counts)  # no image of most is lost
        found, first = [], 0
        for segment, size in enumerate(sizes):
            share = max(int(ends[segment + 1] - ends[segment]), 1)
            own_key = jax.random.fold_in(key, segment)
            formation, weights = choose_images(
                own_key, formations[segment], size, share
            )
            images = parameterization.decode(pixels[first : first + size], formation)
            found.append((images, weights * (counts[segment] / len(weights))))
            first += size
        return found

    return groups


def every_image(
    class_images: ClassImages, pixels: Array, frozen: Array, frozen_count: Array
) -> tuple[ArrayDataset, IndexTable]:
    """All decoded images of all classes, and a table of those that exist.

    Args:
      class_images: see ``make_class_images``.
      pixels: f32[C, n, H, W, ch].
      frozen: f32[C, IPC, H, W, ch].
      frozen_count: i32[].
    """
    images, weights = jax.vmap(
        lambda pixels, frozen: class_images(pixels, frozen, frozen_count, None, None)
    )(pixels, frozen)
    n_classes, count = weights.shape
    labels = jnp.repeat(jnp.arange(n_classes, dtype=jnp.int32), count)
    exists = weights.reshape(-1) > 0
    order = jnp.argsort(~exists, stable=True).astype(jnp.int32)
    table = IndexTable(order[None], exists.sum(dtype=jnp.int32)[None])
    return ArrayDataset(images.reshape(-1, *images.shape[2:]), labels), table


def image_count(
    parameterization: Parameterization, size: int, segment_sizes: tuple[int, ...] | None
) -> int:
    """Decoded images of a class: of ``size`` stored ones, or of all segments."""
    sizes = segment_sizes or (size,)
    return sum(len(parameterization.tiles(n).sources) for n in sizes)
