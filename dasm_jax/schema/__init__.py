"""The shape of the settings: frozen dataclasses, and what each field may hold.

Values and comments live in ``configs/``.
"""

import dataclasses
from typing import Annotated

from dasm_jax.checks import Count, Seed, one_of, within
from dasm_jax.schema.experiments import (
    EXPERIMENTS,
    SELECTIONS,
    AnalyseSettings,
    CompareSettings,
    CoresetSettings,
    CurveSettings,
    EvaluateSettings,
    MeasureSettings,
    RecoverSettings,
    StudySettings,
)
from dasm_jax.schema.matcher import (
    MATCHERS,
    AlignmentSettings,
    BatchMethodSettings,
    GradientSettings,
    ImageSettings,
    LoopSettings,
    MatcherSettings,
    MethodSettings,
    TrajectoryMatchingSettings,
    TrajectorySettings,
)
from dasm_jax.schema.recipe import RecipeSettings
from dasm_jax.schema.synthesis import (
    CheckpointSettings,
    DasmSettings,
    DataSettings,
    LogSettings,
    NetworkSettings,
    SyntheticSettings,
)

__all__ = [
    "EXPERIMENTS",
    "MATCHERS",
    "SELECTIONS",
    "AlignmentSettings",
    "AnalyseSettings",
    "BatchMethodSettings",
    "CheckpointSettings",
    "CompareSettings",
    "CoresetSettings",
    "CurveSettings",
    "DasmSettings",
    "DataSettings",
    "EvaluateSettings",
    "GradientSettings",
    "ImageSettings",
    "LogSettings",
    "LoopSettings",
    "MatcherSettings",
    "MeasureSettings",
    "MethodSettings",
    "NetworkSettings",
    "RecipeSettings",
    "RecoverSettings",
    "Settings",
    "StudySettings",
    "SyntheticSettings",
    "TrajectoryMatchingSettings",
    "TrajectorySettings",
]

# Where it is not 1: only IDC stores several images in one.
PUBLISHED_FACTORS = {"idc": 2}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a run depends on."""

    experiment: Annotated[str, one_of(EXPERIMENTS)]
    seed: Seed
    devices: Annotated[int, within(0)]
    on_nonfinite: Annotated[str, one_of(("stop", "rollback"))]
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
    study: StudySettings
    analyse: AnalyseSettings
    measure: MeasureSettings
    checkpoint: CheckpointSettings
    log: LogSettings

    @property
    def factor(self) -> int:
        """``synthetic.factor``, or where it is 0 that of the matcher's publication."""
        return self.synthetic.factor or PUBLISHED_FACTORS.get(self.matcher.name, 1)
