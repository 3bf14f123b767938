"""The jitted heart: one update of one segment.

An inner step matches the active pixels to the pool, moves them, and lets the learner go
on (for IDC: trains the network a little further on real images). The functions here are
pure; ``compile_update`` makes programs of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Key

from dasm_jax import sampling
from dasm_jax.image_optimizer import ImageOptimizer
from dasm_jax.keys import Use, key_for
from dasm_jax.learners import Learner
from dasm_jax.loops import Loop
from dasm_jax.objectives import Objective
from dasm_jax.segment import SegmentData, SegmentState, Variables
from dasm_jax.types import Array


class Optimizers(NamedTuple):
    """Of the pixels, and of what is learned beside them."""

    image: ImageOptimizer
    learned: optax.GradientTransformation


class StepFunctions(NamedTuple):
    """The two halves of an inner step, pure."""

    match: Callable[..., tuple[SegmentState, Float[jax.Array, " G"]]]
    train: Callable[..., SegmentState]


def make_step(
    objective: Objective, learner: Learner, optimizers: Optimizers, real_batch: int
) -> StepFunctions:
    """Matching step and network step of one segment.

    Returns:
      ``match(key, state, data) -> (state, distances)`` moves the pixels of all classes
      and counts the step; ``train(key, state, data) -> state`` is one SGD step of the
      networks.
    """

    def match(
        key: Key[jax.Array, ""], state: SegmentState, data: SegmentData
    ) -> tuple[SegmentState, Float[jax.Array, " G"]]:
        order_key = key_for(key, Use.REAL_ORDER, data.segment, data.pool_round)
        real, index = sampling.next_batch(order_key, state.real, data.pool, real_batch)
        distances, grads = objective(
            key_for(key, Use.MATCH, data.segment, state.step),
            state.variables,
            learner.view(key, state.learner, data, state.step),
            data.real.images[index],
            data.frozen,
            data.frozen_count,
        )
        pixels, image_opt = optimizers.image.update(
            grads.pixels, state.image_opt, state.variables.pixels
        )
        learned = state.variables.learned
        updates, learned_opt = optimizers.learned.update(
            grads.learned, state.learned_opt, learned
        )
        learned = optax.apply_updates(learned, updates)
        state = state._replace(
            variables=Variables(pixels, learned),
            image_opt=image_opt,
            learned_opt=learned_opt,
            real=real,
            step=state.step + 1,
        )
        return state, distances

    def train(
        key: Key[jax.Array, ""], state: SegmentState, data: SegmentData
    ) -> SegmentState:
        pixels = state.variables.pixels
        return state._replace(learner=learner.train(key, state.learner, data, pixels))

    return StepFunctions(match, train)


Update = Callable[..., tuple[SegmentState, Float[jax.Array, "n G"]]]


def compile_update(
    step: StepFunctions,
    network_steps: int,
    loop: Loop,
    example: tuple[Array, SegmentState, SegmentData],
) -> Update:
    """Compile ``loop.steps_per_call`` inner steps ahead of time, for these shapes.

    On accelerators they are one program. On CPU, where loops are written out, matching
    and one network step are a program each: convolutions in loop bodies are slow there,
    and many copies of a network step take long to compile.

    Args:
      step: the two halves of an inner step.
      network_steps: network steps per inner step.
      loop: how loops are compiled.
      example: key, state and data, for their shapes.

    Returns:
      ``update(key, state, data) -> (state, distances)``; it donates the state and
      refuses other shapes.
    """

    def match(key, state, data):
        state, distances = step.match(key, state, data)
        return state, distances[None]

    def inner_steps(key, state, data):
        def inner_step(state):
            state, distances = step.match(key, state, data)
            train_once = lambda state: (step.train(key, state, data), None)  # noqa: E731
            return loop.repeat(train_once, state, network_steps)[0], distances

        return loop.repeat(inner_step, state, loop.steps_per_call)

    def compiled(function):
        return jax.jit(function, donate_argnums=1).lower(*example).compile()

    if loop.rolled:
        return compiled(inner_steps)
    match = compiled(match)
    train = compiled(step.train) if network_steps else step.train

    def update(key, state, data):
        state, distances = match(key, state, data)
        for _ in range(network_steps):
            state = train(key, state, data)
        return state, distances

    return update


def start_segment(
    variables: Variables,
    given: Any,
    data: SegmentData,
    learner: Learner,
    optimizers: Optimizers,
) -> SegmentState:
    """State ahead of the first inner step of a segment.

    Everything is copied: an update donates its state, and pixels and networks are still
    needed outside (the last good pixels, networks that several iterations start from).
    """
    variables, given = jax.tree.map(jnp.array, (variables, given))
    return SegmentState(
        variables=variables,
        image_opt=optimizers.image.init(variables.pixels),
        learned_opt=optimizers.learned.init(variables.learned),
        learner=learner.start(given, data, variables.pixels),
        real=sampling.start_sampler(data.pool),
        step=jnp.zeros((), jnp.int32),
    )


def start_outer(
    state: SegmentState, given: Any, learner: Learner, optimizers: Optimizers
) -> SegmentState:
    """Clamp the pixels and put what is given in place; the data go on."""
    pixels = optimizers.image.clamp(state.variables.pixels, state.image_opt)
    return state._replace(
        variables=state.variables._replace(pixels=pixels),
        learner=learner.restart(state.learner, given),
    )


def change_pool(
    state: SegmentState, data: SegmentData, given: Any, learner: Learner | None
) -> SegmentState:
    """Begin anew in another pool.

    Args:
      state: of the segment.
      data: with the new pool.
      given: see ``Learner``.
      learner: begins anew too, where what it trains on is the pool; else ``None``.
    """
    if learner is not None:
        pixels = state.variables.pixels
        state = state._replace(learner=learner.start(given, data, pixels))
    return state._replace(real=sampling.start_sampler(data.pool))
