"""Results that are kept by everything they depend on, and found again by it."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from dasm_jax.files import is_there, make_folder, read_record, write_json

# Python's whole numbers have no end, but what is done with them has.
LARGEST_AMOUNT = 2.0**63
_log = logging.getLogger(__name__)


def find(
    folder: Path, identity: dict[str, Any], networks: int
) -> dict[str, Any] | None:
    """The result of this identity, or None where there is no intact one.

    Args:
      folder: where ``keep`` put it.
      identity: plain JSON.
      networks: how many accuracies it must have.

    Raises:
      CannotRead: there may be one, and it cannot be read now.
    """
    path = folder / _name(identity)
    if not is_there(path):
        return None
    content = read_record(path)
    if content.get("identity") == _plain(identity):
        result = content.get("result")
        if _is_result(result, networks):
            return result
    _log.warning("%s is damaged; it is ignored and written anew", path)
    return None


def keep(folder: Path, identity: dict[str, Any], result: dict[str, Any]) -> None:
    """Write a result, whole or not at all.

    Args:
      folder: made where it does not exist.
      identity: plain JSON.
      result: plain JSON with the accuracies ``networks`` and ``best``, and the
        costs ``wall_seconds`` and ``peak_bytes``.

    Raises:
      UserError: it cannot be written.
    """
    make_folder(folder)
    content = {"identity": _plain(identity), "result": result}
    write_json(folder / _name(identity), content)


def _plain(identity: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(identity))


def _name(identity: dict[str, Any]) -> str:
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32] + ".json"


def _is_result(result: Any, networks: int) -> bool:
    if not isinstance(result, dict):
        return False
    for name in ("networks", "best"):
        values = result.get(name)
        if not isinstance(values, list) or len(values) != networks:
            return False
        if not all(type(v) in (int, float) and 0 <= v <= 1 for v in values):
            return False
    return all(is_amount(result.get(name)) for name in ("wall_seconds", "peak_bytes"))


def is_amount(value: Any) -> bool:
    """Whether a value from a file is a number that can be a cost or an accuracy."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 <= value < LARGEST_AMOUNT


def are_amounts(values: Any) -> bool:
    """Whether it is a list of such numbers, at least one."""
    return isinstance(values, list) and bool(values) and all(map(is_amount, values))


def is_text(value: Any) -> bool:
    """Whether a value from a file is text."""
    return isinstance(value, str)
