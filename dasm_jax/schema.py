"""The shape of the settings: frozen dataclasses, and what each field may hold.

Values and comments live in ``configs/``.
"""

import dataclasses
from typing import Annotated

from dasm_jax import (
    budget,
    data,
    initial,
    matching,
    nets,
    parameterization,
    schedule,
    scoring,
)
from dasm_jax.checks import (
    Count,
    Momentum,
    Rate,
    Seed,
    Share,
    Strategy,
    each,
    one_of,
    parsed_by,
    within,
)

EXPERIMENTS = ("distill", "recover", "compare", "evaluate", "coreset", "curve")
MATCHERS = ("idc", "idc_i", "dc", "dsa", "dm", "cafe", "mtt")

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

# Where it is not 1: only IDC stores several images in one.
PUBLISHED_FACTORS = {"idc": 2}


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Where the real images come from."""

    source: Annotated[str, one_of(data.SOURCES)]
    name: str
    data_dir: str
    train_split: str
    test_split: str
    test_share: Share
    size: Annotated[int, within(0, 1024)]
    downsample: Count
    zca: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


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
class ImageSettings:
    """The image optimiser, and how its rate follows the images (``budget.py``)."""

    lr: Rate
    rule: Annotated[str, one_of(budget.RATE_RULES)]
    base_size: Count
    momentum: Momentum
    class_turns: bool


@dataclasses.dataclass(frozen=True)
class RecipeSettings:
    """One way of training a network."""

    batch: Count
    lr: Rate
    momentum: Momentum
    weight_decay: Rate
    augment: Strategy
    cutmix: Share


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """How long matching goes on with one segment: outer iterations × inner steps."""

    niter: Count
    inner: Annotated[int, within(0)]


@dataclasses.dataclass(frozen=True)
class TrajectorySettings:
    """The networks that are matched on: start, data and training."""

    start: Annotated[str, one_of(("random", "segments"))]
    data: Annotated[str, one_of(("all", "pool", "synthetic", "none"))]
    n_data: Count
    epochs: Annotated[int, within(0)]
    recipe: RecipeSettings


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """What every matcher has."""

    augment: Strategy
    synthetic_batch: Count
    image: ImageSettings
    loop: LoopSettings

    @property
    def needs_segment_networks(self) -> bool:
        """Whether networks trained on the finished segments are matched on."""
        return False


@dataclasses.dataclass(frozen=True)
class BatchMethodSettings(MethodSettings):
    """A matcher that compares real and synthetic batches under the same networks."""

    real_batch: Count
    trajectory: TrajectorySettings

    @property
    def needs_segment_networks(self) -> bool:
        return self.trajectory.start == "segments"


@dataclasses.dataclass(frozen=True)
class GradientSettings(BatchMethodSettings):
    """IDC, DC and DSA."""

    metric: Annotated[str, one_of(matching.METRICS)]
    layers: Annotated[str, one_of(matching.LAYERS)]


@dataclasses.dataclass(frozen=True)
class AlignmentSettings(BatchMethodSettings):
    """CAFE."""

    discrimination: Rate


@dataclasses.dataclass(frozen=True)
class TrajectoryMatchingSettings(MethodSettings):
    """MTT: expert trajectories, and the student that is to follow them."""

    steps: Count
    expert_epochs: Count
    max_start: Annotated[int, within(0)]
    step_size: Rate
    step_size_lr: Rate
    experts: Count
    epochs: Count
    at_once: Annotated[int, within(0)]
    folder: str
    recipe: RecipeSettings


@dataclasses.dataclass(frozen=True)
class MatcherSettings:
    """The surrogate objective in use, and the settings of each."""

    name: Annotated[str, one_of(MATCHERS)]
    idc: GradientSettings
    idc_i: GradientSettings
    dc: GradientSettings
    dsa: GradientSettings
    dm: BatchMethodSettings
    cafe: AlignmentSettings
    mtt: TrajectoryMatchingSettings

    @property
    def active(self) -> MethodSettings:
        """The settings of the matcher in use."""
        return getattr(self, self.name)


@dataclasses.dataclass(frozen=True)
class DasmSettings:
    """Segments, and the pools they are matched against."""

    segments: Count
    budget: Annotated[str, one_of(budget.BUDGETS)]
    pool: Annotated[str, one_of(schedule.POOLS)]
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
    context: Annotated[str, one_of(("active", "cumulative"))]


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
class MeasureSettings:
    """What a run measures of itself, and the networks that rank difficulty for it."""

    networks: Annotated[int, within(0)]
    steps: Count
    images: Count


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


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a run depends on."""

    experiment: Annotated[str, one_of(EXPERIMENTS)]
    seed: Seed
    devices: Annotated[int, within(0)]
    ipc: Count
    data: DataSettings
    network: NetworkSettings
    synthetic: SyntheticSettings
    matcher: MatcherSettings
    dasm: DasmSettings
    evaluate: EvaluateSettings
    recover: RecoverSettings
    compare: CompareSettings
    coreset: CoresetSettings
    curve: CurveSettings
    measure: MeasureSettings
    checkpoint: CheckpointSettings
    log: LogSettings

    @property
    def factor(self) -> int:
        """``synthetic.factor``, or where it is 0 that of the matcher's publication."""
        return self.synthetic.factor or PUBLISHED_FACTORS.get(self.matcher.name, 1)
