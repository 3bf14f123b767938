"""What is evaluated, compared and measured."""

import dataclasses
from typing import Annotated

from dasm_jax import nets
from dasm_jax.checks import (
    Count,
    Rate,
    Seed,
    Strategy,
    any_value,
    each,
    one_of,
    parsed_by,
    within,
)
from dasm_jax.schema.matcher import MATCHERS
from dasm_jax.schema.recipe import RecipeSettings

EXPERIMENTS = (
    "distill",
    "recover",
    "compare",
    "evaluate",
    "coreset",
    "curve",
    "study",
    "analyse",
)
SELECTIONS = (
    "random",
    "herding",
    "k_center",
    "k_means",
    "forgetting",
    "el2n",
    "grand",
    "static_filter",
)
AUGMENTATIONS = ("recipe", "none", "dsa", "dsa_cutmix")


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """The recipe under which every set in a table is compared."""

    seed: Seed
    networks: Count
    steps: Count
    prefixes: bool
    baselines: bool
    at_once: Annotated[int, within(0)]
    synthetic: str
    architectures: Annotated[
        tuple[str, ...], each(parsed_by(nets.parse_architecture), or_none=True)
    ]
    augmentations: Annotated[tuple[str, ...], each(one_of(AUGMENTATIONS))]
    epochs: Annotated[int, within(0)]
    same_compute: bool
    looks: Count
    recipe: RecipeSettings


@dataclasses.dataclass(frozen=True)
class RecoverSettings:
    """BN-statistics recovery: a teacher, images recovered from it, its soft labels."""

    teacher_steps: Count
    steps: Count
    lr: Rate
    bn_weight: Rate
    augment: Strategy
    temperature: Annotated[float, within(0.01)]


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """Which cells a table of matchers has."""

    matchers: Annotated[tuple[str, ...], each(one_of(MATCHERS))]
    ipcs: Annotated[tuple[int, ...], each(within(1))]
    seeds: Annotated[tuple[int, ...], each(within(0, 2**31 - 1))]
    document: str


@dataclasses.dataclass(frozen=True)
class CoresetSettings:
    """Which real images are selected, and the networks that look at them."""

    methods: Annotated[tuple[str, ...], each(one_of(SELECTIONS))]
    networks: Count
    steps: Count
    looks: Annotated[int, within(2)]


@dataclasses.dataclass(frozen=True)
class CurveSettings:
    """Which cells the figure of accuracy over IPC has."""

    methods: Annotated[tuple[str, ...], each(one_of((*SELECTIONS, "idc", "dasm")))]
    ipcs: Annotated[tuple[int, ...], each(within(1))]
    seeds: Annotated[tuple[int, ...], each(within(0, 2**31 - 1))]
    document: str


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """Arms that are compared with some of them, and under what name."""

    name: str
    arms: Annotated[tuple[str, ...], each(any_value)]
    baseline: str  # names, commas between
    ipcs: Annotated[tuple[int, ...], each(within(1))]
    seeds: Annotated[tuple[int, ...], each(within(0, 2**31 - 1))]
    prefixes: bool
    rows: str
    document: str

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the arms that the others are compared with, at least one."""
        return tuple(dict.fromkeys(name.strip() for name in self.baseline.split(",")))


@dataclasses.dataclass(frozen=True)
class AnalyseSettings:
    """Finished runs whose measures are put side by side."""

    name: str
    runs: Annotated[tuple[str, ...], each(any_value, or_none=True)]
    rows: str
    document: str


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """What a run measures of itself, and the networks that rank difficulty for it."""

    networks: Annotated[int, within(0)]
    steps: Count
    images: Count
