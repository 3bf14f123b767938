"""Files of a table's cells: what they must hold, and depend on."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dasm_jax.errors import UserError
from dasm_jax.files import is_there, read_record
from dasm_jax.records import are_amounts, is_amount, is_text

# What the file of a set must hold, and that of an accuracy.
Checks = dict[str, Callable[[Any], bool]]
COST: Checks = {name: is_amount for name in ("matching_flops", "seconds_making")}
ACCURACY: Checks = {
    **COST,
    "mean": is_amount,
    "std": lambda value: value is None or is_amount(value),  # of a single network
    "networks": are_amounts,
    **{name: is_text for name in ("commit", "date", "device")},
}


def kept_in(
    path: Path, fields: Checks, origin: dict[str, str], say: Callable[[str], None]
) -> dict[str, Any] | None:
    """What a file holds; None where it has to be made, or made again.

    Args:
      path: of the file.
      fields: what it must hold.
      origin: digests of the settings and the data that it must be of.
      say: called with a line where there is one that is not used.

    Raises:
      CannotRead: it may be whole.
      UserError: it is of other images.
    """
    if not is_there(path):
        return None
    content = read_record(path)
    intact = {*fields, *origin} <= {*content}
    if not (intact and all(fits(content[name]) for name, fits in fields.items())):
        say(f"{path.name} is damaged; it is made again")
        return None
    if content["data_hash"] != origin["data_hash"]:
        raise UserError(
            f"{path} is of other images than config.data now names; use another "
            "--workdir"
        )
    if content["settings"] != origin["settings"]:
        say(f"{path.name} is of other settings; it is made again")
        return None
    return content


def spent_on(flops: list[float], seconds: list[float]) -> dict[str, Any]:
    """The ``COST`` of a set, and of each of its segments."""
    return {
        "matching_flops": sum(flops),
        "seconds_making": sum(seconds),
        "matching_flops_of_segments": flops,
        "seconds_making_of_segments": seconds,
    }


def spent_on_segments(facts: dict[str, Any]) -> list[tuple[float, float]] | None:
    """FLOPs and seconds of each segment; None where a file does not say them."""
    flops = facts.get("matching_flops_of_segments")
    seconds = facts.get("seconds_making_of_segments")
    if not isinstance(flops, list) or not isinstance(seconds, list):
        return None
    if not are_amounts(flops + seconds) or len(flops) != len(seconds):
        return None
    return list(zip(flops, seconds))


def digest(identity: dict[str, Any]) -> str:
    """16 hexadecimal digits that differ where plain JSON does."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
