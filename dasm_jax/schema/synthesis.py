"""Data, network, synthetic images and their segments; how a run is kept."""

import dataclasses
from typing import Annotated

from dasm_jax import (
    budget,
    data,
    image_optimizer,
    initial,
    nets,
    parameterization,
    schedule,
    scoring,
)
from dasm_jax.checks import Count, Rate, Share, one_of, within


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Where the real images come from."""

    source: Annotated[str, one_of(data.SOURCES)]
    name: str
    data_dir: str
    train_split: str
    test_split: str
    test_share: Share
    validation: Share
    size: Annotated[int, within(0, 1024)]
    downsample: Count
    zca: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def tested_on(self) -> str:
        """The split that accuracies are of, as tables name it."""
        return "validation" if self.validation else "test"


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """The network that gradients are taken of, and that sets are evaluated on."""

    name: Annotated[str, one_of(nets.NETS)]
    width: Annotated[int, within(0, 4096)]
    depth: Count
    norm: Annotated[str, one_of(nets.NORMS)]
    activation: Annotated[str, one_of(nets.ACTIVATIONS)]
    pooling: Annotated[str, one_of(nets.POOLINGS)]

    @property
    def architecture(self) -> nets.Architecture:
        """For ``nets.make_network``."""
        return nets.Architecture(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class SyntheticSettings:
    """How synthetic images are stored and started."""

    factor: Annotated[int, within(0)]
    formation: Annotated[str, one_of(parameterization.FORMATIONS)]
    init: Annotated[str, one_of(initial.INITS)]


@dataclasses.dataclass(frozen=True)
class DasmSettings:
    """Segments, and the pools they are matched against."""

    segments: Count
    budget: Annotated[str, one_of(budget.BUDGETS)]
    taper: Annotated[float, within(0.1, 10)]
    pool: Annotated[str, one_of(schedule.POOLS)]
    ceiling: Annotated[str, one_of(schedule.CEILINGS)]
    schedule: Annotated[str, one_of(schedule.SCHEDULES)]
    rho: Share
    high: Share
    random_share: Share
    gamma: Rate
    easiest_share: Share
    coverage: Share
    score: Annotated[str, one_of(scoring.SCORES)]
    scored_by: Annotated[str, one_of(("segments", "real"))]
    networks: Count
    score_steps: Count
    rescore_every: Annotated[int, within(0)]
    target: Annotated[str, one_of(("pool", "class"))]
    context: Annotated[str, one_of(("active", "cumulative"))]
    polish: Share
    polish_rate: Rate
    polish_schedule: Annotated[str, one_of(("matcher", *image_optimizer.SCHEDULES))]
    polish_nested: Share
    polish_target: Annotated[str, one_of(("class", "pool"))]


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """How often a run is kept, and whether it is continued."""

    resume: Annotated[str, one_of(("auto", "must", "never"))]
    minutes: Rate
    keep: Count


@dataclasses.dataclass(frozen=True)
class LogSettings:
    """What is written while a run goes on."""

    every: Count
