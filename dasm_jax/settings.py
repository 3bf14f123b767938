"""Settings: frozen dataclasses behind the ``ml_collections`` configs, and their checks.

Values and comments live in ``configs/default.py``; here are types and what is allowed.
``ml_collections`` stops at this module.
"""

import dataclasses
import difflib
import types
import typing
from typing import Any

from ml_collections import ConfigDict

from dasm_jax import augment, initial, matching, nets, schedule, scoring
from dasm_jax.errors import UserError

MATCHERS = ("idc",)
EXPERIMENTS = ("distill",)
SOURCES = ("tfds", "folder", "digits")
FORMATIONS = ("single", "multi", "bound")
BUDGETS = ("flops", "steps", "per_segment")
SMALLEST_TILE = 4


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Where the real images come from."""

    source: str
    name: str
    data_dir: str
    train_split: str
    test_split: str
    test_share: float
    downsample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """The network that gradients are taken of, and that sets are evaluated on."""

    name: str
    width: int
    depth: int


@dataclasses.dataclass(frozen=True)
class SyntheticSettings:
    """How synthetic images are stored and started."""

    factor: int
    formation: str
    init: str


@dataclasses.dataclass(frozen=True)
class MatcherSettings:
    """The distance, and what goes into it."""

    name: str
    metric: str
    layers: str
    augment: str
    real_batch: int
    synthetic_batch: int


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """The image optimiser: lr = lr · (ipc_k / 10) · (side / base_size)²."""

    lr: float
    base_size: int
    momentum: float


@dataclasses.dataclass(frozen=True)
class RecipeSettings:
    """One way of training a network."""

    batch: int
    lr: float
    momentum: float
    weight_decay: float
    augment: str
    cutmix: float


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """How long matching goes on: outer iterations × inner steps of one IDC run."""

    niter: int
    inner: int


@dataclasses.dataclass(frozen=True)
class TrajectorySettings:
    """The networks whose gradients are matched: start, data and training."""

    start: str
    data: str
    n_data: int
    recipe: RecipeSettings


@dataclasses.dataclass(frozen=True)
class DasmSettings:
    """Segments, and the pools they are matched against."""

    segments: int
    budget: str
    pool: str
    schedule: str
    rho: float
    high: float
    random_share: float
    gamma: float
    easiest_share: float
    coverage: float
    score: str
    scored_by: str
    networks: int
    score_steps: int
    rescore_every: int
    context: str


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """The recipe under which every set in a table is compared."""

    seed: int
    networks: int
    steps: int
    recipe: RecipeSettings


@dataclasses.dataclass(frozen=True)
class LogSettings:
    """What is written while a run goes on."""

    every: int


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a run depends on."""

    experiment: str
    seed: int
    ipc: int
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
    _check(settings)
    return settings


def to_dict(settings: Settings) -> dict[str, Any]:
    """Plain nested dict, ready for JSON."""
    return dataclasses.asdict(settings)


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


def _build(cls: type, config: Any, prefix: str) -> Any:
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config.{prefix[:-1]} must be a group of fields, got {config!r}"
        )
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    for key in config:
        if key not in known:
            raise UserError(unknown_name(f"config key '{prefix}{key}'", key, known))
    missing = [name for name in known if name not in config]
    if missing:
        raise UserError(
            f"config key '{prefix}{missing[0]}' is missing; see configs/default.py"
        )
    return cls(
        **{
            name: _build(hints[name], config[name], f"{prefix}{name}.")
            if dataclasses.is_dataclass(hints[name])
            else _convert(config[name], hints[name], f"{prefix}{name}")
            for name in known
        }
    )


def _convert(value: Any, hint: Any, name: str) -> Any:
    if isinstance(hint, types.UnionType):
        return None if value is None else _convert(value, hint.__args__[0], name)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple | list):
            raise UserError(f"config.{name} must be a tuple of numbers, got {value!r}")
        return tuple(_convert(item, float, name) for item in value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise UserError(f"config.{name} must be of type {hint.__name__}, got {value!r}")
    return value


def unknown_name(what: str, name: str, known: typing.Iterable[str]) -> str:
    """One line that names what was not understood and what would have been."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"unknown {what}; {hint}known: {', '.join(known)}"


def _check(s: Settings) -> None:
    def one_of(field: str, value: str, known: typing.Iterable[str]) -> None:
        if value not in known:
            raise UserError(unknown_name(f"config.{field}={value!r}", value, known))

    def within(
        field: str, value: float, low: float, high: float = float("inf")
    ) -> None:
        if not low <= value <= high:
            bound = f"at least {low}" if high == float("inf") else f"in [{low}, {high}]"
            raise UserError(f"config.{field} must be {bound}, got {value}")

    def strategy(field: str, value: str) -> None:
        try:
            augment.parse_strategy(value)
        except ValueError as error:
            raise UserError(f"config.{field}: {error}") from None

    one_of("experiment", s.experiment, EXPERIMENTS)
    one_of("data.source", s.data.source, SOURCES)
    one_of("network.name", s.network.name, nets.NETS)
    one_of("synthetic.formation", s.synthetic.formation, FORMATIONS)
    one_of("synthetic.init", s.synthetic.init, initial.INITS)
    one_of("matcher.name", s.matcher.name, MATCHERS)
    one_of("matcher.metric", s.matcher.metric, matching.METRICS)
    one_of("matcher.layers", s.matcher.layers, matching.LAYERS)
    one_of("trajectory.data", s.trajectory.data, ("all", "pool"))
    one_of("trajectory.start", s.trajectory.start, ("random", "segments"))
    one_of("dasm.budget", s.dasm.budget, BUDGETS)
    one_of("dasm.pool", s.dasm.pool, schedule.POOLS)
    one_of("dasm.schedule", s.dasm.schedule, schedule.SCHEDULES)
    one_of("dasm.score", s.dasm.score, scoring.SCORES)
    one_of("dasm.scored_by", s.dasm.scored_by, ("segments", "real"))
    one_of("dasm.context", s.dasm.context, ("active", "cumulative"))
    strategy("matcher.augment", s.matcher.augment)
    strategy("trajectory.recipe.augment", s.trajectory.recipe.augment)
    strategy("evaluate.recipe.augment", s.evaluate.recipe.augment)

    for field, value in {
        "seed": s.seed,
        "evaluate.seed": s.evaluate.seed,
        "dasm.rescore_every": s.dasm.rescore_every,
    }.items():
        within(field, value, 0, 2**31 - 1)
    for field, value in {
        "ipc": s.ipc,
        "data.downsample": s.data.downsample,
        "network.width": s.network.width,
        "network.depth": s.network.depth,
        "synthetic.factor": s.synthetic.factor,
        "matcher.real_batch": s.matcher.real_batch,
        "matcher.synthetic_batch": s.matcher.synthetic_batch,
        "image.base_size": s.image.base_size,
        "loop.niter": s.loop.niter,
        "loop.inner": s.loop.inner,
        "trajectory.n_data": s.trajectory.n_data,
        "trajectory.recipe.batch": s.trajectory.recipe.batch,
        "evaluate.recipe.batch": s.evaluate.recipe.batch,
        "dasm.segments": s.dasm.segments,
        "dasm.networks": s.dasm.networks,
        "dasm.score_steps": s.dasm.score_steps,
        "evaluate.networks": s.evaluate.networks,
        "evaluate.steps": s.evaluate.steps,
        "log.every": s.log.every,
    }.items():
        within(field, value, 1)
    for field, value in {
        "data.test_share": s.data.test_share,
        "trajectory.recipe.cutmix": s.trajectory.recipe.cutmix,
        "evaluate.recipe.cutmix": s.evaluate.recipe.cutmix,
        "dasm.rho": s.dasm.rho,
        "dasm.high": s.dasm.high,
        "dasm.random_share": s.dasm.random_share,
        "dasm.easiest_share": s.dasm.easiest_share,
        "dasm.coverage": s.dasm.coverage,
    }.items():
        within(field, value, 0, 1)
    for field, value in {
        "image.lr": s.image.lr,
        "dasm.gamma": s.dasm.gamma,
        "trajectory.recipe.lr": s.trajectory.recipe.lr,
        "trajectory.recipe.weight_decay": s.trajectory.recipe.weight_decay,
        "evaluate.recipe.lr": s.evaluate.recipe.lr,
        "evaluate.recipe.weight_decay": s.evaluate.recipe.weight_decay,
    }.items():
        within(field, value, 0)
    for field, value in {
        "image.momentum": s.image.momentum,
        "trajectory.recipe.momentum": s.trajectory.recipe.momentum,
        "evaluate.recipe.momentum": s.evaluate.recipe.momentum,
    }.items():
        within(field, value, 0, 0.999)

    if s.ipc < s.dasm.segments:
        raise UserError(
            f"config.ipc={s.ipc} is smaller than config.dasm.segments="
            f"{s.dasm.segments}: a segment needs at least one image per class"
        )
    if s.dasm.rho >= s.dasm.high:
        raise UserError(
            f"the quantile window is reversed: config.dasm.rho={s.dasm.rho} must stay "
            f"below config.dasm.high={s.dasm.high}"
        )
    if len(s.data.mean) != len(s.data.std) or any(std <= 0 for std in s.data.std):
        raise UserError(
            "config.data.mean and config.data.std need one value per channel, std > 0; "
            "leave both empty to compute them"
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
            f"config.synthetic.factor={s.synthetic.factor} leaves tiles of {tile} px in "
            f"{height}x{width} images; needs at least {SMALLEST_TILE}"
        )
    if s.data.mean and len(s.data.mean) != channels:
        raise UserError(
            f"config.data.mean has {len(s.data.mean)} values, the images have "
            f"{channels} channels"
        )
