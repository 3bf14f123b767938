"""Several hosts: processes of one program, the first of which alone writes.

All of them compute the same, each on its share, and must therefore decide the same:
they start from the same files, those in the first one's folder.
"""

import io
import os
import socket
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from dasm_jax.errors import UserError
from dasm_jax.schema import Settings, TrajectoryMatchingSettings

CHUNK = 2**26  # bytes that are sent at once
# Folders of a run that may lie on another disk; no other link is followed.
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
        sys.stderr.flush()
        os._exit(code)  # sys.exit would wait minutes for them, and they for this one
    sys.exit(code)


def agree(number: int) -> int:
    """The largest of the numbers of all processes, which wait for each other."""
    if alone():
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def check(settings: Settings) -> None:
    """Refuse what only a single process can do.

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
    if (
        isinstance(m, TrajectoryMatchingSettings)
        and settings.on_nonfinite == "rollback"
    ):
        # Experts are read again, and only the first process has them.
        raise UserError(
            f"config.on_nonfinite='rollback' does not go with several processes and "
            f"config.matcher.name={name!r}; use 'stop'"
        )


@contextmanager
def folder(open_folder: AbstractContextManager[Path]) -> Iterator[Path]:
    """The folder of a run for this process.

    The first one enters ``open_folder``; the others get a copy in a temporary folder,
    so that they find what it finds, and what they write is removed in the end.

    Raises:
      UserError: the first process could not open it.
    """
    if alone():
        with open_folder as workdir:
            yield workdir
    elif is_first():
        with ExitStack() as stack:
            try:
                workdir = stack.enter_context(open_folder)
                packed = _pack(workdir)
            except BaseException:
                _send([])
                raise
            _send(packed)
            yield workdir
    else:
        with tempfile.TemporaryDirectory() as copy:
            content = _receive()
            if not content:
                raise UserError("the first process could not open --workdir")
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                archive.extractall(copy, filter="data")
            yield Path(copy)


def _pack(workdir: Path) -> list[bytes]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(workdir.resolve(), arcname=".", filter=_no_link)
        for name in MAY_BE_LINKS:
            path = workdir / name
            if path.is_symlink() and path.is_dir():
                archive.add(path.resolve(), arcname=name, filter=_no_link)
    content = packed.getvalue()
    return [content[i : i + CHUNK] for i in range(0, len(content), CHUNK)]


def _no_link(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return member if member.isreg() or member.isdir() else None


def _send(chunks: list[bytes]) -> None:
    multihost_utils.broadcast_one_to_all(np.int32(len(chunks)))
    for chunk in chunks:
        multihost_utils.broadcast_one_to_all(np.int32(len(chunk)))
        multihost_utils.broadcast_one_to_all(np.frombuffer(chunk, np.uint8))


def _receive() -> bytes:
    chunks = []
    for _ in range(int(multihost_utils.broadcast_one_to_all(np.int32(0)))):
        size = int(multihost_utils.broadcast_one_to_all(np.int32(0)))
        chunk = multihost_utils.broadcast_one_to_all(np.zeros(size, np.uint8))
        chunks.append(np.asarray(chunk).tobytes())
    return b"".join(chunks)
