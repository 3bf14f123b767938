"""What a field of the settings may hold, beside its type."""

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from dasm_jax import augment
from dasm_jax.errors import UserError

# A function of a field's name and value that raises a UserError.
Check = Callable[[str, Any], None]


def within(low: float, high: float = float("inf")) -> Check:
    """Numbers from ``low`` to ``high``."""
    bound = f"at least {low}" if high == float("inf") else f"in [{low}, {high}]"

    def check(name: str, value: Any) -> None:
        # A whole number may be larger than any float, and is compared all the same.
        if not (value < math.inf and low <= value <= high):
            raise UserError(f"config.{name} must be {bound}, got {value}")

    return check


def one_of(known: Iterable[str]) -> Check:
    """One of the names."""

    def check(name: str, value: Any) -> None:
        if value not in known:
            raise UserError(unknown_name(f"config.{name}={value!r}", value, known))

    return check


def any_value(name: str, value: Any) -> None:
    """Whatever the type allows; whoever reads it says what is wrong."""


def each(check: Check, *, or_none: bool = False) -> Check:
    """Values, no two alike, that pass ``check``; at least one unless ``or_none``."""

    def check_all(name: str, values: Any) -> None:
        if not values and not or_none:
            raise UserError(f"config.{name} must not be empty")
        if len(set(values)) < len(values):
            raise UserError(f"config.{name} must not hold a value twice, got {values}")
        for value in values:
            check(name, value)

    return check_all


def parsed_by(parse: Callable[[str], Any]) -> Check:
    """A text that ``parse`` does not refuse with a ``ValueError``."""

    def check(name: str, value: Any) -> None:
        try:
            parse(value)
        except ValueError as error:
            raise UserError(f"config.{name}: {error}") from None

    return check


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """One line that names what was not understood and what would have been."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"unknown {what}; {hint}known: {', '.join(known)}"


Count = Annotated[int, within(1)]
Seed = Annotated[int, within(0, 2**31 - 1)]
Share = Annotated[float, within(0, 1)]
Rate = Annotated[float, within(0)]
Momentum = Annotated[float, within(0, 0.999)]
Strategy = Annotated[str, parsed_by(augment.parse_strategy)]
