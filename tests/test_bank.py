"""A bank of networks trained on real images, from which matching starts, perturbed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import sampling, supply, training
from dasm_jax.dasm import run_dasm
from dasm_jax.errors import UserError
from dasm_jax.keys import Use, key_for
from dasm_jax.plan import plan_segments
from dasm_jax.pools import Pool
from dasm_jax.recipes import recipe_from
from dasm_jax.supply import make_supplier
from tests.small import slow_but, small_problem, small_results

ROOT = jax.random.key(0)
BANK = {
    "network__depth": 1,
    "matcher__name": "dm",
    "matcher__dm__trajectory__bank": 3,
    "matcher__dm__trajectory__bank_epochs": 1,
    "matcher__dm__trajectory__recipe__batch": 20,
    "matcher__dm__trajectory__perturb": 0.5,
}


def filters(params):
    """Every filter of every kernel, as a row."""
    leaves = [x for x in jax.tree.leaves(params) if x.ndim > 1]
    return [np.asarray(x).reshape(-1, x.shape[-1]).T for x in leaves]


def test_a_perturbation_is_as_long_as_the_filter_it_moves():
    params = {
        "kernel": jax.random.normal(jax.random.key(1), (3, 3, 2, 5))
        .at[..., 0]
        .set(0.0),
        "dense": jax.random.normal(jax.random.key(2), (40, 7)),
        "bias": jnp.arange(5.0),
    }
    moved = supply.perturb(jax.random.key(3), params, 0.3)
    np.testing.assert_array_equal(moved["bias"], params["bias"])
    ways = []
    for before, after in zip(filters(params), filters(moved), strict=True):
        ours = np.linalg.norm(after - before, axis=1)
        np.testing.assert_allclose(
            ours, 0.3 * np.linalg.norm(before, axis=1), rtol=1e-4
        )
        ways.append(after - before)
    dense, kernel = ways
    assert not kernel[0].any()  # a filter of zeros stays
    assert len(np.unique(np.sign(dense))) == 2
    other = supply.perturb(jax.random.key(4), params, 0.3)
    assert not np.array_equal(other["dense"], moved["dense"])


def literal_bank(problem):
    """One epoch of each network on all real images, step by step."""
    t, count = problem.settings.matcher.dm.trajectory, 80
    recipe = recipe_from(t.recipe)
    step = jax.jit(
        training.make_train_step(problem.network, recipe, problem.statistics)
    )
    table, networks = sampling.prefix_table(count, count), []
    for number in range(t.bank):
        key = key_for(ROOT, Use.EXPERT, 0, number)
        state = training.start_training(
            problem.network.init(key_for(key, Use.NETWORK_INIT)),
            recipe,
            sampling.start_sampler(table),
        )
        for _ in range(count // t.recipe.batch):
            state, _ = step(key, state, problem.real, table)
        networks.append(state.params)
    return networks


def supply_of(problem, folder=None, on_expert=lambda segment, done: None):
    plan = plan_segments(problem)[0]
    whole = Pool(problem.class_indices, None, [], 0.0)
    return make_supplier(problem, ROOT, folder, on_expert)(plan, whole)


def test_an_iteration_starts_from_a_network_of_the_bank_perturbed():
    problem = small_problem(**BANK)
    networks, given = literal_bank(problem), supply_of(problem).given
    taken = []
    for outer in range(6):
        ours = filters(given(outer))
        gaps = []
        for network in networks:
            theirs = filters(network)
            moved = np.concatenate(
                [np.linalg.norm(a - b, axis=1) for a, b in zip(ours, theirs)]
            )
            norms = np.concatenate([np.linalg.norm(b, axis=1) for b in theirs])
            gaps.append(np.abs(moved / norms - 0.5).max())
        assert min(gaps) < 1e-3  # half as long as what it moves, every time
        taken.append(int(np.argmin(gaps)))
    assert len(set(taken)) > 1
    plain = supply_of(small_problem(**BANK | {"matcher__dm__trajectory__perturb": 0.0}))
    for outer, number in enumerate(taken):
        for a, b in zip(
            jax.tree.leaves(plain.given(outer)),
            jax.tree.leaves(networks[number]),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_bank_is_trained_once_and_kept(tmp_path, monkeypatch):
    problem, done = small_problem(**BANK), []
    results = run_dasm(
        problem,
        experts_folder=tmp_path,
        on_expert=lambda *news: done.append(news),
    )
    assert done == [(0, 1), (0, 2), (0, 3)]
    assert len(list((tmp_path / "bank").glob("segment0_expert*"))) == 3

    def untrained(*arguments):
        def train(*more):
            raise AssertionError("trained again")

        return train

    monkeypatch.setattr(supply.experts, "make_expert_trainer", untrained)
    again = run_dasm(problem, experts_folder=tmp_path)
    for a, b in zip(again, results, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
    monkeypatch.undo()
    in_memory = run_dasm(problem)
    for a, b in zip(in_memory, results, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)


@pytest.mark.parametrize("name", slow_but(["idc", "dsa", "dm"], "idc"))
def test_every_kind_of_network_may_start_there(name):
    plain = {"network__depth": 1, "matcher__name": name}
    bank = {
        f"matcher__{name}__trajectory__{field}": 1 for field in ("bank", "bank_epochs")
    }
    ours = run_dasm(small_problem(**plain, **bank))
    for a, b in zip(ours, small_results(**plain), strict=True):
        assert np.isfinite(a.pixels).all()
        assert not np.array_equal(a.pixels, b.pixels)


def test_a_bank_that_diverges_names_its_rate():
    problem = small_problem(**BANK, matcher__dm__trajectory__recipe__lr=1e30)
    with pytest.raises(
        UserError, match=r"of the bank diverged in epoch 1; lower "
    ) as e:
        supply_of(problem)
    assert "config.matcher.dm.trajectory.recipe.lr=1e+30" in str(e.value)
