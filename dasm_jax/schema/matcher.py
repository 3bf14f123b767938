"""The surrogate objectives: what each has to be told."""

import dataclasses
from typing import Annotated

from dasm_jax import budget, image_optimizer, matching
from dasm_jax.checks import Count, Momentum, Rate, Strategy, one_of, within
from dasm_jax.schema.recipe import RecipeSettings

MATCHERS = ("idc", "idc_i", "dc", "dsa", "dm", "cafe", "mtt")


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """The image optimiser, and how its rate follows the images (``budget.py``)."""

    lr: Rate
    schedule: Annotated[str, one_of(image_optimizer.SCHEDULES)]
    rule: Annotated[str, one_of(budget.RATE_RULES)]
    base_size: Count
    momentum: Momentum
    class_turns: bool


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
    bank: Annotated[int, within(0)]
    bank_epochs: Count
    perturb: Rate
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

    @property
    def stores_networks(self) -> bool:
        """Whether networks trained on real images are stored: experts, or a bank."""
        return False


@dataclasses.dataclass(frozen=True)
class BatchMethodSettings(MethodSettings):
    """A matcher that compares real and synthetic batches under the same networks."""

    real_batch: Count
    batches: Annotated[str, one_of(("shuffled", "kmeans"))]
    trajectory: TrajectorySettings

    @property
    def needs_segment_networks(self) -> bool:
        return self.trajectory.start == "segments"

    @property
    def stores_networks(self) -> bool:
        return self.trajectory.bank > 0


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

    @property
    def stores_networks(self) -> bool:
        return True


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
