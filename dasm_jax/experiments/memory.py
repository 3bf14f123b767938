"""Memory that runs out: said before the start where it can be, with a remedy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from dasm_jax import host_memory
from dasm_jax.device_memory import Need
from dasm_jax.errors import UserError
from dasm_jax.schema import BatchMethodSettings, Settings
from dasm_jax.segment_setup import PROGRAMS

MOST_MAPPINGS = 0.5  # taken, so that what a cell compiles fits into the rest


def make_room_for_programs() -> None:
    """Forget all compiled programs where there is little room for more of them.

    On a CPU every kernel of a program takes three memory mappings, and where there are
    none left XLA ends the process with a segmentation fault. What is asked for again is
    in the compilation cache on disk.
    """
    if host_memory.mappings_taken() > MOST_MAPPINGS:
        PROGRAMS.clear()
        jax.clear_caches()


def what_to_lower(settings: Settings) -> str:
    """The fields that memory follows, the best one first."""
    names, name = ["network.width", "evaluate.recipe.batch"], settings.matcher.name
    if settings.experiment == "analyse":
        return "analyse fewer runs"
    if settings.experiment not in ("evaluate", "recover"):
        names.insert(0, f"matcher.{name}.synthetic_batch")
        if isinstance(settings.matcher.active, BatchMethodSettings):
            names.insert(0, f"matcher.{name}.real_batch")
    return "lower " + " or ".join(f"config.{name}" for name in names)


def check_fits(settings: Settings, need: Need) -> None:
    """Refuse to begin what would run out of memory.

    Raises:
      UserError: it would.
    """
    if not need.fits:
        raise UserError(
            f"the device has too little memory: {need}; {what_to_lower(settings)}"
        )


@contextmanager
def memory_explained(
    settings: Settings, need: Callable[[], Need | None] = lambda: None
) -> Iterator[None]:
    """Say what to lower when the device runs out of memory all the same.

    Args:
      settings: of the run.
      need: gives the estimate, once there is one.

    Raises:
      UserError: it did.
    """
    try:
        yield
    except MemoryError as error:
        said = " ".join(["this machine is out of memory", *str(error).split()])
        raise UserError(f"{said}; {what_to_lower(settings)}") from None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        known = need()
        estimated = f": {known}" if known else ""
        raise UserError(
            f"the device is out of memory{estimated}; {what_to_lower(settings)}"
        ) from None
