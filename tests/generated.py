"""Generated cases: how many of them, and what is said of one that is refused."""

import os

from hypothesis import HealthCheck, settings

from dasm_jax.errors import UserError

# All of them, as `make test-all` does.
EVERYTHING = os.environ.get("ALL_CASES") == "1"
SHARE = 6  # of them is enough to see that nothing broke


def cases(count):
    """That many, the same ones in every run, however slow the machine."""
    return settings(
        max_examples=count if EVERYTHING else count // SHARE,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def result_or_one_line(work):
    """What ``work()`` gives, or None where it is refused, which takes one line."""
    refusal = ""
    try:
        return work()
    except UserError as error:
        refusal = str(error)
    assert refusal.isprintable()
    return None
