"""The jitted heart: one update of one segment.

An inner step matches the active pixels to the pool, moves them, and lets the learner go
on (for IDC: trains the network a little further on real images). The functions here are
pure; ``compile_update`` makes programs of them.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, Key

from dasm_jax import mesh, sampling
from dasm_jax.image_optimizer import ImageOptimizer
from dasm_jax.keys import Use, key_for
from dasm_jax.learners import Learner
from dasm_jax.loops import Loop
from dasm_jax.objectives import Objective
from dasm_jax.segment import SegmentData, SegmentState, Variables
from dasm_jax.training import TrainStep
from dasm_jax.types import Array


class Optimizers(NamedTuple):
    """Of the pixels, and of what is learned beside them."""

    image: ImageOptimizer
    learned: optax.GradientTransformation


class Seen(NamedTuple):
    """What all parts of an objective look at in one matching step."""

    key: Array
    view: Any  # of the networks
    real: Array  # u8[C, B, H, W, ch]


class StepFunctions(NamedTuple):
    """The pieces of an inner step, pure."""

    # (key, state, data) -> (state, seen): real batches are drawn, the step is counted
    look: Callable[..., tuple[SegmentState, Seen]]
    objective: Objective
    # (state, grads) -> state
    move: Callable[[SegmentState, Variables], SegmentState]
    # (key, state, data) -> state: one SGD step of the networks
    train: Callable[..., SegmentState]
    network: TrainStep | None  # the same in pieces, of ``state.learner``


def make_step(
    objective: Objective, learner: Learner, optimizers: Optimizers, real_batch: int
) -> StepFunctions:
    """Matching step and network step of one segment."""

    def look(
        key: Key[jax.Array, ""], state: SegmentState, data: SegmentData
    ) -> tuple[SegmentState, Seen]:
        if data.clusters is None:
            order_key = key_for(key, Use.REAL_ORDER, data.segment, data.pool_round)
            real, index = sampling.next_batch(
                order_key, state.real, data.pool, real_batch
            )
        else:
            member_key = key_for(key, Use.REAL_MEMBERS, data.segment, state.step)
            index = sampling.one_of_each(member_key, data.pool, data.clusters)
            real = state.real
        seen = Seen(
            key=key_for(key, Use.MATCH, data.segment, state.step),
            view=learner.view(key, state.learner, data, state.step),
            real=data.real.images[index],
        )
        return state._replace(real=real, step=state.step + 1), seen

    def move(state: SegmentState, grads: Variables) -> SegmentState:
        pixels, image_opt = optimizers.image.update(
            grads.pixels, state.image_opt, state.variables.pixels
        )
        learned = state.variables.learned
        updates, learned_opt = optimizers.learned.update(
            grads.learned, state.learned_opt, learned
        )
        learned = optax.apply_updates(learned, updates)
        return state._replace(
            variables=Variables(pixels, learned),
            image_opt=image_opt,
            learned_opt=learned_opt,
        )

    def train(
        key: Key[jax.Array, ""], state: SegmentState, data: SegmentData
    ) -> SegmentState:
        if learner.step is None:
            return state
        pixels = state.variables.pixels
        trained, _ = learner.step(key, state.learner, data, pixels)
        return state._replace(learner=trained)

    return StepFunctions(look, objective, move, train, learner.step)


def _of_all_parts(seen: Seen, state: SegmentState, data: SegmentData) -> tuple:
    """What ``Objective.gradients`` takes after the part."""
    given = (seen.key, state.variables, seen.view, seen.real)
    return (*given, data.frozen)


def match(
    step: StepFunctions,
    loop: Loop,
    key: Key[jax.Array, ""],
    state: SegmentState,
    data: SegmentData,
) -> tuple[SegmentState, Float[jax.Array, " parts"]]:
    """One matching step: look, gradients of all parts, move."""
    state, seen = step.look(key, state, data)
    distances, grads = step.objective.whole(loop, *_of_all_parts(seen, state, data))
    return step.move(state, grads), distances


class Update(NamedTuple):
    """Inner steps, compiled for one shape: others are refused."""

    # (key, state, data) -> (state, distances f32[n, parts]); donates the state
    run: Callable[..., tuple[SegmentState, Float[jax.Array, "n parts"]]]
    programs: dict[str, jax.stages.Compiled]  # what it is made of


def compile_update(
    step: StepFunctions,
    network_steps: int,
    loop: Loop,
    example: tuple[Array, SegmentState, SegmentData],
) -> Update:
    """Compile ``loop.steps_per_call`` inner steps ahead of time, for these shapes.

    On accelerators they are one program. On CPU, where convolutions are slow in loop
    bodies and many copies of anything take long to compile, every piece of a step is a
    program of its own, and so is the gradient of one part, which is called for each; on
    a mesh, of as many parts as it has devices.

    On a mesh, whatever goes in and comes out is where ``mesh.place`` puts it.

    Args:
      step: the pieces of an inner step.
      network_steps: network steps per inner step.
      loop: how loops are compiled.
      example: key, state and data, for their shapes.
    """
    if loop.rolled:
        return _one_program(step, network_steps, loop, example)
    return _program_of_each_piece(step, network_steps, loop, example)


def _one_program(
    step: StepFunctions, network_steps: int, loop: Loop, example: tuple
) -> Update:
    def inner_steps(key, state, data):
        def inner_step(state):
            state, distances = match(step, loop, key, state, data)
            train_once = lambda state: (step.train(key, state, data), None)  # noqa: E731
            return loop.repeat(train_once, state, network_steps)[0], distances

        return loop.repeat(inner_step, state, loop.steps_per_call)

    compiled = mesh.jit(loop.mesh, inner_steps, donate_argnums=1)
    program = compiled.lower(*example).compile()
    return Update(program, {"inner_steps": program})


def _program_of_each_piece(
    step: StepFunctions, network_steps: int, loop: Loop, example: tuple
) -> Update:
    _, state, data = example
    on_a_device = loop._replace(mesh=None)

    def gradients(parts, *given):
        return step.objective.some(on_a_device, parts, *given)

    def move(state, results):
        distances, grads = step.objective.join(results, state.variables)
        return step.move(state, grads), distances[None]

    def compiled(function, *shapes, donate=()):
        program = mesh.jit(loop.mesh, function, donate_argnums=donate)
        return program.lower(*shapes).compile()

    count = step.objective.parts(len(state.variables.pixels))
    # A single part is best off with all cores of a CPU.
    around = loop.mesh if count > 1 or mesh.talks(loop.mesh) else None
    parts = mesh.pad(around, np.arange(count, dtype=np.int32))
    groups = list(parts.reshape(-1, mesh.count(around)))
    like, seen = jax.eval_shape(step.look, *example)
    given = jax.eval_shape(_of_all_parts, seen, state, data)
    of_a_group = (groups[0], *given)
    shared = mesh.jit_rows(around, gradients, len(given))
    result = jax.tree.map(  # collected, not where the program leaves it
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.eval_shape(shared, *of_a_group),
    )
    programs = {
        "look": compiled(step.look, *example, donate=1),
        "gradients": shared.lower(*of_a_group).compile(),
        "move": compiled(move, like, [result] * len(groups), donate=0),
    }
    where = programs["gradients"].input_shardings[0][0]
    groups = [jax.device_put(group, where) for group in groups]
    train = lambda key, state, data: state  # noqa: E731
    if network_steps:
        train, of_network = compile_network_step(step, loop, example)
        programs |= of_network

    def run(key, state, data):
        state, seen = programs["look"](key, state, data)
        given = _of_all_parts(seen, state, data)
        if around is not None:
            given = mesh.spread(around, given)
        results = [programs["gradients"](group, *given) for group in groups]
        state, distances = programs["move"](state, mesh.collect(around, results))
        for _ in range(network_steps):
            state = train(key, state, data)
        return state, distances

    return Update(run, programs)


def compile_network_step(
    step: StepFunctions, loop: Loop, example: tuple[Array, SegmentState, SegmentData]
) -> tuple[Callable[..., SegmentState], dict[str, jax.stages.Compiled]]:
    """Compile one network step ``(key, state, data) -> state``; donates the state.

    Devices that do not talk take shares of its batch, where it divides by them and the
    network has no statistics of the batch as a whole: gradients are collected between
    programs.

    Returns:
      the step and the programs that it is made of.
    """
    key, state, data = example
    network, around = step.network, loop.mesh
    if network is None or not _falls_apart(network, around, state, data, key):
        program = mesh.jit(around, step.train, donate_argnums=1)
        program = program.lower(*example).compile()
        return program, {"train": program}

    def draw(key, state, data):
        return network.draw(key, state.learner, data, state.variables.pixels)

    def gradient(rows, params, share):
        _, _, grads = network.gradient(rows, params, share)
        return ravel_pytree(grads)[0][None]  # one array travels faster than many

    def move(state, sampler, grads):
        unravel = ravel_pytree(state.learner.params)[1]
        # Added one by one: XLA's sum over an axis takes five times as long.
        grads = unravel(reduce(jnp.add, grads) / len(grads))
        return state._replace(learner=network.move(state.learner, sampler, (), grads))

    sampler, rows, share = jax.eval_shape(draw, *example)
    given = jax.eval_shape(lambda *x: x, rows, state.learner.params, share)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.learner.params))
    grads = jax.ShapeDtypeStruct((mesh.count(around), count), jnp.float32)
    programs = {
        "draw": jax.jit(draw).lower(*example).compile(),
        "network": mesh.jit_rows(around, gradient, 2).lower(*given).compile(),
        "train": jax.jit(move, donate_argnums=0).lower(state, sampler, grads).compile(),
    }
    where = programs["network"].input_shardings[0]

    def train(key, state, data):
        sampler, rows, share = programs["draw"](key, state, data)
        given = jax.device_put((rows, state.learner.params, share), where)
        grads = mesh.collect(around, programs["network"](*given))
        return programs["train"](state, sampler, grads)

    return train, programs


def _falls_apart(
    network: TrainStep, around: mesh.Mesh | None, state: Any, data: Any, key: Array
) -> bool:
    """Whether the gradient of a batch is the mean of its shares', and they are even."""
    if around is None or around.talks:
        return False
    pixels = state.variables.pixels
    _, rows, share = jax.eval_shape(network.draw, key, state.learner, data, pixels)
    params = state.learner.params
    _, statistics, _ = jax.eval_shape(network.gradient, rows, params, share)
    return not statistics and len(rows.labels) % mesh.count(around) == 0


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
