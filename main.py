"""Distil a dataset: ``python main.py --config=configs/digits.py --workdir=runs/x``."""

import sys

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from dasm_jax.errors import NonFiniteError, UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything a run writes.")


def main(argv: list[str]) -> None:
    """Run the experiment of the config; exit code 2 for a mistake of the user's."""
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}; options are --config.key=value"
        )
    if not _WORKDIR.value:
        raise UserError(
            "--workdir is missing; name the folder that the run may write to"
        )
    import jax  # after the flags: it takes seconds

    from dasm_jax import run, settings
    from dasm_jax.data.cache import default_dir

    # A program that was compiled once on this machine starts at once the next time.
    jax.config.update("jax_compilation_cache_dir", str(default_dir() / "xla"))
    print(run.run(settings.from_config(_CONFIG.value), _WORKDIR.value))


def parse_flags(argv: list[str]) -> list[str]:
    """Parse flags; whatever absl, ml_collections or a config raises is one line."""
    try:
        rest = flags.FLAGS(argv)
        if not isinstance(_CONFIG.value, ConfigDict):
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
        text = " ".join(str(error).split())
        raise UserError(f"{type(error).__name__}: {text}") from None


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    try:
        app.run(main, flags_parser=parse_flags)
    except (UserError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
