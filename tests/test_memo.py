"""What is made once in a process."""

import numpy as np

from dasm_jax.memo import Shelf, remembered


def test_equal_arguments_give_the_same_thing():
    made = []

    @remembered
    def make(name, *, size=1):
        made.append((name, size))
        return [name, size]

    assert make("a") is make("a")
    assert make("a") is not make("a", size=2)
    assert made == [("a", 1), ("a", 2)]


def test_what_has_no_hash_is_made_anew():
    make = remembered(lambda array: [array.sum()])
    array = np.ones(2)
    assert make(array) is not make(array)


def test_what_is_longest_out_of_use_gives_way():
    made, shelf = [], Shelf(most=2)

    def find(name):
        return shelf.find((name,), lambda: made.append(name) or name)

    for name in "abacab":  # c takes the place of b
        assert find(name) == name
    assert "".join(made) == "abcb"
    shelf.clear()
    find("a")
    assert "".join(made) == "abcba"
