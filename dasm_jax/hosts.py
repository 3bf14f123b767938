"""Several hosts: processes of one program, the first of which alone writes.

All of them compute the same, each on its share, and must therefore decide the same:
they start from the same files, those in the first one's folder.
"""

import os
import socket
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from dasm_jax.errors import Interrupted, NonFiniteError, SameForAll, UserError
from dasm_jax.schema import (
    BatchMethodSettings,
    Settings,
    TrajectoryMatchingSettings,
)

CHUNK = 2**26  # bytes that are sent at once
# All that a run of several processes reads in its workdir, and where it draws;
# a user may have put other things there, other runs among them.
READ = (
    "summary.json",
    "metrics.jsonl",
    "plans.json",
    "images",
    "cells",
    "sets",
    "runs",
    "checkpoints",
    "experts",
)
# Folders that may lie on another disk.
MAY_BE_LINKS = ("checkpoints", "experts")
TIMEOUT = 300  # s until all processes have to be there


def start(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    detect: bool,
    timeout: int = TIMEOUT,
) -> None:
    """Join the other processes, before any device is touched; alone, do nothing.

    Args:
      coordinator: host:port of the first process, the same for all.
      processes: how many there are.
      process: which of them this is, from 0.
      detect: ask the cluster for all three.
      timeout: seconds to wait for the others.

    Raises:
      UserError: the flags do not go together, or the others cannot be reached.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and not detect:
        return
    if detect and len(missing) < len(given):
        raise UserError(
            "--distributed asks the cluster; leave out --coordinator, --processes and "
            "--process, or --distributed"
        )
    if not detect:
        if missing:
            raise UserError(
                "--coordinator, --processes and --process belong together; "
                + " and ".join(f"--{name}" for name in missing)
                + (" is missing" if len(missing) == 1 else " are missing")
            )
        _check(str(coordinator), int(processes or 0), int(process or 0))
        if process:
            _wait_for(str(coordinator), timeout)
    # It would take SIGTERM for itself, and a run would not stop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator, processes, process, initialization_timeout=timeout
        )
    except (RuntimeError, ValueError) as error:
        flag = "--distributed" if detect else f"--coordinator={coordinator}"
        reason = " ".join(str(error).split())
        raise UserError(f"{flag}: the processes do not meet: {reason}") from None


def _check(coordinator: str, processes: int, process: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator={coordinator} must be host:port")
    if processes < 1:
        raise UserError(f"--processes={processes} must be at least 1")
    if not 0 <= process < processes:
        raise UserError(
            f"--process={process} must be from 0 to {processes - 1}, for there are "
            f"--processes={processes}"
        )


def _wait_for(coordinator: str, timeout: float) -> None:
    """Wait until the first process listens: JAX would abort where it does not."""
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, int(port)), timeout).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > until or isinstance(error, OverflowError):
                raise UserError(
                    f"--coordinator={coordinator} cannot be reached: {error}"
                ) from None
            time.sleep(0.2)


def alone() -> bool:
    """Whether there are no other processes."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_first() -> bool:
    """Whether this process writes and prints; asks no device where it is alone."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def leave(code: int) -> NoReturn:
    """End this process; others that wait for it are told, and end too."""
    if jax.distributed.is_initialized():
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)  # sys.exit would wait minutes for them, and they for this one
    sys.exit(code)


def agree(number: int) -> int:
    """The largest of the numbers of all processes, which wait for each other."""
    if alone():
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def check(settings: Settings) -> None:
    """Refuse what only a single process can do, of an experiment or of one run of it.

    Raises:
      UserError: the settings ask for it.
    """
    if alone():
        return
    if settings.experiment == "compare":
        raise UserError(
            "config.experiment='compare' starts a process for every cell; leave out "
            "--coordinator, --processes, --process and --distributed"
        )
    m, name = settings.matcher.active, settings.matcher.name
    if isinstance(m, TrajectoryMatchingSettings) and m.folder:
        raise UserError(
            f"config.matcher.{name}.folder cannot be shared by several processes; "
            "leave it empty, and experts are kept in --workdir"
        )
    if m.stores_networks and settings.on_nonfinite == "rollback":
        # They are read again, and only the first process has them.
        what = f"config.matcher.name={name!r}"
        if isinstance(m, BatchMethodSettings):
            what = f"config.matcher.{name}.trajectory.bank={m.trajectory.bank}"
        raise UserError(
            f"config.on_nonfinite='rollback' does not go with several processes and "
            f"{what}; use 'stop'"
        )


@contextmanager
def folder(open_folder: AbstractContextManager[Path]) -> Iterator[Path]:
    """The folder of a run for this process.

    The first one enters ``open_folder``; the others get a copy of what a run reads, in
    a temporary folder: they find what it finds, and what they write is removed in the
    end. None leaves before all are done, or it would be missed.

    Raises:
      UserError: the first process could not open or send it, or this one could not
        store the copy.
    """
    if alone():
        with open_folder as workdir:
            yield workdir
        return
    try:
        with _sent(open_folder) if is_first() else _copied() as workdir:
            yield workdir
    except (Interrupted, NonFiniteError, SameForAll):  # which come to all alike
        agree(0)
        raise
    agree(0)


@contextmanager
def _sent(open_folder: AbstractContextManager[Path]) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            workdir = stack.enter_context(open_folder)
            with _in_one_line("--workdir cannot be sent to the other processes"):
                packed = _pack(workdir)
        except BaseException:
            _send(None)
            raise
        with packed, _in_one_line("--workdir cannot be sent to the other processes"):
            _send(packed)
        yield workdir


@contextmanager
def _copied() -> Iterator[Path]:
    with ExitStack() as stack:
        with _in_one_line("no copy of --workdir can be stored (TMPDIR says where)"):
            copy = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            path = Path(stack.enter_context(copy))
            _receive(path)
        yield path


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{what}: {error}") from None


def _pack(workdir: Path) -> IO[bytes]:
    """An archive, open and at its end, of what a run reads.

    Raises:
      UserError: it holds a link or a device, which only the first process would follow.
      OSError, TarError: it cannot be read, or there is no room for the archive.
    """
    packed = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name in READ:
                path = workdir / name
                if name in MAY_BE_LINKS and path.is_dir():
                    path = path.resolve()
                if os.path.lexists(path):
                    archive.add(path, arcname=name, filter=_no_link)
    except BaseException:
        packed.close()
        raise
    return packed


def _no_link(member: tarfile.TarInfo) -> tarfile.TarInfo:
    if member.isreg() or member.isdir() or member.islnk():  # the last is a hard one
        return member
    raise UserError(
        f"{member.name} in --workdir is a link, or neither file nor folder, and the "
        "other processes would not find what the first one does; put what it leads to "
        "in its place"
    )


def _send(file: IO[bytes] | None) -> None:
    size = file.seek(0, os.SEEK_END) if file else 0
    multihost_utils.broadcast_one_to_all(np.int32(-(-size // CHUNK)))
    if file is None:
        return
    file.seek(0)
    while chunk := file.read(CHUNK):
        multihost_utils.broadcast_one_to_all(np.int32(len(chunk)))
        multihost_utils.broadcast_one_to_all(np.frombuffer(chunk, np.uint8))


def _receive(folder: Path) -> None:
    """Unpack what ``_send`` sends.

    Raises:
      UserError: that is nothing.
      OSError, TarError: it cannot be stored.
    """
    with tempfile.TemporaryFile(dir=folder) as packed:
        for _ in range(int(multihost_utils.broadcast_one_to_all(np.int32(0)))):
            size = int(multihost_utils.broadcast_one_to_all(np.int32(0)))
            chunk = multihost_utils.broadcast_one_to_all(np.zeros(size, np.uint8))
            packed.write(np.asarray(chunk).tobytes())
        if not packed.tell():
            raise UserError("the first process could not open --workdir; it says why")
        packed.seek(0)
        with tarfile.open(fileobj=packed) as archive:
            archive.extractall(folder, filter="data")
