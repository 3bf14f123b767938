"""Settings: frozen dataclasses behind the ``ml_collections`` configs, and their checks.

Values and comments live in ``configs/default.py``; here are types and what is allowed.
``ml_collections`` stops at this module.
"""

import dataclasses
import math
import typing
from typing import Annotated, Any

from ml_collections import ConfigDict

from dasm_jax import (
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
    one_of,
    unknown_name,
    within,
)
from dasm_jax.errors import UserError

EXPERIMENTS = ("distill",)
BUDGETS = ("flops", "steps", "per_segment")
SMALLEST_TILE = 4


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Where the real images come from."""

    source: Annotated[str, one_of(data.SOURCES)]
    name: str
    data_dir: str
    train_split: str
    test_split: str
    test_share: Share
    downsample: Count
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """The network that gradients are taken of, and that sets are evaluated on."""

    name: Annotated[str, one_of(nets.NETS)]
    width: Annotated[int, within(1, 4096)]
    depth: Count


@dataclasses.dataclass(frozen=True)
class SyntheticSettings:
    """How synthetic images are stored and started."""

    factor: Count
    formation: Annotated[str, one_of(parameterization.FORMATIONS)]
    init: Annotated[str, one_of(initial.INITS)]


@dataclasses.dataclass(frozen=True)
class MatcherSettings:
    """The distance, and what goes into it."""

    name: Annotated[str, one_of(matching.MATCHERS)]
    metric: Annotated[str, one_of(matching.METRICS)]
    layers: Annotated[str, one_of(matching.LAYERS)]
    augment: Strategy
    real_batch: Count
    synthetic_batch: Count


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """The image optimiser: lr = lr · (ipc_k / 10) · (side / base_size)²."""

    lr: Rate
    base_size: Count
    momentum: Momentum


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
    """How long matching goes on: outer iterations × inner steps of one IDC run."""

    niter: Count
    inner: Count


@dataclasses.dataclass(frozen=True)
class TrajectorySettings:
    """The networks whose gradients are matched: start, data and training."""

    start: Annotated[str, one_of(("random", "segments"))]
    data: Annotated[str, one_of(("all", "pool"))]
    n_data: Count
    recipe: RecipeSettings


@dataclasses.dataclass(frozen=True)
class DasmSettings:
    """Segments, and the pools they are matched against."""

    segments: Count
    budget: Annotated[str, one_of(BUDGETS)]
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
    recipe: RecipeSettings


@dataclasses.dataclass(frozen=True)
class LogSettings:
    """What is written while a run goes on."""

    every: Count


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a run depends on."""

    experiment: Annotated[str, one_of(EXPERIMENTS)]
    seed: Seed
    ipc: Count
    data: DataSettings
    network: NetworkSettings
    synthetic: SyntheticSettings
    matcher: MatcherSettings
    image: ImageSettings
    loop: LoopSettings
    trajectory: TrajectorySettings
    dasm: DasmSettings
    evaluate: EvaluateSettings
    log: LogSettings


def from_config(config: ConfigDict) -> Settings:
    """Check a config and freeze it.

    Raises:
      UserError: an unknown or missing key, a value of the wrong type or out of range.
    """
    settings = _build(Settings, config, "")
    _check_together(settings)
    return settings


def to_dict(settings: Settings) -> dict[str, Any]:
    """Plain nested dict, ready for JSON."""
    return dataclasses.asdict(settings)


def check_key(path: str) -> None:
    """Check a dotted name such as ``config.dasm.segments``.

    Raises:
      UserError: there is no such field; the message lists those there are.
    """
    known: Any = Settings
    group, *names = path.split(".")
    for name in names:
        if not dataclasses.is_dataclass(known):
            raise UserError(f"{group} is a single value, it has no field '{name}'")
        hints = typing.get_type_hints(known)
        if name not in hints:
            raise UserError(unknown_name(f"config key '{group}.{name}'", name, hints))
        known, group = hints[name], f"{group}.{name}"


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list:
    """Dotted names of the fields in which two nested dicts differ."""
    names = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names


def _build(cls: Any, config: Any, prefix: str) -> Any:
    if not isinstance(config, ConfigDict):
        raise UserError(f"config.{prefix[:-1]} must be a group of fields")
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in config:
        if key not in hints:
            raise UserError(unknown_name(f"config key '{prefix}{key}'", key, hints))
    for name in hints:
        if name not in config:
            raise UserError(
                f"config key '{prefix}{name}' is missing; see configs/default.py"
            )
    return cls(
        **{
            name: _build(hint, config[name], f"{prefix}{name}.")
            if dataclasses.is_dataclass(hint)
            else _convert(hint, config[name], f"{prefix}{name}")
            for name, hint in hints.items()
        }
    )


def _convert(hint: Any, value: Any, name: str) -> Any:
    if typing.get_origin(hint) is Annotated:
        plain, check = typing.get_args(hint)
        value = _convert(plain, value, name)
        check(name, value)
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple | list):
            raise UserError(f"config.{name} must be a tuple of numbers, got {value!r}")
        return tuple(_convert(float, item, name) for item in value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UserError(f"config.{name} must be of type {hint.__name__}, got {value!r}")
    return value


def _check_together(s: Settings) -> None:
    if s.ipc < s.dasm.segments:
        raise UserError(
            f"config.ipc={s.ipc} is smaller than config.dasm.segments="
            f"{s.dasm.segments}: a segment needs at least one image per class"
        )
    if s.data.source == "tfds" and s.data.train_split == s.data.test_split:
        raise UserError(
            f"config.data.test_split={s.data.test_split!r} is the train split too; "
            "test on images that the synthesis has not seen"
        )
    if s.dasm.rho >= s.dasm.high:
        raise UserError(
            f"the quantile window is reversed: config.dasm.rho={s.dasm.rho} must stay "
            f"below config.dasm.high={s.dasm.high}"
        )
    finite = all(math.isfinite(x) for x in (*s.data.mean, *s.data.std))
    if (
        not finite
        or len(s.data.mean) != len(s.data.std)
        or min(s.data.std, default=1) <= 0
    ):
        raise UserError(
            "config.data.mean and config.data.std need one finite value per channel, "
            "std > 0; leave both empty to compute them"
        )


def check_against_data(
    s: Settings, class_counts: list[int], image_shape: tuple[int, int, int]
) -> None:
    """Check what only the loaded dataset can tell.

    Raises:
      UserError: more images per class than the smallest class has, tiles under 4 px, or
        statistics of another number of channels.
    """
    smallest = min(class_counts)
    if s.ipc > smallest:
        raise UserError(
            f"config.ipc={s.ipc} is larger than the smallest class ({smallest} images)"
        )
    height, width, channels = image_shape
    tile = -(-min(height, width) // s.synthetic.factor)
    if tile < SMALLEST_TILE:
        raise UserError(
            f"config.synthetic.factor={s.synthetic.factor} leaves tiles of {tile} px "
            f"in {height}x{width} images; at least {SMALLEST_TILE} px are needed"
        )
    if s.data.mean and len(s.data.mean) != channels:
        raise UserError(
            f"config.data.mean has {len(s.data.mean)} values, the images have "
            f"{channels} channels"
        )
