"""What a run leaves behind: its folder, and where its numbers come from."""

import copy
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from dasm_jax import __version__
from dasm_jax.checkpoint import differences
from dasm_jax.errors import CannotRead, UserError
from dasm_jax.files import is_there, locked, read_json, remove_unfinished, write_json
from dasm_jax.records import is_amount
from dasm_jax.schema import PUBLISHED_FACTORS, Settings
from dasm_jax.settings import to_dict
from dasm_jax.source import ADDED

REPORT = "report.html"
# Folders in which a run writes files of its own: not those of other runs, which a
# workdir may hold as well.
WRITTEN_IN = ("", "images", "cells", "sets", "checkpoints")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


@contextmanager
def open_workdir(path: str, settings: Settings) -> Iterator[Path]:
    """Make the folder of a run, or return to it, before any work starts.

    While it is open no other run, in this process or another, can open it.

    Raises:
      UserError: it cannot be written, is in use, or belongs to a run with another
        config.
    """
    workdir = Path(os.path.expanduser(path)).absolute()
    try:
        (workdir / "images").mkdir(parents=True, exist_ok=True)
        for folder in (workdir, workdir / "images"):
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write to --workdir={path}: {error.strerror}") from None
    with locked(workdir / ".lock") as ours:
        if not ours:
            raise UserError(
                f"--workdir={path} is in use by another run; wait for it, or use "
                "another folder"
            )
        _check_owner(workdir, path, settings)
        for name in WRITTEN_IN:
            remove_unfinished(workdir / name)
        yield workdir


def _check_owner(workdir: Path, path: str, settings: Settings) -> None:
    config_file = workdir / "config.json"
    if is_there(config_file):
        try:
            earlier = identity_of(read_json(config_file))
            names = differences(identity(settings), earlier)
        except CannotRead:
            raise
        except (AttributeError, LookupError, TypeError, ValueError):
            raise UserError(
                f"--workdir={path} holds a config.json that cannot be read; use "
                "another folder or remove that file"
            ) from None
        if names:
            raise UserError(
                f"--workdir={path} belongs to a run with another config; it differs "
                f"in {', '.join(names)}; use another folder"
            )


# Groups that only some experiments read, and fields of config.evaluate that only the
# experiment of that name does.
_READERS = {
    "recover": ("recover", "compare"),
    "coreset": ("coreset", "curve", "study"),
    "synthetic": ("distill", "recover", "compare", "coreset", "curve", "study"),
    "matcher": ("distill", "recover", "compare", "coreset", "curve", "study"),
    "dasm": ("distill", "recover", "compare", "coreset", "curve", "study"),
    "ipc": ("distill", "recover", "compare", "coreset"),
    "seed": ("distill", "recover", "compare", "coreset", "evaluate"),
    "measure": ("distill",),
}
_NOT_THE_RESULT = (
    "compare",
    "curve",
    "study",
    "analyse",
    "log",
    "devices",
    "checkpoint",
    "on_nonfinite",
)
_ONLY_EVALUATE = (
    "synthetic",
    "architectures",
    "augmentations",
    "epochs",
    "same_compute",
    "looks",
)


def identity(settings: Settings) -> dict[str, Any]:
    """The part of the settings that a run depends on, as plain JSON."""
    return identity_of(_as_json(settings))


def identity_of(config: dict[str, Any]) -> dict[str, Any]:
    """What a run depends on, of its ``config.json``.

    A table may grow, and matchers that are not run change. Tables are compare, curve,
    study and evaluate: each cell of theirs knows what it depends on, and is used again
    or not by that. On how many devices a run is made changes its last bits only: it may
    be shown, and go on, on a machine that has others. What to do about a number that is
    not finite may be decided when there is one.
    """
    experiment, matcher = config.get("experiment"), config.get("matcher")
    if experiment == "analyse":  # which only reads what others made
        return {"experiment": experiment}
    kept = {
        name: value
        for name, value in config.items()
        if name not in _NOT_THE_RESULT
        and experiment in _READERS.get(name, (experiment,))
    }
    if isinstance(of_evaluation := kept.get("evaluate"), dict):
        # Of a table of sets they may change: sets and networks are added to it.
        kept["evaluate"] = {
            name: value
            for name, value in of_evaluation.items()
            if name not in _ONLY_EVALUATE
        }
        if experiment in ("curve", "study"):  # every cell has a seed of its own
            kept["evaluate"].pop("seed", None)
    if experiment == "distill" and isinstance(matcher, dict):
        name = matcher.get("name")
        kept["matcher"] = {"name": name, name: matcher.get(name)}
    return _as_meant(without_additions(kept))


def _as_meant(config: dict[str, Any]) -> dict[str, Any]:
    """A config in which no value reads as it did when it gave other sets.

    For values that few use, where raising ``source.RESULTS`` would refuse all others.
    """
    if isinstance(dasm := config.get("dasm"), dict):
        if dasm.get("context") == "cumulative":
            dasm["context"] = "cumulative, finished images apart"
        if dasm.get("rescore_every") and dasm.get("polish"):
            dasm["rescore_every"] = f"{dasm['rescore_every']}, in a polish too"
    if isinstance(synthetic := config.get("synthetic"), dict):
        published = PUBLISHED_FACTORS.get(config.get("matcher", {}).get("name"), 1)
        tiled = (synthetic.get("factor") or published) != 1
        if tiled and synthetic.get("init") in ("mix", "kmeans", "uncovered"):
            synthetic["init"] = f"{synthetic['init']}, of nearest pixels"
    return config


def without_additions(config: Any) -> Any:
    """What may be a config, without fields of ``source.ADDED`` that change nothing."""
    config = copy.deepcopy(config)
    for path, as_before in ADDED.items():
        *groups, field = path.split(".")
        group: Any = config
        for name in groups:
            group = group.get(name) if isinstance(group, dict) else None
        if isinstance(group, dict) and group.get(field) == as_before:
            del group[field]
    return config


def claim_workdir(workdir: Path, settings: Settings) -> None:
    """Write ``config.json``: from now on the folder belongs to these settings."""
    write_json(workdir / "config.json", _as_json(settings))


def _as_json(settings: Settings) -> dict[str, Any]:
    return json.loads(json.dumps(to_dict(settings)))


class PhaseClock:
    """Wall seconds per phase of a run, and its memory, over all its processes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._peaks: dict[str, int] = {}  # of earlier processes
        self._running: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to ``name``."""
        self._running[name] = time.perf_counter()
        try:
            yield
        finally:
            self.seconds = self._so_far()
            del self._running[name]

    def peaks(self) -> dict[str, int | None]:
        """The highest bytes so far, named as by ``peak_memory``."""
        peaks = peak_memory()
        for name, earlier in self._peaks.items():
            peaks[name] = max(peaks.get(name) or 0, earlier)
        return peaks

    def record(self) -> dict[str, Any]:
        """What there is to know so far, as plain JSON."""
        return {"wall_seconds": self._so_far(), "peak_memory_bytes": self.peaks()}

    def go_on_from(self, record: dict[str, Any]) -> None:
        """Add what an earlier process spent; what is no amount is left out."""
        for name, spent in _amounts(record.get("wall_seconds")).items():
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
        peaks = _amounts(record.get("peak_memory_bytes")).items()
        self._peaks = {name: int(peak) for name, peak in peaks}

    def _so_far(self) -> dict[str, float]:
        now, spent = time.perf_counter(), dict(self.seconds)
        for name, began in self._running.items():
            spent[name] = spent.get(name, 0.0) + now - began
        return spent


def _amounts(values: Any) -> dict[str, float]:
    if not isinstance(values, dict):
        return {}
    return {name: value for name, value in values.items() if is_amount(value)}


def peak_memory() -> dict[str, int | None]:
    """Peak bytes of the process, and of each device that reports them."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks: dict[str, int | None] = {
        "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    }
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        peaks[str(device)] = stats.get("peak_bytes_in_use")
    return peaks


def highest_peak(peaks: dict[str, int | None]) -> int:
    """Of what ``peak_memory`` gives: the devices' where they tell, else the process's.

    Bytes.
    """
    of_devices = [peak for name, peak in peaks.items() if peak and name != "process"]
    return max(of_devices, default=peaks["process"] or 0)


def manifest(
    data_hash: str,
    phases: dict[str, float],
    peaks: dict[str, int | None] | None = None,
) -> dict[str, Any]:
    """Where the numbers of a run come from; ``peaks`` are this process's by default."""
    return {
        "argv": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_commit": git_commit(),
        "versions": {
            "dasm_jax": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "devices": [f"{d.platform}: {d.device_kind}" for d in jax.devices()],
        "cpu_count": os.cpu_count(),
        "data_hash": data_hash,
        "wall_seconds": {name: round(s, 3) for name, s in phases.items()},
        "peak_memory_bytes": peak_memory() if peaks is None else peaks,
    }


def provenance() -> dict[str, str]:
    """``origin_of`` what this process makes now."""
    return origin_of(manifest("", {}))


def origin_of(manifest: dict[str, Any]) -> dict[str, str]:
    """Short commit, date and device, to stand beside a single number.

    Args:
      manifest: of the run that made it.
    """
    number, dirty, _ = (manifest["git_commit"] or "unknown").partition("+")
    return {
        "commit": number[:7] + ("+dirty" if dirty else ""),
        "date": manifest["date"][:10],
        "device": f"{manifest['cpu_count']} cores, {', '.join(manifest['devices'])}",
    }


def git_commit() -> str | None:
    """Commit of the source tree, '+dirty' where it was changed; None outside git."""

    def git(*arguments):
        return subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+dirty" if git("status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
