"""The jitted heart: one update of one segment.

An inner step matches every class against its pool, moves the active pixels, and trains
the network a little further on real images (IDC, algorithm 1). The functions here are
pure; ``make_update`` compiles them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key

from dasm_jax import augment, sampling, training
from dasm_jax.image_optimizer import ImageOptimizer
from dasm_jax.keys import Use, key_for
from dasm_jax.loops import Loop
from dasm_jax.matching import Matcher
from dasm_jax.parameterization import Formation, Parameterization
from dasm_jax.sampling import IndexTable, SamplerState
from dasm_jax.training import Recipe, TrainState, TrainStep
from dasm_jax.types import Array, ArrayDataset, Batch, Normalization, Params


class SegmentState(NamedTuple):
    """Everything that changes while one segment is matched."""

    pixels: Array  # f32[C, n, H, W, ch], the active segment only
    image_opt: Any
    network: TrainState
    real: SamplerState  # place in the pool, per class
    step: Array  # i32[] inner steps done in this segment


class SegmentData(NamedTuple):
    """What an update reads: device arrays, so that no segment needs a new program."""

    real: ArrayDataset  # u8[N, H, W, ch], i32[N]
    pool: IndexTable  # per class, what this segment is matched against
    network_data: IndexTable  # one group, what the network is trained on
    frozen: Array  # f32[C, IPC, H, W, ch] finished segments first, or C × 0 images
    frozen_count: Array  # i32[] finished images per class
    segment: Array  # i32[], counted from 1
    pool_round: Array  # i32[] how often this segment's pool was made


class MatchOptions(NamedTuple):
    """Fixed at compile time."""

    real_batch: int  # real images per class and step
    synthetic_batch: int  # decoded images per class and step, at most
    strategy: tuple[str, ...]  # siamese augmentation
    network_steps: int  # SGD steps of the network per inner step


def join_formations(formations: list[Formation]) -> Formation:
    """Formation of several segments whose stored images lie one after another."""
    joined, offset = [], 0
    for formation in formations:
        sources = np.asarray(formation.sources)
        joined.append((sources + offset, formation.rows, formation.columns))
        offset += int(sources.max()) + 1
    return Formation(*(np.concatenate(field) for field in zip(*joined)))


def choose_images(
    key: Key[jax.Array, ""],
    formation: Formation,
    stored: Int[jax.Array, ""] | int,
    most: int,
) -> tuple[Formation, Float[jax.Array, " m"]]:
    """Choose up to ``most`` decoded images of one class before decoding them.

    Only images whose stored image comes before ``stored`` exist; the others get weight
    zero, so that shapes stay the same while the set grows.
    """
    exists = jnp.asarray(formation.sources) < stored
    count = exists.size
    if count <= most:
        return formation, exists.astype(jnp.float32)
    draws = jnp.where(exists, jax.random.uniform(key, (count,)), 2.0)
    chosen = jnp.argsort(draws)[:most]
    return formation.take(chosen), exists[chosen].astype(jnp.float32)


def make_class_distance(
    matcher: Matcher,
    parameterization: Parameterization,
    statistics: Normalization,
    options: MatchOptions,
    segment_sizes: tuple[int, ...] | None,
) -> Callable[..., Float[jax.Array, ""]]:
    """Distance of one class as a function of its active pixels.

    Args:
      matcher: the objective.
      parameterization: stored pixels to images.
      statistics: normalisation ahead of the network.
      options: batch sizes and augmentation.
      segment_sizes: images per class of all segments, where finished segments stand in
        the synthetic batch beside the active one; ``None`` where they do not.

    Returns:
      ``distance(pixels, frozen, frozen_count, params, real, label, key)`` with pixels
      f32[n, H, W, ch], frozen f32[IPC, H, W, ch] and real u8[B, H, W, ch].
    """

    def distance(pixels, frozen, frozen_count, params, real, label, key):
        choice_key, augment_key = jax.random.split(key)
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
        formation, weights = choose_images(
            choice_key, formation, stored, options.synthetic_batch
        )
        images = parameterization.decode(pixels, formation)
        draw = augment.draw_augmentation(
            augment_key, options.strategy, (images.shape[1], images.shape[2])
        )

        def prepare(images, weights):
            images = training.normalize(training.to_unit(images), statistics)
            images = augment.augment_shared(images, draw, options.strategy)
            return Batch(images, jnp.full(len(images), label), weights)

        target = matcher.target(params, prepare(real, jnp.ones(len(real))))
        return matcher.distance(params, target, prepare(images, weights))

    return distance


def make_segment_step(
    class_distance: Callable[..., Float[jax.Array, ""]],
    optimizer: ImageOptimizer,
    train_step: TrainStep,
    options: MatchOptions,
    loop: Loop,
) -> Callable[..., tuple[SegmentState, Float[jax.Array, " C"]]]:
    """One inner step: all classes matched at once, then the network's own steps.

    Returns:
      ``step(key, state, data) -> (state, distances f32[C])``, a pure function.
    """

    def step(
        key: Key[jax.Array, ""], state: SegmentState, data: SegmentData
    ) -> tuple[SegmentState, Float[jax.Array, " C"]]:
        order_key = key_for(key, Use.REAL_ORDER, data.segment, data.pool_round)
        real, index = sampling.next_batch(
            order_key, state.real, data.pool, options.real_batch
        )
        match_key = key_for(key, Use.MATCH, data.segment, state.step)
        params = state.network.params

        def match_class(args):
            pixels, frozen, index, label = args
            return jax.value_and_grad(class_distance)(
                pixels,
                frozen,
                data.frozen_count,
                params,
                data.real.images[index],
                label,
                jax.random.fold_in(match_key, label),
            )

        labels = jnp.arange(state.pixels.shape[0], dtype=jnp.int32)
        distances, grads = loop.over(
            match_class, (state.pixels, data.frozen, index, labels)
        )
        pixels, image_opt = optimizer.update(grads, state.image_opt, state.pixels)

        network_key = key_for(key, Use.TRAJECTORY, data.segment, data.pool_round)
        network, _ = loop.repeat(
            lambda network: train_step(
                network_key, network, data.real, data.network_data
            ),
            state.network,
            options.network_steps,
        )
        state = SegmentState(pixels, image_opt, network, real, state.step + 1)
        return state, distances

    return step


def make_update(
    step: Callable[..., tuple[SegmentState, Float[jax.Array, " C"]]], loop: Loop
) -> Callable[..., tuple[SegmentState, Float[jax.Array, "n C"]]]:
    """Compile ``loop.steps_per_call`` inner steps into one program; donates the state.

    Shapes are the same in every segment of one size, so it is traced once per size.
    """

    def update(key, state, data):
        return loop.repeat(lambda s: step(key, s, data), state, loop.steps_per_call)

    return jax.jit(update, donate_argnums=1)


def start_segment(
    pixels: Array,
    optimizer: ImageOptimizer,
    params: Params,
    recipe: Recipe,
    data: SegmentData,
) -> SegmentState:
    """State ahead of the first inner step of a segment.

    Pixels and parameters are copied: an update donates its state, and both are still
    needed outside (the last good pixels, networks that several iterations start from).
    """
    pixels, params = jax.tree.map(jnp.copy, (pixels, params))
    return SegmentState(
        pixels=pixels,
        image_opt=optimizer.init(pixels),
        network=training.start_training(
            params, recipe, sampling.start_sampler(data.network_data)
        ),
        real=sampling.start_sampler(data.pool),
        step=jnp.zeros((), jnp.int32),
    )


def start_outer(
    state: SegmentState, params: Params, optimizer: ImageOptimizer, recipe: Recipe
) -> SegmentState:
    """Clamp the pixels and put a fresh network in place; the data go on."""
    network = training.start_training(
        params, recipe, state.network.sampler, state.network.step
    )
    return state._replace(
        pixels=optimizer.clamp(state.pixels, state.image_opt), network=network
    )


def change_pool(
    state: SegmentState, data: SegmentData, *, networks_too: bool
) -> SegmentState:
    """Begin anew in another pool, and in its network data where these are the pool."""
    network = state.network
    if networks_too:
        network = network._replace(sampler=sampling.start_sampler(data.network_data))
    return state._replace(real=sampling.start_sampler(data.pool), network=network)
