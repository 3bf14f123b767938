"""Distil a dataset: ``python main.py --config=configs/digits.py --workdir=runs/x``."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from dasm_jax.errors import NonFiniteError, UserError

_CONFIG = config_flags.DEFINE_config_file("config", "configs/digits.py", "Experiment.")
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
    from dasm_jax import run, settings  # after the flags: importing JAX takes seconds

    print(run.run(settings.from_config(_CONFIG.value), _WORKDIR.value))


def parse_flags(argv: list[str]) -> list[str]:
    """Parse flags, turning what absl and ml_collections raise into ``UserError``."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as e:
        raise UserError(" ".join(str(e).split())) from None


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    try:
        app.run(main, flags_parser=parse_flags)
    except (UserError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
