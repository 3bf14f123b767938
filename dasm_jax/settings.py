"""From an ``ml_collections`` config to checked, frozen settings.

``ml_collections`` stops at this module.
"""

import ast
import dataclasses
import math
import sys
import typing
from contextlib import suppress
from typing import Annotated, Any

from ml_collections import ConfigDict

from dasm_jax import nets
from dasm_jax.checks import unknown_name
from dasm_jax.errors import UserError
from dasm_jax.schedule import FIXED, FIXED_BY_REAL
from dasm_jax.schema import (
    BatchMethodSettings,
    GradientSettings,
    Settings,
    TrajectoryMatchingSettings,
)

SMALLEST_TILE = 4
LARGEST_WHITENED = 8192  # a square matrix of so many rows is taken apart


def from_config(config: ConfigDict) -> Settings:
    """Check a config and freeze it.

    Raises:
      UserError: an unknown or missing key, a value of the wrong type or out of range.
    """
    settings = _with_width(_build(Settings, config, ""))
    _check_together(settings)
    return settings


def changed(settings: Settings, changes: dict[str, Any]) -> Settings:
    """The same settings with some fields changed, named as ``"dasm.segments"``.

    Raises:
      UserError: the result does not hold together.
    """
    for path, value in changes.items():
        settings = _replace(settings, path.split("."), value)
    settings = _with_width(settings)
    _check_together(settings)
    return settings


def _with_width(settings: Settings) -> Settings:
    """Every result names the width there was, not that it was the published one."""
    width = settings.network.width or nets.published_width(settings.network.name)
    return _replace(settings, ["network", "width"], width)


def _replace(group: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    if rest:
        value = _replace(getattr(group, name), rest, value)
    return dataclasses.replace(group, **{name: value})


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


def parsed(path: str, text: str) -> Any:
    """The value of one field, named as ``"dasm.segments"``, from text.

    Raises:
      UserError: there is no such field, or it cannot hold that value.
    """
    check_key(f"config.{path}")
    hint: Any = Settings
    for name in path.split("."):
        hint = typing.get_type_hints(hint, include_extras=True)[name]
    if dataclasses.is_dataclass(hint):
        raise UserError(f"config.{path} is a group; name one of its fields")
    plain = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    value: Any = text
    if plain is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    elif plain is not str:
        # What is no Python value stays a text, which is not what the field holds.
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = ast.literal_eval(text)
    return _convert(hint, value, path)


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
        item_type = typing.get_args(hint)[0]
        if not isinstance(value, tuple | list):
            raise UserError(
                f"config.{name} must be a tuple of {item_type.__name__}, got {value!r}"
            )
        return tuple(_convert(item_type, item, name) for item in value)
    if hint is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if type(value) is not hint:
        raise UserError(f"config.{name} must be of type {hint.__name__}, got {value!r}")
    return value


def _check_together(s: Settings) -> None:
    if s.experiment == "analyse":
        return  # other runs are read, and made by settings of their own
    evaluating = s.experiment == "evaluate"  # nothing is matched
    if evaluating:
        _check_evaluation(s)
    else:
        _check_matcher(s)
    if s.checkpoint.resume == "must" and s.experiment != "distill":
        raise UserError(
            "config.checkpoint.resume='must' is for config.experiment='distill'; "
            f"{s.experiment!r} makes what is missing with 'auto'"
        )
    # Tables have sizes of their own, and no more segments than images in any of them.
    if s.ipc < s.dasm.segments and s.experiment == "distill":
        raise UserError(
            f"config.ipc={s.ipc} is smaller than config.dasm.segments="
            f"{s.dasm.segments}: a segment needs at least one image per class; lower "
            "segments, to 1 for the matcher alone"
        )
    if s.data.source == "tfds" and s.data.train_split == s.data.test_split:
        raise UserError(
            f"config.data.test_split={s.data.test_split!r} is the train split too; "
            "test on images that the synthesis has not seen"
        )
    by_share = s.dasm.schedule != "coverage" or s.dasm.pool.startswith("static")
    if by_share and s.dasm.rho >= s.dasm.high:
        raise UserError(
            f"the quantile window is reversed: config.dasm.rho={s.dasm.rho} must stay "
            f"below config.dasm.high={s.dasm.high}"
        )
    by_prefix = s.dasm.budget == "prefix" and s.dasm.segments > 1
    if by_prefix and s.dasm.taper != 1:
        raise UserError(
            f"config.dasm.taper={s.dasm.taper:g} and config.dasm.budget='prefix' both "
            "say what every segment gets; set taper to 1, or budget to 'flops'"
        )
    together = isinstance(s.matcher.active, BatchMethodSettings)
    if by_prefix and together and s.dasm.polish:
        raise UserError(
            f"config.dasm.polish={s.dasm.polish:g} takes its share of what prefixes "
            "have with config.dasm.budget='prefix'; set polish to 0, or budget to "
            "'flops'"
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


def _check_evaluation(s: Settings) -> None:
    e = s.evaluate
    if not any(part.strip() for part in e.synthetic.split(",")):
        raise UserError(
            "config.evaluate.synthetic is empty; name the sets to evaluate: "
            "npz files or folders of them, workdirs, or folders of images, with commas "
            "between"
        )
    if e.same_compute and not e.epochs:
        raise UserError(
            "config.evaluate.same_compute divides epochs by f², and "
            "config.evaluate.epochs=0 asks for steps; set epochs, or same_compute to "
            "False"
        )


def _check_matcher(s: Settings) -> None:
    m, name = s.matcher.active, f"config.matcher.{s.matcher.name}"
    if s.network.norm == "batch":
        raise UserError(
            "config.network.norm='batch' cannot be matched on: batches of one class "
            "would be normalised by that class's own statistics, and running "
            "statistics are not part of a gradient; use 'instance'"
        )
    if (
        isinstance(m, GradientSettings)
        and m.layers == "conv"
        and s.network.name == "mlp"
    ):
        raise UserError(
            f"{name}.layers='conv' matches nothing: config.network.name='mlp' has no "
            "convolution; use 'kernels' or 'all'"
        )
    if m.image.class_turns and m.image.rule == "inputs":
        raise UserError(
            f"{name}.image.class_turns belongs to {name}.image.rule='idc'; set it to "
            "False for rule='inputs'"
        )
    if isinstance(m, BatchMethodSettings):
        _check_batches(s, m, name)
    if not isinstance(m, TrajectoryMatchingSettings):
        return
    if m.max_start + m.expert_epochs > m.epochs:
        raise UserError(
            f"too few expert epochs for the window: {name}.epochs={m.epochs} is less "
            f"than {name}.max_start={m.max_start} + {name}.expert_epochs="
            f"{m.expert_epochs}; raise the first or lower the others"
        )
    if m.recipe.lr == 0:
        raise UserError(
            f"{name}.recipe.lr must be above 0: experts that stand still give no way "
            "to follow"
        )
    if s.dasm.rescore_every:
        raise UserError(
            "config.dasm.rescore_every must be 0 with trajectory matching: experts are "
            "trained once, on the segment's first pool"
        )


def _check_batches(s: Settings, m: BatchMethodSettings, name: str) -> None:
    bank = m.trajectory.bank
    if bank and m.needs_segment_networks:
        raise UserError(
            f"{name}.trajectory.bank={bank} and {name}.trajectory.start='segments' "
            "both say where networks start; set bank to 0, or start to 'random'"
        )
    if m.trajectory.perturb and not bank:
        raise UserError(
            f"{name}.trajectory.perturb={m.trajectory.perturb} moves the networks of a "
            f"bank, and {name}.trajectory.bank=0; set both, or neither"
        )
    if m.batches == "kmeans" and s.dasm.target == "class":
        raise UserError(
            f"{name}.batches='kmeans' has clusters of the pool, and config.dasm.target="
            "'class' matches all of a class; use batches='shuffled' or target='pool'"
        )
    if s.dasm.target == "class" and m.trajectory.data == "pool":
        raise UserError(
            f"{name}.trajectory.data='pool' trains networks on the pool, which with "
            "config.dasm.target='class' only says where segments start; use "
            "data='all' or target='pool'"
        )
    if s.dasm.target == "class" and s.dasm.rescore_every:
        raise UserError(
            "config.dasm.rescore_every must be 0 with config.dasm.target='class': the "
            "pool only says where a segment starts"
        )
    fixed = s.dasm.pool in FIXED or (s.dasm.pool, s.dasm.scored_by) == FIXED_BY_REAL
    if s.dasm.rescore_every and fixed and not m.needs_segment_networks:
        raise UserError(
            "config.dasm.rescore_every must be 0 with "
            f"config.dasm.pool={s.dasm.pool!r}: no segment changes that pool"
        )


def check_against_data(
    s: Settings, class_counts: list[int], image_shape: tuple[int, int, int]
) -> None:
    """Check what only the loaded dataset can tell.

    Raises:
      UserError: more images per class than the smallest class has, tiles under 4 px,
        images too large to whiten, or statistics of another number of channels.
    """
    smallest = min(class_counts)
    made_here = s.experiment != "evaluate"
    if made_here and s.ipc > smallest:
        raise UserError(
            f"config.ipc={s.ipc} is larger than the smallest class ({smallest} images)"
        )
    height, width, channels = image_shape
    tile = -(-min(height, width) // s.factor)
    if made_here and tile < SMALLEST_TILE:
        raise UserError(
            f"config.synthetic.factor={s.factor} leaves tiles of {tile} px "
            f"in {height}x{width} images; at least {SMALLEST_TILE} px are needed"
        )
    values = height * width * channels
    if s.data.zca and values > LARGEST_WHITENED:
        raise UserError(
            f"config.data.zca is for images of up to {LARGEST_WHITENED:,} values, not "
            f"{values:,}; raise config.data.downsample or set it to False"
        )
    if s.data.mean and len(s.data.mean) != channels:
        raise UserError(
            f"config.data.mean has {len(s.data.mean)} values, the images have "
            f"{channels} channels"
        )
