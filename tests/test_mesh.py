"""Several devices: the same set on any number of them, and work that is shared out."""

from functools import cache, partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import ours
from dasm_jax import dasm, distill, evaluate, mesh, sampling, trainers
from dasm_jax import problem as problem_module
from dasm_jax.errors import UserError
from dasm_jax.evaluate import networks_at_once
from dasm_jax.loops import Loop
from dasm_jax.problem import make_problem, network_for
from dasm_jax.recipes import recipe_from
from dasm_jax.settings import from_config
from dasm_jax.types import ArrayDataset
from dasm_jax.workdir import claim_workdir, open_workdir
from tests.small import changes_to_defaults, slow_but, small_config, small_dataset

# Sums over a batch are taken in another order: a few float32 roundings (6e-8 of values
# around 1) per step, of which there are four per segment. Seen are 3e-7; a wrong class,
# image or draw moves pixels by 1e-2.
ROUNDING = 5e-6


@cache
def problem_on(devices, n_classes=3, rolled=False, talks=False, **changes):
    """Three classes divide by none of 2, 4 and 8 devices.

    ``rolled`` loops, and devices that compute jointly, are those of an accelerator.
    """
    changes = {"matcher__idc__loop__niter": 2, "network__depth": 1} | changes
    settings = from_config(small_config(devices=devices, **changes))
    with mock.patch.object(problem_module, "make_mesh", partial(mesh_of, talks)):
        problem = make_problem(settings, small_dataset(n_classes))
    if rolled:
        loop = problem.loop._replace(rolled=True, steps_per_call=2)
        problem = problem._replace(loop=loop)
    return problem


def mesh_of(talks, devices):
    made = mesh.make_mesh(devices)
    return made and made._replace(talks=talks)


def make_set(devices, **changes):
    results = dasm.run_dasm(problem_on(devices, **changes))
    return np.concatenate([result.pixels for result in results], axis=1)


made = cache(make_set)


# --- the set --------------------------------------------------------------------------


@pytest.mark.parametrize("devices", slow_but([2, 4, 8], 2))
def test_any_number_of_devices_makes_the_same_set(devices):
    np.testing.assert_allclose(made(devices), made(1), atol=ROUNDING, rtol=0)
    np.testing.assert_array_equal(make_set(devices), made(devices))


def test_two_devices_make_the_set_of_the_defaults():
    growing = {**changes_to_defaults(), "matcher__idc__loop__niter": 4}
    ours, alone = made(2, **growing), made(1, **growing)
    np.testing.assert_allclose(ours, alone, atol=ROUNDING, rtol=0)
    assert np.abs(alone - made(1)).max() > 100 * ROUNDING


def test_the_pixels_have_moved():
    still = made(1, matcher__idc__image__lr=0.0)
    assert np.abs(made(1) - still).max() > 100 * ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_rolled_loops_on_devices_that_talk(devices):
    of_both = {"rolled": True, "talks": True, "dasm__segments": 1}
    rolled = make_set(devices, **of_both)
    alone = made(1, dasm__segments=1)
    np.testing.assert_allclose(rolled, alone, atol=ROUNDING, rtol=0)
    np.testing.assert_array_equal(make_set(devices, **of_both), rolled)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "talks"),
    [("dm", False), ("mtt", False), ("cafe", True), ("dsa", True)],
)
def test_every_kind_of_objective(name, talks):
    one = {"matcher__name": name, "dasm__segments": 1}  # no networks that score
    ours, alone = made(4, talks=talks, **one), made(1, **one)
    # Cosine distances and trajectories amplify rounding more than IDC's.
    np.testing.assert_allclose(ours, alone, atol=1e-4, rtol=0)


# --- who does what --------------------------------------------------------------------


@cache
def update_on(devices, rolled=False, talks=False):
    # Images large enough that convolutions are most of the work.
    problem = problem_on(
        devices, 4, rolled, talks, matcher__idc__real_batch=32, network__width=16
    )
    prepared = ours.prepare(problem)
    example = prepared.example
    return distill.compile_update(prepared.step, 1, prepared.loop, example), example


TRAVEL = ("all-reduce", "all-gather", "all-to-all", "collective-permute")


def flops(program):
    return program.cost_analysis()["flops"]


@pytest.mark.slow
def test_a_device_matches_one_class_while_others_match_theirs():
    several, alone = (update_on(n)[0].programs["gradients"] for n in (4, 1))
    # Four classes at once, and each device computes no more than one of them.
    assert flops(several) == pytest.approx(flops(alone), rel=0.05)
    assert len(several.out_info[0].shape) == 1
    assert (several.out_info[0].shape, alone.out_info[0].shape) == ((4,), (1,))


@pytest.mark.slow
def test_matching_all_classes_in_one_program_is_shared_out():
    def compiled(devices):
        problem = problem_on(devices, 4, talks=True)
        prepared = ours.prepare(problem)
        match = partial(distill.match, prepared.step, problem.loop)
        return mesh.jit(problem.loop.mesh, match).lower(*prepared.example).compile()

    several, alone = compiled(4), compiled(1)
    assert flops(several) < 0.4 * flops(alone)
    assert "all-gather" in several.as_text()


def test_the_network_step_is_shared_out_and_only_gradients_travel():
    several = update_on(4, talks=True)[0].programs["train"]
    alone = update_on(1)[0].programs["train"]
    text = several.as_text()
    assert "all-reduce" in text
    assert "all-reduce" not in alone.as_text()
    assert not any(word in text for word in TRAVEL[1:])
    # Drawing and augmenting the batch is done by all.
    assert flops(several) < 0.5 * flops(alone)


def test_on_a_cpu_no_program_waits_for_another_device():
    programs = update_on(4)[0].programs
    assert set(programs) == {"look", "gradients", "move", "draw", "network", "train"}
    for program in programs.values():
        assert not any(word in program.as_text() for word in TRAVEL)


@pytest.mark.parametrize(
    ("rolled", "talks"),
    [
        (True, True),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_what_an_update_returns_is_whole(rolled, talks):
    update, (key, state, data) = update_on(4, rolled, talks)
    state = jax.tree.map(jnp.array, state)
    results = update.run(key, state, data)
    for leaf in jax.tree.leaves(results):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == (4 if talks else 1)


# --- networks -------------------------------------------------------------------------


def trained(devices, seeds, norm="instance", batch=16, steps=8, talks=True):
    """Parameters of networks; of a single one where ``seeds`` is a number."""
    p = problem_on(devices, talks=talks, evaluate__recipe__cutmix=1.0)
    recipe = recipe_from(p.settings.evaluate.recipe, steps)._replace(batch=batch)
    network = network_for(p, f"convnet/{norm}")
    train = trainers.make_trainer(network, recipe, p.statistics, p.loop)
    key = (
        jax.vmap(jax.random.key)(jnp.array(seeds))
        if isinstance(seeds, tuple)
        else (jax.random.key(seeds))
    )
    return jax.device_get(train(key, *evaluate.random_set(p, 8, 30))[-1])


def assert_close(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one, other
    )


@pytest.mark.parametrize("norm", slow_but(["instance", "batch"], "batch"))
@pytest.mark.parametrize("devices", slow_but([2, 4], 2))
def test_a_batch_that_is_split_trains_the_same_network(devices, norm):
    assert_close(trained(devices, 5, norm), trained(1, 5, norm))


@pytest.mark.slow
def test_a_batch_that_does_not_divide_trains_the_same_network():
    assert_close(trained(4, 5, batch=15), trained(1, 5, batch=15))


@pytest.mark.parametrize("talks", [False, True])
@pytest.mark.parametrize("seeds", slow_but([(5, 6, 7), (5, 6, 7, 8, 9)], (5, 6, 7)))
def test_networks_are_shared_out_and_what_fills_up_is_dropped(seeds, talks):
    together = trained(4, seeds, talks=talks)
    for n, seed in enumerate(seeds):
        assert_close(jax.tree.map(lambda x, n=n: x[n], together), trained(1, seed))
    assert all(len(leaf) == len(seeds) for leaf in jax.tree.leaves(together))


@pytest.mark.slow
def test_networks_that_are_shared_out_say_nothing_to_each_other():
    p = problem_on(4)
    recipe = recipe_from(p.settings.evaluate.recipe, 4)
    given = (p.network, recipe, p.statistics, p.loop)
    advance = trainers.make_advance(*given, several=True)
    data, table = evaluate.random_set(p, 8, 30)
    keys = jax.random.split(jax.random.key(0), 4)
    start = lambda key: trainers.start_training(  # noqa: E731
        p.network.init(key), recipe, sampling.start_sampler(table)
    )
    state = trainers.share_out(
        p.loop.mesh,
        jax.vmap(start, out_axes=trainers.TOGETHER)(jax.random.split(keys[0], 4)),
        several=True,
    )
    text = advance.lower(keys, state, data, table, 2).compile().as_text()
    assert not any(word in text for word in TRAVEL)


@pytest.mark.slow
def test_accuracies_do_not_depend_on_the_devices():
    def accuracies(devices):
        p = problem_on(devices, evaluate__networks=3, evaluate__steps=25)
        return evaluate.make_evaluator(p)(*evaluate.random_set(p, 8, 30))

    alone, several = accuracies(1), accuracies(2)  # two at once, and one by both
    assert len(set(alone.networks)) > 1
    # One of the 60 test images may fall on the other side.
    assert several.networks == pytest.approx(alone.networks, abs=0.02)
    assert several.networks == accuracies(2).networks


@pytest.mark.parametrize("count", [3, 20, 22])
def test_predictions_are_shared_out(count):
    problem = problem_on(4, talks=True)
    net, statistics = problem.network, problem.statistics
    params = net.init(jax.random.key(3))
    images = small_dataset(3).train.images[:count]

    def predict(of_mesh):
        placed = mesh.place(of_mesh, (params, images))
        predictor = trainers.make_predictor(net.apply, statistics, of_mesh, chunk=9)
        return predictor(*placed)

    np.testing.assert_allclose(
        predict(problem.loop.mesh), predict(None), rtol=1e-5, atol=1e-6
    )


def test_on_cpu_every_device_trains_one_network():
    s = problem_on(1, evaluate__networks=6).settings.evaluate
    assert [networks_at_once(s, "cpu", n) for n in (1, 4, 8)] == [1, 4, 6]
    assert networks_at_once(s, "gpu", 4) == 6


# --- pieces ---------------------------------------------------------------------------


@pytest.mark.parametrize("talks", [False, True])
def test_rows_of_a_shared_program_are_collected(talks):
    m = mesh_of(talks, 4)
    double = mesh.jit_rows(m, lambda rows, whole: 2 * rows + whole[0], 1)
    results = mesh.collect(m, double(np.arange(4), mesh.spread(m, np.arange(1, 3))))
    assert results.tolist() == [1, 3, 5, 7]
    assert len(results.sharding.device_set) == (4 if talks else 1)


def test_the_mesh_that_is_asked_for():
    assert not mesh.make_mesh(4).talks
    assert mesh.make_mesh(1) is None
    assert mesh.count(mesh.make_mesh(0)) == jax.device_count()
    assert mesh.count(mesh.make_mesh(3)) == 3
    with pytest.raises(
        UserError, match=r"config\.devices=99 is more than there are: 8"
    ):
        mesh.make_mesh(99)


@pytest.mark.parametrize("rolled", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 6])
def test_rows_of_a_loop_are_those_of_one_device(rows, rolled):
    offset = jnp.arange(3.0)

    def over(devices):
        keys = jax.random.split(jax.random.key(0), rows)
        loop = Loop(rolled, 1, mesh_of(True, devices))
        body = lambda x, y: {"a": jax.random.uniform(x[0], (3,)) + y, "b": x[1]}  # noqa: E731
        return jax.jit(partial(loop.over, body))((keys, jnp.arange(rows)), offset)

    several, alone = over(4), over(1)
    jax.tree.map(np.testing.assert_array_equal, several, alone)
    assert several["b"].tolist() == list(range(rows))


@pytest.mark.parametrize("put", [mesh.place, mesh.spread, mesh.collect])
@pytest.mark.parametrize("talks", [False, True])
def test_arrays_are_whole_where_they_are_put(put, talks):
    m = mesh_of(talks, 4)
    tree = (np.arange(5), jax.random.key(1), np.int32(3))
    placed = put(m, tree)
    for leaf in jax.tree.leaves(placed):
        assert leaf.sharding.is_fully_replicated
        everywhere = talks or put is mesh.spread
        assert len(leaf.sharding.device_set) == (4 if everywhere else 1)
    np.testing.assert_array_equal(placed[0], tree[0])
    np.testing.assert_array_equal(
        jax.random.key_data(placed[1]), jax.random.key_data(tree[1])
    )


def test_a_batch_is_split_only_where_it_divides():
    m = mesh_of(True, 4)
    for rows, divided in [(8, True), (6, False)]:
        given = ArrayDataset(np.ones((rows, 2), np.float32), np.ones(rows, np.float32))
        split = jax.jit(partial(mesh.split_batch, m))(given)
        for leaf in jax.tree.leaves(split):
            assert (not leaf.sharding.is_fully_replicated) == divided


def test_a_run_may_be_shown_where_there_are_other_devices(tmp_path):
    one, other, another = (
        from_config(small_config(devices=n, seed=seed))
        for n, seed in [(1, 0), (4, 0), (4, 1)]
    )
    with open_workdir(str(tmp_path), one) as folder:
        claim_workdir(folder, one)
    with open_workdir(str(tmp_path), other):
        pass
    opened = open_workdir(str(tmp_path), another)
    with pytest.raises(UserError, match="differs in seed"), opened:
        pass
