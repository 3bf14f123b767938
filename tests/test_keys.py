"""No key is used twice, as far as JAX can tell: a key that is derived twice is another.

Here for whole runs; `make test-all` has every test watched like this.
"""

import jax
import pytest
from jax.errors import KeyReuseError

from dasm_jax import augment, coreset, evaluate
from dasm_jax.dasm import run_dasm
from dasm_jax.problem import decode_segments
from dasm_jax.segment_setup import PROGRAMS
from tests.small import slow_but, small_problem

MATCHERS = ("idc", "dc", "dm", "cafe", "mtt")


@pytest.fixture
def watched():
    PROGRAMS.clear()  # what was traced before was not looked at
    with jax.debug_key_reuse(True):
        yield


@pytest.mark.usefixtures("watched")
def test_it_would_be_seen(monkeypatch):
    draw = augment.draw_augmentation

    def twice(key, *arguments):
        jax.random.uniform(key), jax.random.uniform(key)
        return draw(key, *arguments)

    monkeypatch.setattr(augment, "draw_augmentation", twice)
    with pytest.raises(KeyReuseError):
        run_dasm(small_problem(matcher__name="dm"))


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("name", slow_but(MATCHERS, "idc", "dm", "cafe"))
def test_of_a_run(name):
    problem = small_problem(matcher__name=name)
    results = run_dasm(problem)
    data = decode_segments(problem, [result.pixels for result in results], 12)
    evaluate.make_evaluator(problem)(*data)


@pytest.mark.usefixtures("watched")
def test_of_a_selection():
    select = coreset.make_selector(small_problem(), jax.random.key(0))
    for method in ("random", "k_means", "forgetting"):
        select(method, 4)
