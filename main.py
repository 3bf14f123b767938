"""Distil a dataset: ``python main.py --config=configs/digits.py --workdir=runs/x``."""

import os
import signal
import sys
import traceback
from contextlib import suppress

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    # Until everything is imported Ctrl-C ends the process and no more: an exception of
    # Python's gets lost in callbacks of XLA's, or makes its modules abort.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from dasm_jax.errors import Interrupted, NonFiniteError, UserError, printable


def main(argv: list[str]) -> None:
    """Run the experiment of the config."""
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}; options are --config.key=value"
        )
    if not flags.FLAGS.workdir:
        raise UserError(
            "--workdir is missing; name the folder that the run may write to"
        )
    from dasm_jax.data.cache import default_dir
    from dasm_jax.host_memory import keep_freed_memory

    keep_freed_memory()

    # A program that was compiled once on this machine starts at once the next time. One
    # that a kill or a full disk left torn does not: JAX warns and compiles it at every
    # start, for it writes no file that exists; removing the folder is the remedy. By
    # the environment, so that processes which an experiment starts see it too.
    programs = default_dir() / "xla"
    if _can_write(programs):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    # After the flags, for they take seconds.
    from dasm_jax import hosts, mesh, run, settings

    f = flags.FLAGS
    if not f.distributed and not f.processes:
        mesh.take_cores_for_devices()
    hosts.start(f.coordinator, f.processes, f.process, f.distributed)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        text = run.run(settings.from_config(f.config), f.workdir)
    except BaseException as error:
        if hosts.alone():
            raise
        code = tell(error)
        if code is None:
            with suppress(OSError):
                traceback.print_exc()
                why = "where another process ended before, its message says why"
                print(why, file=sys.stderr)
        # Else the others would wait for this one, and it for them.
        hosts.leave(1 if code is None else code)
    if hosts.is_first():
        show(text)


def parse_flags(argv: list[str]) -> list[str]:
    """Define and parse flags; whatever goes wrong in them is one line."""
    try:
        config_flags.DEFINE_config_file("config", None, "Experiment.")
        flags.DEFINE_string("workdir", None, "Folder for everything a run writes.")
        flags.DEFINE_string("coordinator", None, "Several hosts: host:port of the 1st.")
        flags.DEFINE_integer("processes", None, "How many processes there are.")
        flags.DEFINE_integer("process", None, "Which of them this is, from 0.")
        flags.DEFINE_bool("distributed", False, "Ask the cluster for these three.")
        rest = flags.FLAGS(argv)
        if not isinstance(flags.FLAGS.config, ConfigDict):
            raise UserError(
                "--config must name a file that has a get_config() function, such as "
                "configs/digits.py"
            )
        return rest
    except UserError:
        raise
    except Exception as error:  # a config file is code, and can fail like any
        from dasm_jax import settings

        for argument in argv[1:]:
            if argument.lstrip("-").startswith("config."):
                settings.check_key(argument.lstrip("-").split("=")[0])
        text = str(error).strip()
        if "Traceback" in text:  # of the config file; its last line says what it was
            text = text.splitlines()[-1]
        elif isinstance(error, flags.Error):  # names its flag
            raise UserError(" ".join(text.split())) from None
        raise UserError("--config: " + " ".join(text.split())) from None


def show(text: str) -> None:
    """Print what a run found, which is on disk as well.

    Raises:
      UserError: there is no room for it.
    """
    try:
        print("\n".join(map(printable, text.split("\n"))), flush=True)
    except BrokenPipeError:  # nobody wants to read any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise UserError(
            f"cannot print the results: {error.strerror}; they are in --workdir"
        ) from None


def tell(error: BaseException) -> int | None:
    """Say in one line how a run ended early; the exit code, ``None`` for a bug."""
    if isinstance(error, UserError | NonFiniteError):
        line, code = f"error: {error}", 2
    elif isinstance(error, Interrupted):
        line, code = str(error), 128 + error.signal
    elif isinstance(error, KeyboardInterrupt):  # where there was nothing to keep
        line, code = "stopped by SIGINT; start it again to go on", 130
    else:
        return None
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # Ctrl-C has ended the other end of the pipe, too
        # Else Python would try once more, and exit with 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    return code


def _can_write(folder: os.PathLike) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    # Closed by whoever started this: nobody listens, and their numbers must not become
    # those of a run's files.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    sys.stdout.reconfigure(errors="replace")  # type: ignore[attr-defined]
    try:
        app.run(main, flags_parser=parse_flags)
    except (Exception, KeyboardInterrupt) as error:
        code = tell(error)
        if code is None:
            raise
        sys.exit(code)
