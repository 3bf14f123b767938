"""Randomness is derived, never carried.

Every random number in the program comes from one seed, a use and a few counters
(segment, outer iteration, inner step, class …). Nothing has to be stored to resume, and
adding a use leaves the numbers of every other one as they were.
"""

import enum

import jax
from jaxtyping import Array, Int, Key


class Use(enum.IntEnum):
    """What a key is for. Append only: the numbers are part of every result."""

    IMAGE_INIT = 0
    REAL_ORDER = 1
    MATCH = 2
    NETWORK_INIT = 3
    TRAJECTORY = 4
    NETWORK_ORDER = 5
    NETWORK_AUGMENT = 6
    SCORE_NETWORK = 7
    POOL = 8
    EVALUATION_NETWORK = 9
    RANDOM_SET = 10
    RECOVERY = 11
    EXPERT = 12
    EXPERT_SPAN = 13
    SELECTION = 14
    MEASURE = 15
    BOOTSTRAP = 16
    REAL_CLUSTERS = 17
    REAL_MEMBERS = 18
    BANK = 19
    IMAGE_SHARE = 20
    COVER = 21
    POOL_TIES = 22


def key_for(
    root: Key[Array, ""], use: Use, *counters: int | Int[Array, ""]
) -> Key[Array, ""]:
    """Derive the key of one use at one moment: a chain of ``fold_in``.

    Args:
      root: key made from the seed.
      use: what the key is for.
      *counters: non-negative integers, Python's or traced ones.
    """
    key = jax.random.fold_in(root, int(use))
    for counter in counters:
        key = jax.random.fold_in(key, counter)
    return key
