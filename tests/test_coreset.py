"""Coreset selection, every rule against its definition written out in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import coreset, selection, training
from dasm_jax.errors import UserError
from dasm_jax.schema import SELECTIONS
from dasm_jax.selection import RULES, ClassEvidence
from tests.small import small_problem


def evidence(rows, scores=None, draws=None, padding=3, seed=0):
    """Evidence on one class, with padding that would win if it were looked at."""
    rows = np.asarray(rows, np.float32)
    count = len(rows)
    fill = np.full((padding, rows.shape[1]), rows.mean())
    scores = np.zeros(count) if scores is None else scores
    draws = np.arange(count) / count if draws is None else draws
    return ClassEvidence(
        key=jax.random.key(seed),
        embeddings=jnp.asarray(np.concatenate([rows, fill]), jnp.float32),
        scores=jnp.asarray(np.concatenate([scores, [1e9] * padding]), jnp.float32),
        draws=jnp.asarray(np.concatenate([draws, [0.0] * padding]), jnp.float32),
        valid=jnp.arange(count + padding) < count,
    )


def points(count=30, width=4, seed=0):
    return np.asarray(jax.random.normal(jax.random.key(seed), (count, width)))


def herding_by_definition(rows, count):
    chosen = []
    for k in range(1, count + 1):
        left = [i for i in range(len(rows)) if i not in chosen]
        gap = [
            np.linalg.norm(rows.mean(0) - (rows[chosen].sum(0) + rows[i]) / k)
            for i in left
        ]
        chosen.append(left[int(np.argmin(gap))])
    return chosen


def k_center_by_definition(rows, count):
    chosen = [int(np.argmin(np.linalg.norm(rows - rows.mean(0), axis=1)))]
    while len(chosen) < count:
        left = [i for i in range(len(rows)) if i not in chosen]
        gap = [min(np.linalg.norm(rows[i] - rows[j]) for j in chosen) for i in left]
        chosen.append(left[int(np.argmax(gap))])
    return chosen


@pytest.mark.parametrize("count", [1, 5, 30])
def test_herding(count):
    rows = points()
    chosen = RULES["herding"](evidence(rows), count)
    assert chosen.tolist() == herding_by_definition(rows.astype(np.float64), count)


@pytest.mark.parametrize("count", [1, 5, 30])
def test_k_center(count):
    rows = points(seed=1)
    chosen = RULES["k_center"](evidence(rows), count)
    assert chosen.tolist() == k_center_by_definition(rows.astype(np.float64), count)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_k_means_finds_separate_clusters(count):
    corners = 100.0 * np.eye(8)[:count]
    rows = np.concatenate([points(5, 8, seed=i) + corners[i] for i in range(count)])
    chosen = np.asarray(RULES["k_means"](evidence(rows), count))
    assert sorted(chosen // 5) == list(range(count))
    for place in chosen:
        of_corner = rows[place // 5 * 5 : place // 5 * 5 + 5]
        gap = np.linalg.norm(of_corner - of_corner.mean(0), axis=1)
        assert place % 5 == np.argmin(gap)


def test_k_means_is_as_good_as_lloyd_by_definition():
    rows, count = points(40, 3, seed=2), 4
    given = evidence(rows)
    centres = rows[np.asarray(selection._plus_plus(given, count))]
    for _ in range(selection.KMEANS_ROUNDS):
        gap = np.linalg.norm(rows[:, None] - centres[None], axis=2)
        nearest = gap.argmin(1)
        centres = np.stack([rows[nearest == k].mean(0) for k in range(count)])
    expected, left = [], list(range(40))
    for centre in centres:
        gap = [np.linalg.norm(rows[i] - centre) for i in left]
        expected.append(left.pop(int(np.argmin(gap))))
    assert RULES["k_means"](given, count).tolist() == expected


def test_k_means_draws_far_points_first():
    rows = np.concatenate([np.zeros((20, 2)), np.full((1, 2), 50.0)])
    for seed in range(10):
        drawn = np.asarray(selection._plus_plus(evidence(rows, seed=seed), 2))
        assert 20 in drawn


@pytest.mark.parametrize("count", [1, 4, 8])
def test_hardest(count):
    scores = [3.0, 0.0, 5.0, 3.0, -1.0, 3.0, 0.0, 9.0]
    draws = [0.5, 0.4, 0.9, 0.1, 0.2, 0.3, 0.2, 0.0]
    chosen = RULES["el2n"](evidence(points(8), scores, draws), count)
    # By score; equal ones by their draw.
    assert chosen.tolist() == [7, 2, 3, 5, 0, 6, 1, 4][:count]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("distinct", [1, 2])
def test_duplicates_are_not_taken_twice(name, distinct):
    rows = np.repeat(np.arange(distinct)[:, None] * np.ones(3), 6, axis=0)
    chosen = np.asarray(RULES[name](evidence(rows), 6 * distinct))
    assert sorted(chosen) == list(range(6 * distinct))


@pytest.mark.parametrize("name", ["herding", "k_center"])
def test_equal_images_are_taken_by_place(name):
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    chosen = np.asarray(RULES[name](evidence(rows), 4))
    assert chosen[0] == min(i for i in range(4) if (rows[i] == rows[chosen[0]]).all())
    for one, other in itertools.combinations(range(4), 2):
        if (rows[one] == rows[other]).all():
            assert chosen.tolist().index(one) < chosen.tolist().index(other)


@pytest.mark.parametrize("name", RULES)
def test_classes_at_once_are_as_one_by_one(name):
    each = [evidence(points(12, seed=i), points(12, 1, i)[:, 0]) for i in range(3)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    at_once = jax.vmap(lambda e: RULES[name](e, 4))(together)
    for row, one in zip(at_once, each):
        np.testing.assert_array_equal(row, RULES[name](one, 4))


@pytest.fixture(scope="module")
def problem():
    return small_problem(coreset__networks=2, coreset__looks=3, coreset__steps=9)


@pytest.fixture(scope="module")
def select(problem):
    return coreset.make_selector(problem, jax.random.key(0))


METHODS = [name for name in SELECTIONS if name != "static_filter"]


@pytest.mark.parametrize("method", METHODS)
def test_every_class_has_its_share(problem, select, method):
    chosen = select(method, 5)
    assert chosen.shape == (2, 5)
    for label, row in enumerate(chosen):
        assert len(set(row)) == 5
        assert (problem.dataset.train.labels[row] == label).all()


def test_every_rule_is_a_method():
    assert {*RULES, "random"} == set(METHODS)


@pytest.mark.parametrize("method", ["random", "herding", "k_center", "el2n"])
def test_smaller_sets_are_part_of_larger_ones(select, method):
    np.testing.assert_array_equal(select(method, 2), select(method, 6)[:, :2])


def test_selection_follows_the_seed(problem, select):
    again = coreset.make_selector(problem, jax.random.key(0))
    other = coreset.make_selector(problem, jax.random.key(1))
    for method in ("random", "k_means", "forgetting"):
        np.testing.assert_array_equal(select(method, 5), again(method, 5))
        assert (select(method, 5) != other(method, 5)).any()


def test_methods_differ(select):
    chosen = [select(method, 5) for method in METHODS]
    for one, other in itertools.combinations(chosen, 2):
        assert (one != other).any()


def test_scores_are_means_over_networks_at_the_right_moment(problem, monkeypatch):
    seen = []
    real = coreset.scoring.el2n

    def spy(logits, labels):
        seen.append(np.asarray(logits))
        return real(logits, labels)

    monkeypatch.setattr(coreset.scoring, "el2n", spy)
    root = jax.random.key(0)
    chosen = coreset.make_selector(problem, root)("el2n", 3)
    train = coreset.trainers.make_trainer(
        problem.network,
        coreset.recipe_from(problem.settings.evaluate.recipe, 9),
        problem.statistics,
        problem.loop,
    )
    count = len(problem.dataset.train.labels)
    table = coreset.sampling.prefix_table(count, count)
    total = np.zeros(count)
    for n, logits in enumerate(seen, start=1):
        key = coreset.key_for(root, coreset.Use.SELECTION, n)
        early = train(key, problem.real, table, 3)[0]
        predict = coreset.trainers.make_predictor(
            problem.network.apply, problem.statistics, None
        )
        np.testing.assert_array_equal(logits, predict(early, problem.real.images))
        total += real(jnp.asarray(logits), jnp.asarray(problem.real.labels))
    assert len(seen) == 2
    for label, row in enumerate(chosen):
        members = problem.class_indices[label]
        assert total[row].min() >= np.sort(total[members])[-3] - 1e-6


def test_embedding_is_what_the_classifier_sees(problem):
    params = problem.network.init(jax.random.key(3))
    rows = coreset.embed(problem, params)
    images = training.normalize(
        training.to_unit(problem.real.images), problem.statistics
    )
    dense = params["classifier"]
    logits = rows @ dense["kernel"] + dense["bias"][None, :]
    np.testing.assert_allclose(
        logits, problem.network.apply(params, images), rtol=1e-4, atol=1e-5
    )


def test_divergence_is_one_line():
    diverging = small_problem(evaluate__recipe__lr=1e18)
    select = coreset.make_selector(diverging, jax.random.key(0))
    for method in ("herding", "grand"):
        with pytest.raises(UserError, match=r"config\.evaluate\.recipe\.lr=1e\+18"):
            select(method, 2)
