"""The program's own update, in pieces that can be timed: the only file that knows it.

Everything is built by the functions that ``dasm.run_dasm`` calls, on one segment whose
pool is every real image.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dasm_jax import augment, budget, distill, mesh, sampling
from dasm_jax.budget import SegmentPlan
from dasm_jax.device_memory import program_bytes
from dasm_jax.loops import Loop
from dasm_jax.plan import plan_segments
from dasm_jax.problem import Problem
from dasm_jax.segment import SegmentData, SegmentState, Variables, choose_images
from dasm_jax.segment_setup import parts_of, step_of


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
    parts = parts_of(problem, plan)
    root = jax.random.key(problem.settings.seed)
    count = len(problem.dataset.train.labels)
    place = partial(mesh.place, problem.loop.mesh)
    data = place(
        SegmentData(
            real=problem.real,
            pool=sampling.make_table(problem.class_indices),
            network_data=sampling.prefix_table(count, count),
            frozen=_no_images(problem, problem.dataset.n_classes),
            segment=np.int32(1),
            pool_round=np.int32(0),
        )
    )
    pixels = _random_pixels(problem, plan.size)
    given, learned = problem.network.init(root), problem.method.learned
    state = parts.start(jnp.asarray(pixels), learned, given, data)
    loop = problem.loop.calling(plan.inner)
    return Prepared(
        plan, step_of(problem, parts), loop, (place(root), place(state), data)
    )


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
    return _program(prepared, update, time.perf_counter() - began)


def compile_matching(prepared: Prepared) -> Program:
    """The same without network steps."""
    began = time.perf_counter()
    update = distill.compile_update(prepared.step, 0, prepared.loop, prepared.example)
    return _program(prepared, update, time.perf_counter() - began)


def compile_network(prepared: Prepared) -> Program:
    """The network steps of as many inner steps, alone."""
    began = time.perf_counter()
    run, programs = _network_steps(prepared)
    seconds = time.perf_counter() - began

    def update(key, state, data):
        return run(key, state, data), jnp.zeros(0)

    return _program(prepared, distill.Update(update, programs), seconds)


def _network_steps(prepared: Prepared) -> tuple[Callable, dict]:
    loop, count = prepared.loop, prepared.plan.network_steps
    if not loop.rolled:
        once, programs = distill.compile_network_step(
            prepared.step, loop, prepared.example
        )

        def run(key, state, data):
            for _ in range(count):
                state = once(key, state, data)
            return state

        return run, programs

    def train(key, state, data):
        once = lambda state: (prepared.step.train(key, state, data), None)  # noqa: E731
        return loop.repeat(once, state, count * loop.steps_per_call)[0]

    program = mesh.jit(loop.mesh, train, donate_argnums=1)
    compiled = program.lower(*prepared.example).compile()
    return compiled, {"train": compiled}


def _program(prepared: Prepared, update: distill.Update, seconds: float) -> Program:
    key, state, data = prepared.example
    state = jax.tree.map(jnp.copy, state)  # the example outlives what is donated

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(update.run(key, state, data)[0])

    return Program(run, prepared.loop.steps_per_call, seconds, _memory(update))


def _memory(update: distill.Update) -> dict[str, int] | None:
    """Bytes of the largest of its programs, by use; donated ones count once."""
    found = [program_bytes(program) for program in update.programs.values()]
    known = [sizes for sizes in found if sizes is not None]
    return max(known, key=lambda sizes: sizes["total"], default=None)


def matching_memory(problem: Problem) -> dict[str, int] | None:
    """Bytes of the largest program of a matching step."""
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
    distances, gradients = jax.jit(partial(objective.whole, problem.loop))(
        key,
        Variables(jnp.asarray(pixels), problem.method.learned),
        problem.method.view(params),
        jnp.asarray(real),
        _no_images(problem, n_classes),
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
    formation = choose_images(
        choice_key, problem.parameterization.tiles(size), m.synthetic_batch
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
