"""Arms of a study: what each of them changes in the settings, read from a line."""

import re
from typing import Any, NamedTuple

from dasm_jax import settings as checked
from dasm_jax.checks import unknown_name
from dasm_jax.errors import UserError
from dasm_jax.experiments import sets
from dasm_jax.experiments.cells import FULL
from dasm_jax.schema import SELECTIONS, Settings

NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,39}", re.ASCII)
# The rest is the same for every arm, or the comparison would not be one.
GROUPS = ("dasm", "matcher", "synthetic")


class Arm(NamedTuple):
    """One way of making a set."""

    name: str
    changes: dict[str, Any] | None  # of settings; None: real images are selected

    @property
    def selected(self) -> bool:
        """Whether it takes real images by the rule of its name."""
        return self.changes is None

    @property
    def text(self) -> str:
        """Its changes, and what its name stands for, but for what goes unsaid."""
        unsaid = sets.UNSAID.get(self.name, {}).items()
        changes = (self.changes or {}).items()
        said = [change for change in changes if change not in unsaid]
        return " ".join(f"{field}={value}" for field, value in said)


def arms_of(settings: Settings) -> dict[str, Arm]:
    """The arms of a study by name, in their order.

    Raises:
      UserError: an arm is not understood; names it and the field.
    """
    arms: dict[str, Arm] = {}
    for line in settings.study.arms:
        arm = parse(line)
        if arm.name in arms:
            raise UserError(f"config.study.arms has two arms named {arm.name!r}")
        arms[arm.name] = arm
    baselines = settings.study.baselines
    for name in baselines:
        if name not in arms:
            raise UserError(unknown_name(f"config.study.baseline={name!r}", name, arms))
    if arms[baselines[0]].selected:
        raise UserError(
            f"config.study.baseline={baselines[0]!r} selects real images, and its "
            "matching FLOPs, which all arms are to equal, are none; name an arm that "
            "is matched first"
        )
    return arms


def parse(line: str) -> Arm:
    """Read ``"name: field=value field=value …"``.

    A name of ``curve.methods`` brings that method's own changes; one that selects real
    images stands alone.

    Raises:
      UserError: it is not understood.
    """
    name, colon, rest = (part.strip() for part in line.partition(":"))
    if not NAME.fullmatch(name) or name.lower() == FULL:
        raise UserError(
            f"config.study.arms: {line!r} must begin with a name of up to 40 letters, "
            f"digits, '_', '-', '+' and '.', other than {FULL!r}, and a colon"
        )
    where = f"arm {name!r} of config.study.arms"
    words = rest.split()
    if name in SELECTIONS and name not in sets.DISTILLED:
        if words:
            raise UserError(
                f"{where} selects real images and changes nothing; remove {rest!r}, or "
                "give it another name"
            )
        return Arm(name, None)
    if not colon and name not in sets.DISTILLED:
        known = [*SELECTIONS, *sets.DISTILLED]
        raise UserError(
            f"{where} needs a colon and its changes; without them "
            + unknown_name("method", name, known)
        )
    changes: dict[str, Any] = {}
    for word in words:
        field, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"{where}: {word!r} must be field=value, without spaces")
        if field.split(".")[0] not in GROUPS:
            raise UserError(
                f"{where}: {field!r} is no field of {', '.join(GROUPS)}; everything "
                "else is the same for all arms"
            )
        if field in changes:
            raise UserError(f"{where}: {field} is there twice")
        try:
            changes[field] = checked.parsed(field, value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return Arm(name, {**sets.DISTILLED.get(name, {}), **changes})


def settings_of(arm: Arm, settings: Settings, ipc: int, seed: int) -> Settings:
    """Settings of the run of an arm that is matched.

    Raises:
      UserError: they do not hold together; names the arm.
    """
    assert arm.changes is not None, f"{arm.name} selects real images"
    try:
        return sets.settings_with(settings, arm.changes, ipc, seed)
    except UserError as error:
        raise UserError(f"arm {arm.name!r} of config.study.arms: {error}") from None
