"""Sets by the name of their method: which runs make them, and what they hold."""

import itertools

import chex
import jax
import numpy as np
import pytest

from configs.study.base import DATASETS, table
from dasm_jax import coreset, dasm, evaluate
from dasm_jax.experiments import sets
from dasm_jax.experiments.sets import Part, Run, runs_for
from dasm_jax.plan import plan_segments
from dasm_jax.pools import make_pool_maker
from dasm_jax.problem import make_problem
from dasm_jax.schema import SELECTIONS
from dasm_jax.settings import from_config
from tests.small import small_config, small_dataset, small_results


def settings_with(**changes):
    return from_config(small_config(**changes))


@pytest.mark.parametrize(
    ("method", "ipcs", "segments", "expected"),
    [
        ("herding", (10, 1), 5, [Run(1, (1,)), Run(10, (10,))]),
        ("idc", (4, 2), 2, [Run(2, (2,)), Run(4, (4,))]),
        ("dasm", (4, 2), 2, [Run(4, (2, 4))]),
        # IPC 1 ends inside the first segment, and 20 inside the second.
        ("dasm", (50, 1, 20, 10), 5, [Run(1, (1,)), Run(50, (10, 20, 50))]),
        ("dasm", (50, 20), 2, [Run(20, (20,)), Run(50, (50,))]),
        # The first segment takes the remainder: 3 + 2.
        ("dasm", (5, 3, 2), 2, [Run(2, (2,)), Run(5, (3, 5))]),
        ("dasm", (1,), 5, [Run(1, (1,))]),
    ],
)
def test_one_run_of_dasm_gives_all_prefixes(method, ipcs, segments, expected):
    assert runs_for(method, ipcs, segments, polished=False) == expected


def test_what_is_polished_together_is_made_for_every_size():
    made = runs_for("dasm", (4, 2), 2, polished=True)
    assert made == [Run(2, (2,)), Run(4, (4,))]


def test_settings_of_a_run():
    s = settings_with(dasm__segments=3, ipc=6)
    own = sets.settings_for(s, "dasm", 8, 7)
    assert (own.ipc, own.seed, own.evaluate.seed, own.dasm.segments) == (8, 7, 7, 3)
    assert own.experiment == "distill"
    assert sets.settings_for(s, "dasm", 2, 0).dasm.segments == 2
    idc = sets.settings_for(s, "idc", 8, 0)
    assert (idc.dasm.segments, idc.dasm.pool, idc.matcher.name) == (1, "window", "idc")
    static = sets.settings_for(s, "static_filter", 8, 0)
    assert (static.dasm.segments, static.dasm.pool) == (1, "static_filter")
    for one in (own, idc, static):
        assert one.evaluate.recipe == s.evaluate.recipe
        assert one.matcher.active == s.matcher.active


# Everything of ``dasm`` that a base may ask of segments, in three that hold together.
HOSTILE = [
    {"dasm__pool": "static_window", "dasm__rho": 0.0, "dasm__high": 0.5},
    {
        "dasm__pool": "reverse",
        "dasm__rho": 0.0,
        "dasm__high": 0.5,
        "dasm__ceiling": "chance",
        "dasm__taper": 0.5,
        "dasm__context": "cumulative",
        "dasm__rescore_every": 1,
        "dasm__polish": 0.5,
        "dasm__polish_target": "pool",
        "dasm__score": "el2n",
        "matcher__idc__batches": "kmeans",
    },
    {
        "dasm__pool": "disjoint",
        "dasm__scored_by": "real",
        "dasm__target": "class",
        "dasm__budget": "per_segment",
        "dasm__schedule": "coverage",
        "dasm__networks": 3,
        "matcher__name": "dm",
    },
]


@pytest.mark.parametrize("base", HOSTILE)
def test_idc_is_idc_whatever_is_asked_of_segments(base):
    given = {
        **{name: value for name, value in base.items() if "dasm" not in name},
        "network__depth": 1,
        "matcher__idc__augment": "none",
        "matcher__idc__loop__niter": 2,
    }
    plain = settings_with(**given | {"matcher__name": "idc"}, dasm__segments=1)
    own = sets.settings_for(settings_with(**given | base), "idc", plain.ipc, 0)
    problems = [make_problem(s, small_dataset(2)) for s in (plain, own)]
    assert plan_segments(problems[0]) == plan_segments(problems[1])
    (one,), (other,) = map(dasm.run_dasm, problems)
    assert one.pixels.tobytes() == other.pixels.tobytes()
    assert other.pool.difficulty is None
    assert [len(members) for members in other.pool.members] == [40, 40]


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_what_idc_says_of_segments_are_the_defaults(name):
    """Cells that were made before it said so are found again."""
    s = from_config(table("x", name, ("idc", "static_filter"), "idc"))
    for method, before in [
        ("idc", {"matcher.name": "idc", "dasm.segments": 1}),
        ("static_filter", {"dasm.segments": 1, "dasm.pool": "static_filter"}),
    ]:
        made = sets.settings_for(s, method, 10, 0)
        assert made == sets.settings_with(s, before, 10, 0)


def test_the_static_filter_has_no_ceiling():
    """It drops what is easy, and nothing else, whatever is asked of segments."""
    pools = []
    for ceiling in ("fixed", "learnable"):
        base = settings_with(dasm__ceiling=ceiling, matcher__idc__loop__niter=1)
        own = sets.settings_for(base, "static_filter", 4, 0)
        problem = make_problem(own, small_dataset(2))
        pools.append(make_pool_maker(problem, jax.random.key(0))(1, 0, []).members)
    chex.assert_trees_all_equal(*pools)


def test_every_name_has_a_label():
    assert set(sets.LABELS) == {*SELECTIONS, "idc", "dasm"}
    assert len(set(sets.LABELS.values())) == len(sets.LABELS)


@pytest.fixture(scope="module")
def problem():
    return make_problem(settings_with(), small_dataset(2))


def test_selected_parts_are_real_images(problem):
    select = coreset.make_selector(problem, jax.random.key(0))
    for method in ("random", "herding"):
        (part,) = sets.make_selection(problem)(method, 3)
        assert part.pixels.shape == (2, 3, 8, 8, 1)
        assert part.flops == 0.0
        expected = problem.dataset.train.images[select(method, 3)]
        np.testing.assert_array_equal(np.rint(part.pixels * 255), expected)


def test_random_is_the_random_of_other_experiments(problem):
    (part,) = sets.make_selection(problem)("random", 3)
    data, table = evaluate.random_set(problem, 3, 6)
    assert table.counts.tolist() == [6]
    np.testing.assert_array_equal(part.pixels.reshape(6, 8, 8, 1), data.images)


@pytest.mark.slow
def test_distilled_parts_are_segments(tmp_path):
    s = sets.settings_for(settings_with(), "dasm", 4, 0)
    parts, records = sets.distil(s, small_dataset(2), tmp_path)
    assert [record["segment"] for record in records] == [1, 2]
    results = small_results()
    assert [part.flops for part in parts] == [r.plan.flops for r in results]
    for part, result in zip(parts, results, strict=True):
        np.testing.assert_array_equal(part.pixels, result.pixels)
        assert part.seconds > 0


def test_static_filter_leaves_out_what_is_easy_for_the_real_data():
    s = sets.settings_for(
        settings_with(dasm__rho=0.5, dasm__high=0.95, matcher__name="dm"),
        "static_filter",
        4,
        0,
    )
    (result,) = dasm.run_dasm(make_problem(s, small_dataset(2)))
    assert result.pool.difficulty is not None
    for indices, members in zip([range(40), range(40, 80)], result.pool.members):
        scores = result.pool.difficulty.scores
        left_out = [i for i in indices if i not in members]
        assert len(left_out) in (19, 20)
        assert max(scores[left_out]) <= min(scores[members])


def parts_of(*sizes):
    return [
        Part(np.full((2, n, 8, 8, 1), 0.1 * n, np.float32), float(n), 1.0)
        for n in sizes
    ]


def test_prefix():
    parts = parts_of(3, 2, 2)
    assert sets.prefix(parts, 3) == parts[:1]
    assert sets.prefix(parts, 7) == parts
    with pytest.raises(ValueError, match="4"):
        sets.prefix(parts, 4)


@pytest.mark.parametrize(("method", "decoded"), [("idc", 16), ("herding", 4)])
def test_a_set_is_kept_as_it_is_trained_on(tmp_path, method, decoded):
    problem = make_problem(settings_with(synthetic__factor=2), small_dataset(2))
    images = small_dataset(2).train.images[:4].reshape(2, 2, 8, 8, 1)
    parts = [Part(images / np.float32(255), 0.0, 0.0)]
    path = tmp_path / "set.npz"
    sets.save(path, problem, parts, sets.formation_for(problem, method))
    images, labels = sets.load_decoded(path, problem, decoded)
    assert sets.load_decoded(path, problem, decoded - 1) is None
    assert len(images) == decoded
    assert labels.tolist() == [0] * (decoded // 2) + [1] * (decoded // 2)
    if method == "herding":
        np.testing.assert_array_equal(images, parts[0].pixels.reshape(4, 8, 8, 1))


def test_a_set_that_is_damaged_or_missing_is_none(tmp_path):
    path = tmp_path / "set.npz"
    problem = make_problem(settings_with(), small_dataset(2))
    assert sets.load_decoded(path, problem, 9) is None
    path.write_bytes(b"no archive")
    assert sets.load_decoded(path, problem, 9) is None
    formation = sets.formation_for(problem, "random")
    sets.save(path, problem, parts_of(2), formation)
    assert sets.load_decoded(path, problem, 9) is not None
    path.write_bytes(path.read_bytes()[:600])
    assert sets.load_decoded(path, problem, 9) is None


def test_runs_cover_every_size_once():
    for segments, ipcs in itertools.product((1, 2, 3, 5), [(1, 2, 5, 9), (7,), (2, 8)]):
        for method in ("dasm", "idc"):
            for polished in (False, True):
                runs = runs_for(method, ipcs, segments, polished=polished)
                made = [run.prefixes for run in runs]
                assert sorted(itertools.chain(*made)) == sorted(ipcs)
