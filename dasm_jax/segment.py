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


def draw_prefix(
    key: Key[jax.Array, ""], segment_sizes: tuple[int, ...], share: float
) -> Int[jax.Array, ""]:
    """Images per class of the whole set, or, in a ``share`` of draws, of a prefix."""
    *ends, whole = np.cumsum(segment_sizes).tolist()
    if not ends:
        return jnp.int32(whole)
    shorter, which = jax.random.split(key)
    end = jnp.array(ends)[jax.random.randint(which, (), 0, len(ends))]
    return jnp.where(jax.random.bernoulli(shorter, share), end, whole)


def make_class_images(
    parameterization: Parameterization,
    segment_sizes: tuple[int, ...] | None,
    prefix_share: float = 0.0,
) -> ClassImages:
    """Decoded synthetic images of one class, as a function of its active pixels.

    Args:
      parameterization: stored pixels to images.
      segment_sizes: images per class of all segments, where finished segments stand
        beside the active one; ``None`` where they do not.
      prefix_share: where all segments are active, share of the steps that see the
        images of the first ones alone, so that prefixes are polished as well. Their
        gradients are those of a mean over fewer images, and made smaller by as much.
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
            # Otherwise one of them is, and those before it stand still.
            all_active = pixels.shape[0] == sum(segment_sizes)
            if prefix_share and all_active and key is not None:
                key, prefix_key = jax.random.split(key)
                stored = draw_prefix(prefix_key, segment_sizes, prefix_share)
                still = jax.lax.stop_gradient(pixels)
                pixels = still + stored / pixels.shape[0] * (pixels - still)
            zero = jnp.zeros_like(frozen_count)
            pixels = jax.lax.dynamic_update_slice(
                frozen, pixels, (frozen_count, zero, zero, zero)
            )
        formation, weights = choose_images(key, formation, stored, most)
        return parameterization.decode(pixels, formation), weights

    return images


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
