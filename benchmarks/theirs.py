"""The eager PyTorch counterpart of a problem, with data, optimisers and random numbers.

Everything that ``benchmarks.eager`` asks for from outside comes from here.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import eager
from benchmarks.timing import seconds_of, threads
from dasm_jax.budget import SegmentPlan
from dasm_jax.problem import Problem
from dasm_jax.training import Recipe

FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


class Real(NamedTuple):
    """Real images."""

    images: Callable[[Tensor], Tensor]  # of indices, f32[B, ch, H, W] in [0, 1]
    labels: Tensor  # i64[N]


class Step(NamedTuple):
    """An inner step in two halves; every call is one more."""

    match: Callable[[], None]  # all classes
    match_one: Callable[[], None]  # a single class
    train: Callable[[], None]  # all network steps
    train_once: Callable[[], None]


class Chosen(NamedTuple):
    """An inner step in the faster memory format."""

    step: Step
    format: str
    # The first class and the first network step: nothing is compiled, but memory is
    # asked for and kernels are chosen.
    first_seconds: float


def use_all_cores() -> None:
    """As many threads as the process has cores."""
    torch.set_num_threads(threads())


def batches(
    rng: np.random.Generator, members: np.ndarray, size: int
) -> Iterator[Tensor]:
    """Indices i64[size], without replacement within a pass."""
    while True:
        order = rng.permutation(np.resize(members, max(size, len(members))))
        for first in range(0, len(order) - size + 1, size):
            yield torch.as_tensor(order[first : first + size])


def make_normalize(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Images f32[B, ch, H, W] in [0, 1] to what the network sees."""
    mean, std = (
        torch.tensor(values).reshape(1, -1, 1, 1) for values in problem.statistics[:2]
    )
    return lambda images: (images - mean) / std


def make_net(problem: Problem, memory_format: str = "contiguous") -> nn.Module:
    """A ConvNet-3 of the problem's width."""
    side, _, channels = problem.dataset.image_shape
    network = problem.settings.network
    net = eager.ConvNet(
        channels,
        side,
        network.width,
        problem.dataset.n_classes,
        ACTIVATIONS[network.activation],
    )
    return net.to(memory_format=FORMATS[memory_format])  # type: ignore[call-overload]


def real_images(problem: Problem) -> Real:
    """Every real training image, in memory."""
    data = problem.dataset.train
    stored = torch.as_tensor(data.images).permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(data.labels).long()
    return Real(lambda index: stored[index].float() / 255, labels)


def make_network_step(
    problem: Problem,
    net: nn.Module,
    recipe: Recipe,
    rng: np.random.Generator,
    real: Real,
) -> Callable[[], None]:
    """One SGD step on real images, under a recipe with colour, crop and CutMix."""
    optimizer = torch.optim.SGD(
        net.parameters(),
        recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    images, labels = real
    order = batches(rng, np.arange(len(labels)), recipe.batch)
    normalize = make_normalize(problem)
    side = problem.dataset.image_shape[0]

    def train_once() -> None:
        index = next(order)
        d = eager.draw(side, recipe.batch, False, rng)
        eager.network_step(
            net, optimizer, images(index), labels[index], d, normalize, rng
        )

    return train_once


def make_step(
    problem: Problem,
    plan: SegmentPlan,
    recipe: Recipe,
    memory_format: str,
    real: Real,
) -> Step:
    """IDC's inner step on random pixels and a random network."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    m = problem.settings.matcher.idc
    factor, n_classes = problem.settings.factor, problem.dataset.n_classes
    side, _, channels = problem.dataset.image_shape
    net = make_net(problem, memory_format)
    pixels = torch.rand(n_classes, plan.size, channels, side, side, requires_grad=True)
    optimizer = torch.optim.SGD([pixels], plan.learning_rate, momentum=m.image.momentum)
    orders = [
        batches(rng, of_class, m.real_batch) for of_class in problem.class_indices
    ]
    decoded = plan.size * factor**2
    normalize = make_normalize(problem)
    train_once = make_network_step(problem, net, recipe, rng, real)

    def match(count: int = n_classes) -> None:
        eager.match_step(
            net,
            pixels,
            optimizer,
            [real.images(next(order)) for order in orders[:count]],
            [eager.draw(side, None, True, rng) for _ in range(count)],
            [
                torch.as_tensor(rng.permutation(decoded)[: m.synthetic_batch])
                for _ in range(count)
            ],
            factor,
            m.metric,
            normalize,
        )

    def train() -> None:
        for _ in range(plan.network_steps):
            train_once()

    return Step(match, lambda: match(1), train, train_once)


def choose_step(problem: Problem, plan: SegmentPlan, recipe: Recipe) -> Chosen:
    """The inner step in the faster memory format, by a trial of one class."""
    use_all_cores()
    real = real_images(problem)
    costs, found = {}, {}
    for name in FORMATS:
        step = make_step(problem, plan, recipe, name, real)
        first = seconds_of(step.match_one) + seconds_of(step.train_once)
        match, train = (
            min(seconds_of(work) for _ in range(3))
            for work in (step.match_one, step.train_once)
        )
        costs[name] = match * problem.dataset.n_classes + train * plan.network_steps
        found[name] = Chosen(step, name, first)
    return found[min(costs, key=costs.__getitem__)]
