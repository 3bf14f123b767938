"""The program's own update, in pieces that can be timed: the only file that knows it.

Everything is built by the functions that ``dasm.run_dasm`` calls, on one segment whose
pool is every real image.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dasm_jax import augment, budget, dasm, distill, sampling
from dasm_jax.budget import SegmentPlan
from dasm_jax.loops import Loop
from dasm_jax.plan import context_of, plan_segments
from dasm_jax.problem import Problem
from dasm_jax.segment import SegmentData, SegmentState, Variables, choose_images


class Prepared(NamedTuple):
    """A segment ahead of its first step."""

    plan: SegmentPlan
    step: distill.StepFunctions
    loop: Loop
    example: tuple[jax.Array, SegmentState, SegmentData]


class Program(NamedTuple):
    """Something compiled, with the state that it donates."""

    run: Callable[[], None]  # one call, and wait for it
    steps: int  # inner steps of a call
    compile_seconds: float
    memory: dict[str, int] | None  # bytes; None where a backend does not tell


class Matched(NamedTuple):
    """One matching of a few classes, and all that it depended on; NHWC."""

    params: Any
    pixels: np.ndarray  # f32[C, n, H, W, ch] in [0, 1]
    real: np.ndarray  # u8[C, B, H, W, ch]
    draws: list[dict[str, np.ndarray]]  # augmentation of each class
    choices: list[np.ndarray]  # i[M] place of each decoded image, tile by tile
    distances: np.ndarray  # f32[C]
    gradients: np.ndarray  # of the distance in the pixels


def prepare(problem: Problem) -> Prepared:
    """Pixels and a network at random, and the pure halves of an inner step."""
    plan = plan_segments(problem)[0]
    optimizers = dasm.make_optimizers(problem, plan)
    learner = problem.method.learner(plan.size, plan.inner, context_of(problem))
    step = distill.make_step(
        problem.method.objective(context_of(problem), problem.loop),
        learner,
        optimizers,
        problem.method.real_batch,
    )
    root = jax.random.key(problem.settings.seed)
    count = len(problem.dataset.train.labels)
    data = jax.device_put(
        SegmentData(
            real=problem.real,
            pool=sampling.make_table(problem.class_indices),
            network_data=sampling.prefix_table(count, count),
            frozen=_no_images(problem, problem.dataset.n_classes),
            frozen_count=np.int32(0),
            segment=np.int32(1),
            pool_round=np.int32(0),
        )
    )
    pixels = _random_pixels(problem, plan.size)
    state = distill.start_segment(
        Variables(jnp.asarray(pixels), problem.method.learned),
        problem.network.init(root),
        data,
        learner,
        optimizers,
    )
    loop = problem.loop.calling(plan.inner)
    return Prepared(plan, step, loop, (root, state, data))


def _random_pixels(problem: Problem, size: int) -> np.ndarray:
    shape = (problem.dataset.n_classes, size, *problem.dataset.image_shape)
    return np.random.default_rng(1).random(shape, np.float32)


def _no_images(problem: Problem, n_classes: int) -> np.ndarray:
    return np.zeros((n_classes, 0, *problem.dataset.image_shape), np.float32)


def compile_step(prepared: Prepared) -> Program:
    """Matching and network steps, by the program's own ``compile_update``."""
    began = time.perf_counter()
    update = distill.compile_update(
        prepared.step, prepared.plan.network_steps, prepared.loop, prepared.example
    )
    seconds = time.perf_counter() - began

    def call(key, state, data):
        return update(key, state, data)[0]

    return _program(prepared, call, seconds, None)


def compile_matching(prepared: Prepared) -> Program:
    """Matching of all classes alone; as many steps in a call as the program takes."""
    step, loop = prepared.step, prepared.loop

    def match(key, state, data):
        if not loop.rolled:
            return step.match(key, state, data)[0]
        once = lambda state: step.match(key, state, data)  # noqa: E731
        return loop.repeat(once, state, loop.steps_per_call)[0]

    compiled, seconds = _compiled(match, prepared)
    return _program(prepared, compiled, seconds, _memory(compiled))


def compile_network(prepared: Prepared) -> Program:
    """The network steps of as many inner steps, alone."""
    step, loop = prepared.step, prepared.loop
    count = prepared.plan.network_steps

    def train(key, state, data):
        if not loop.rolled:
            return step.train(key, state, data)
        once = lambda state: (step.train(key, state, data), None)  # noqa: E731
        return loop.repeat(once, state, count * loop.steps_per_call)[0]

    compiled, seconds = _compiled(train, prepared)

    def call(key, state, data):
        for _ in range(1 if loop.rolled else count):
            state = compiled(key, state, data)
        return state

    return _program(prepared, call, seconds, _memory(compiled))


def _compiled(function: Callable, prepared: Prepared) -> tuple[Any, float]:
    began = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=1).lower(*prepared.example).compile()
    return compiled, time.perf_counter() - began


def _program(
    prepared: Prepared, call: Callable, seconds: float, memory: dict[str, int] | None
) -> Program:
    key, state, data = prepared.example
    state = jax.tree.map(jnp.copy, state)  # the example outlives what is donated

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(call(key, state, data))

    return Program(run, prepared.loop.steps_per_call, seconds, memory)


def _memory(compiled: Any) -> dict[str, int] | None:
    """Bytes by use; ``total`` counts what is donated once."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    names = ("temp", "argument", "output", "alias")
    sizes = {name: int(getattr(analysis, f"{name}_size_in_bytes")) for name in names}
    total = sizes["temp"] + sizes["argument"] + sizes["output"] - sizes["alias"]
    return {**sizes, "total": total}


def matching_memory(problem: Problem) -> dict[str, int] | None:
    """Bytes of the program that matches all classes once."""
    return compile_matching(prepare(problem)).memory


def network_flops(prepared: Prepared) -> float:
    """Counted FLOPs of one network step."""
    key, state, data = prepared.example

    def train(raw, state, data):  # a count needs no particular key
        return prepared.step.train(jax.random.wrap_key_data(raw), state, data)

    return budget.count_flops(train, jax.random.key_data(key), state, data)


def match_once(problem: Problem, n_classes: int) -> Matched:
    """Distances and gradients of the first classes, by the program's objective."""
    size = plan_segments(problem)[0].size
    key, network_key = jax.random.split(jax.random.key(2))
    params = problem.network.init(network_key)
    pixels = _random_pixels(problem, size)[:n_classes]
    of_class = problem.class_indices[:n_classes]
    index = np.stack([i[: problem.method.real_batch] for i in of_class])
    real = problem.dataset.train.images[index]
    objective = problem.method.objective(None, problem.loop)
    distances, gradients = jax.jit(objective)(
        key,
        Variables(jnp.asarray(pixels), problem.method.learned),
        problem.method.view(params),
        jnp.asarray(real),
        _no_images(problem, n_classes),
        jnp.int32(0),
    )
    draws, choices = [], []
    for label in range(n_classes):
        draw, choice = _randomness(problem, jax.random.fold_in(key, label), size)
        draws.append(draw)
        choices.append(choice)
    params, distances, gradients = jax.device_get((params, distances, gradients.pixels))
    return Matched(params, pixels, real, draws, choices, distances, gradients)


def _randomness(
    problem: Problem, key: jax.Array, size: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What ``objectives.make_class_objective`` draws for one class from its key."""
    m, factor = problem.settings.matcher.idc, problem.settings.factor
    choice_key, augment_key = jax.random.split(key)
    formation, _ = choose_images(
        choice_key, problem.parameterization.tiles(size), size, m.synthetic_batch
    )
    sources, rows, columns = (np.asarray(field) for field in formation)
    first = factor * (factor - 1) // 2  # tiles of smaller factors come before
    choice = ((rows - first) * factor + columns - first) * size + sources
    draw = augment.draw_augmentation(
        augment_key,
        augment.parse_strategy(m.augment),
        problem.dataset.image_shape[:2],
    )
    return {name: np.asarray(value) for name, value in draw.items()}, choice
