"""The active segment: what changes, what is read, and which images it shows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Key

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
    frozen: Array  # f32[C, m, H, W, ch] finished segments that share the batch; m ≥ 0
    segment: Array  # i32[], counted from 1
    pool_round: Array  # i32[] how often this segment's pool was made
    clusters: Clusters | None = None  # of the pool, where each gives an image per step


# (pixels f32[n, H, W, ch], frozen f32[m, H, W, ch], key, most)
#   -> images f32[B, H, W, ch] of one class
ClassImages = Callable[..., Array]


class Shown(NamedTuple):
    """Images of one class that a matcher summarises apart, each with weights f32[B].

    They say how many of the set an image stands for, where there is another group.
    """

    still: list[tuple[Array, Array]]  # finished segments: at most one group
    moving: list[tuple[Array, Array]]  # the active segment, or all of a polish


# The same arguments -> Shown
Groups = Callable[..., Shown]


def join_formations(formations: list[Formation]) -> Formation:
    """Formation of several segments whose stored images lie one after another."""
    joined, offset = [], 0
    for formation in formations:
        sources = np.asarray(formation.sources)
        joined.append((sources + offset, formation.rows, formation.columns))
        offset += int(sources.max()) + 1
    return Formation(*(np.concatenate(field) for field in zip(*joined)))


def choose_images(
    key: Key[jax.Array, ""] | None, formation: Formation, most: int | None
) -> Formation:
    """Choose up to ``most`` decoded images of one class before decoding them.

    With ``most=None`` all are taken and no key is needed.
    """
    count = len(formation.sources)
    if most is None or count <= most:
        return formation
    assert key is not None
    return formation.take(jnp.argsort(jax.random.uniform(key, (count,)))[:most])


def _formation_of(
    parameterization: Parameterization, sizes: tuple[int, ...]
) -> Formation:
    return join_formations([parameterization.tiles(n) for n in sizes])


def make_class_images(
    parameterization: Parameterization,
    segment_sizes: tuple[int, ...] | None,
) -> ClassImages:
    """Decoded synthetic images of one class, as a function of its active pixels.

    Args:
      parameterization: stored pixels to images.
      segment_sizes: images per class of the finished segments and the active one, or
        of all those of a polish; ``None`` where the active one is alone.
    """

    def images(pixels, frozen, key, most):
        formation = _formation_of(parameterization, segment_sizes or (len(pixels),))
        stored = jnp.concatenate([frozen, pixels]) if len(frozen) else pixels
        return parameterization.decode(stored, choose_images(key, formation, most))

    return images


def make_groups(
    parameterization: Parameterization,
    segment_sizes: tuple[int, ...] | None,
    *,
    apart: bool,
) -> Groups:
    """What a matcher is shown of one class.

    Finished segments are a group of their own: they stand still, so their summary
    needs no second derivative, about half the work. Where not all images have room
    the active ones come first, as long as half of it is left to the others.

    Args:
      parameterization: stored pixels to images.
      segment_sizes: as of ``make_class_images``.
      apart: in a polish each segment is a group, of its share of ``most`` images (one
        at least), instead of all together.
    """

    def chosen(key, formation, most, pixels):
        taken = choose_images(key, formation, most)
        images = parameterization.decode(pixels, taken)
        count = len(taken.sources)
        return images, jnp.full(count, len(formation.sources) / count, jnp.float32)

    def groups(pixels, frozen, key, most):
        sizes = segment_sizes or (len(pixels),)
        if len(frozen):
            before = _formation_of(parameterization, sizes[:-1])
            active = parameterization.tiles(sizes[-1])
            room = max(most - len(before.sources), most // 2, 1)
            moving = chosen(key, active, room, pixels)
            rest = max(most - len(moving[1]), 1)
            still = chosen(jax.random.fold_in(key, 1), before, rest, frozen)
            return Shown([still], [moving])
        if not apart or len(sizes) == 1:
            formation = _formation_of(parameterization, sizes)
            images, weights = chosen(key, formation, most, pixels)
            return Shown([], [(images, jnp.ones_like(weights))])  # beside no other
        formations = [parameterization.tiles(n) for n in sizes]
        counts = np.cumsum([0, *(len(each.sources) for each in formations)])
        shares = np.diff(counts * most // counts[-1])  # no image of most is lost
        firsts = np.cumsum([0, *sizes])
        return Shown(
            [],
            [
                chosen(
                    jax.random.fold_in(key, k),
                    formation,
                    max(int(shares[k]), 1),
                    pixels[firsts[k] : firsts[k + 1]],
                )
                for k, formation in enumerate(formations)
            ],
        )

    return groups


def every_image(
    class_images: ClassImages, pixels: Array, frozen: Array
) -> tuple[ArrayDataset, IndexTable]:
    """All decoded images of all classes, and a table of them.

    Args:
      class_images: see ``make_class_images``.
      pixels: f32[C, n, H, W, ch].
      frozen: f32[C, m, H, W, ch].
    """
    images = jax.vmap(lambda pixels, frozen: class_images(pixels, frozen, None, None))(
        pixels, frozen
    )
    n_classes, count = images.shape[:2]
    labels = jnp.repeat(jnp.arange(n_classes, dtype=jnp.int32), count)
    order = jnp.arange(n_classes * count, dtype=jnp.int32)
    table = IndexTable(order[None], jnp.full(1, n_classes * count, jnp.int32))
    return ArrayDataset(images.reshape(-1, *images.shape[2:]), labels), table


def image_count(
    parameterization: Parameterization, size: int, segment_sizes: tuple[int, ...] | None
) -> int:
    """Decoded images of a class: of ``size`` stored ones, or of all these segments."""
    sizes = segment_sizes or (size,)
    return sum(len(parameterization.tiles(n).sources) for n in sizes)
