"""What a run measures of itself, against slow definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import dasm, evaluate, measures, pools, schedule, trainers, training
from dasm_jax.keys import Use, key_for
from dasm_jax.matching import Span
from dasm_jax.recipes import recipe_from
from tests.small import slow_but, small_problem, small_results

RNG = np.random.default_rng(0)


# --- deciles --------------------------------------------------------------------------


def slow_deciles(scores, labels):
    """Rank inside the class, easiest first, the earlier of two equals first."""
    deciles = []
    for i, label in enumerate(labels):
        own = [j for j in range(len(labels)) if labels[j] == label]
        rank = sum((scores[j], j) < (scores[i], i) for j in own)
        deciles.append(10 * rank // len(own))
    return deciles


def indices_of(labels):
    return [np.flatnonzero(labels == c) for c in range(max(labels) + 1)]


@pytest.mark.parametrize("levels", [1000, 3, 1])  # the fewer the more ties
def test_deciles_are_ranks_inside_the_class(levels):
    labels = RNG.permutation(np.repeat([0, 1, 2], [37, 20, 4]))
    scores = RNG.integers(0, levels, len(labels)).astype(np.float32)
    scores[labels == 1] += 2000  # a hard class has easy images all the same
    deciles = schedule.class_deciles(scores, indices_of(labels))
    assert deciles.tolist() == slow_deciles(scores, labels)
    assert np.bincount(deciles[labels == 1]).tolist() == [2] * 10


def test_means_of_deciles_and_empty_ones():
    deciles = np.array([0, 0, 3, 9])
    means = schedule.decile_means(np.array([1.0, 2.0, 5.0, -1.0]), deciles)
    assert means[[0, 3, 9]].tolist() == [1.5, 5.0, -1.0]
    assert np.isnan(means[[1, 2, 4, 5, 6, 7, 8]]).all()


def test_share_that_a_pool_holds():
    labels = np.repeat([0, 1], 20)
    deciles = slow_deciles(np.arange(40.0), labels)
    members = [np.array([0, 1, 2]), np.array([20, 38, 39])]
    held = pools.share_held(np.array(deciles), members)
    slow = [
        np.mean([i in np.concatenate(members) for i in range(40) if deciles[i] == d])
        for d in range(10)
    ]
    np.testing.assert_allclose(held, slow)
    assert held[:2].tolist() == [0.75, 0.25]


def test_shares_of_a_sum():
    deciles = np.repeat(np.arange(10), 3)
    values = RNG.random(30)
    shares = measures.decile_shares_of_sum(values, deciles)
    slow = [values[deciles == d].sum() / values.sum() for d in range(10)]
    np.testing.assert_allclose(shares, slow)
    # A decile that was sampled twice as often carries no more for it.
    again = np.concatenate([values, values[:3]])
    twice = measures.decile_shares_of_sum(again, np.concatenate([deciles, [0, 0, 0]]))
    np.testing.assert_allclose(twice, shares)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_shares_that_do_not_exist(bad):
    deciles = np.arange(10)
    values = np.ones(10)
    assert measures.decile_shares_of_sum(values, deciles).sum() == pytest.approx(1)
    values[3] = bad
    assert np.isnan(measures.decile_shares_of_sum(values, deciles)).all()
    assert np.isnan(measures.decile_shares_of_sum(np.zeros(10), deciles)).all()
    some = measures.decile_shares_of_sum(np.ones(2), np.array([0, 9]))
    assert some[[0, 9]].tolist() == [0.5, 0.5]
    assert np.isnan(some[1:9]).all()


@pytest.mark.parametrize("count", [3, 30, 60, 75, 10_000])
def test_samples_are_even_over_deciles_and_classes(count):
    labels = RNG.permutation(np.repeat([0, 1, 2], 40))
    deciles = schedule.class_deciles(RNG.random(120), indices_of(labels))
    sample = measures.sample_deciles(deciles, labels, RNG.random(120), count)
    for decile, chosen in enumerate(sample):
        assert (deciles[chosen] == decile).all()
        assert len(set(chosen)) == len(chosen)
        per_class = np.bincount(labels[chosen], minlength=3)
        assert per_class.max() - per_class.min() <= 1
    sizes = [len(chosen) for chosen in sample]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == {3: 10, 10_000: 120}.get(count, count)


def test_samples_follow_the_draws():
    labels, deciles = np.repeat([0, 1, 2], 40), np.tile(np.arange(10), 12)

    def sample(seed, count):
        draws = np.random.default_rng(seed).random(120)
        return measures.sample_deciles(deciles, labels, draws, count)

    def same(a, b):
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    assert same(sample(1, 40), sample(1, 40))
    assert not same(sample(1, 40), sample(2, 40))
    # One image a decile: which class has it is drawn, too.
    assert len(set(labels[np.concatenate(sample(1, 10))])) > 1


# --- diversity, JSON ------------------------------------------------------------------


def slow_diversity(rows, labels):
    of_classes = []
    for label in sorted(set(labels)):
        own = [row for row, other in zip(rows, labels) if other == label]
        pairs = [
            np.sqrt(((own[i] - own[j]) ** 2).sum())
            for i in range(len(own))
            for j in range(i)
        ]
        if pairs:
            of_classes.append(np.mean(pairs))
    return np.mean(of_classes)


def test_pairwise_distance():
    labels = RNG.permutation(np.repeat([0, 1, 2, 3], [5, 2, 9, 1]))
    rows = RNG.normal(100, 1, (17, 6)).astype(np.float32)
    rows[labels == 2] *= 3
    ours = measures.mean_pairwise_distance(rows, labels)
    assert ours == pytest.approx(slow_diversity(rows.astype(float), labels), rel=1e-6)


def test_pairwise_distance_of_equals_and_of_single_images():
    same = np.full((4, 3), 1e3, np.float32)
    assert measures.mean_pairwise_distance(same, np.zeros(4, int)) == 0
    assert np.isnan(measures.mean_pairwise_distance(same, np.arange(4)))


def test_json_has_no_nan():
    values = np.array([[1 / 3, np.nan], [np.inf, 2]])
    assert measures.to_json(values) == [[0.333333, None], [None, 2.0]]
    assert measures.to_json(np.float32(1e-9)) == pytest.approx(1e-9)


# --- on a problem ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem():
    return small_problem(measure__networks=2, measure__images=45)


@pytest.fixture(scope="module")
def reference(problem):
    return measures.make_reference(problem)


def slow_cross_entropy(problem, params, data):
    images = jnp.asarray(data.images.astype(np.float32) / 255)
    inputs = training.normalize(images, problem.statistics)
    logits = np.asarray(jax.jit(problem.network.apply)(params, inputs))
    logits = logits.astype(np.float64)
    own = logits[np.arange(len(logits)), data.labels]
    return np.log(np.exp(logits).sum(1)) - own


def test_the_reference_is_the_mean_of_its_networks(problem, reference):
    assert len(reference.networks) == 2
    for data, difficulty, deciles in [
        (problem.dataset.train, reference.difficulty, reference.deciles),
        (problem.dataset.test, None, reference.test_deciles),
    ]:
        slow = np.mean(
            [slow_cross_entropy(problem, p, data) for p in reference.networks], axis=0
        )
        if difficulty is not None:
            np.testing.assert_allclose(difficulty, slow, rtol=1e-4)
            slow = difficulty
        assert deciles.tolist() == slow_deciles(slow, data.labels)


def test_the_ruler_does_not_depend_on_what_is_synthesised(reference):
    changes = {"measure__networks": 2, "measure__images": 45}
    other = measures.make_reference(
        small_problem(**changes, seed=5, ipc=6, matcher__name="dm")
    )
    np.testing.assert_array_equal(other.difficulty, reference.difficulty)
    other = measures.make_reference(small_problem(**changes, evaluate__seed=1))
    assert not np.array_equal(other.difficulty, reference.difficulty)


def test_networks_that_diverge_measure_nothing():
    problem = small_problem(evaluate__recipe__lr=1e30)
    assert measures.make_reference(problem) is None


def make_gradient_norm(problem):
    """Norm of the gradient of the mean loss over some real images."""

    @jax.jit
    def gradient(params, images, labels):
        def loss(params):
            log_p = jax.nn.log_softmax(problem.network.apply(params, images))
            return -log_p[jnp.arange(len(labels)), labels].mean()

        return jax.grad(loss)(params)

    def norm(params, positions):
        images = problem.real.images[positions].astype(jnp.float32) / 255
        inputs = training.normalize(images, problem.statistics)
        grads = gradient(params, inputs, problem.real.labels[positions])
        flat = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(grads)]
        return np.linalg.norm(np.concatenate(flat))

    return norm


def test_gradient_norms_of_images_and_of_deciles(problem, reference, monkeypatch):
    chosen = []
    sample = measures.sample_deciles

    def remembered(*arguments):
        chosen.extend(sample(*arguments))
        return chosen

    monkeypatch.setattr(measures, "sample_deciles", remembered)
    measure = measures._make_gradient_measure(problem, reference)
    params = problem.network.init(jax.random.key(7))
    shares, of_means = measure(params)
    assert [len(c) for c in chosen] == [4, 5] * 5  # weights hide the padding
    norm = make_gradient_norm(problem)
    norms = [np.mean([norm(params, np.array([i])) for i in c]) for c in chosen]
    np.testing.assert_allclose(shares, np.array(norms) / np.sum(norms), rtol=1e-4)
    slow = [norm(params, c) for c in chosen]
    np.testing.assert_allclose(of_means, slow, rtol=1e-4)


@pytest.mark.slow
def test_diversity_of_segments_of_their_union_and_of_random_images(problem, reference):
    results = small_results(synthetic__factor=2, matcher__name="dm")
    problem = small_problem(synthetic__factor=2)
    records = list(measures.measure_segments(problem, reference, results))

    def embedding(images):
        inputs = training.normalize(jnp.asarray(images), problem.statistics)
        last = problem.network.layers(reference.networks[0], inputs)[-1]
        return np.asarray(last).reshape(len(last), -1)

    def decoded(result):
        formation = problem.parameterization.tiles(result.plan.size)
        return [
            np.asarray(problem.parameterization.decode(jnp.asarray(own), formation))
            for own in result.pixels
        ]

    images = [decoded(result) for result in results]
    assert images[0][0].shape == (8, 8, 8, 1)  # two stored images of four tiles
    union = [np.concatenate(of_class) for of_class in zip(*images)]
    for of_classes, name, record in [
        (images[0], "diversity", records[0]),
        (images[1], "diversity", records[1]),
        (images[0], "diversity_of_union", records[0]),
        (union, "diversity_of_union", records[1]),
    ]:
        rows = np.concatenate([embedding(own) for own in of_classes])
        labels = np.repeat([0, 1], len(of_classes[0]))
        slow = slow_diversity(rows.astype(np.float64), labels)
        assert record[name] == pytest.approx(slow, rel=1e-4)
    # Of a whole class it is known who is drawn.
    whole = small_problem(ipc=40, dasm__segments=1)
    result = results[0]._replace(
        plan=results[0].plan._replace(size=40), pixels=np.zeros((2, 40, 8, 8, 1), "f4")
    )
    (record,) = measures.measure_segments(whole, reference, [result])
    rows = embedding(problem.dataset.train.images / np.float32(255))
    slow = slow_diversity(rows.astype(np.float64), problem.dataset.train.labels)
    assert record["diversity_of_random"] == pytest.approx(slow, rel=1e-4)
    assert record["diversity"] == 0


def test_difficulty_of_the_pool(problem, reference):
    results = small_results()
    records = list(measures.measure_segments(problem, reference, results))
    for result, record in zip(results, records, strict=True):
        members = np.concatenate(result.pool.members)
        mean = float(np.mean([reference.difficulty[i] for i in members]))
        assert record["pool_difficulty_mean"] == pytest.approx(mean, rel=1e-4)
        whole = reference.difficulty.mean()
        assert record["real_difficulty_mean"] == pytest.approx(whole, rel=1e-4)
        deciles = slow_deciles(reference.difficulty, problem.dataset.train.labels)
        slow = [
            np.mean([i in members for i in range(80) if deciles[i] == d])
            for d in range(10)
        ]
        np.testing.assert_allclose(record["pool_share_by_decile"], slow, rtol=1e-4)
    assert records[0]["pool_share_by_decile"] == [1.0] * 10
    assert records[1]["pool_share_by_decile"] != [1.0] * 10


def test_images_by_the_deciles_of_real_ones():
    difficulty = np.array([*range(20), *range(100, 120)], float)
    indices = [np.arange(20), np.arange(20, 40)]
    scores = np.array([-1.0, 1.5, 18.5, 99.0, 99.0, 110.5, 500.0])
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    # 0, 2, 19 and 20 of the 20 real ones of class 0 are easier; 0, 11, 20 of class 1.
    wanted = np.bincount([0, 1, 9, 9, 0, 5, 9], minlength=10) / 7
    shares = measures.shares_by_real_deciles(scores, labels, difficulty, indices)
    np.testing.assert_allclose(shares, wanted)
    # A class beside itself is even, however many are equally difficult.
    difficulty = np.repeat([0.0, 1.0, 2.0], [60, 15, 25])
    itself = difficulty, np.zeros(100, int), difficulty, [np.arange(100)]
    np.testing.assert_allclose(measures.shares_by_real_deciles(*itself), 0.1)
    scores[2] = np.inf
    shares = measures.shares_by_real_deciles(scores, labels, scores, [indices[0][:7]])
    assert np.isnan(shares).all()


def test_difficulty_of_the_set(problem, reference):
    """Of one that holds real images it is theirs."""
    result = small_results()[0]
    # Ranks in the middle of a decile, which a rounded score does not leave.
    index = np.stack(
        [
            own[np.argsort(reference.difficulty[own])[[1, 22]]]
            for own in problem.class_indices
        ]
    )
    pixels = problem.dataset.train.images[index] / np.float32(255)
    result = result._replace(pixels=pixels, plan=result.plan._replace(size=2))
    (record,) = measures.measure_segments(problem, reference, [result])
    own = reference.difficulty[index]
    assert record["set_difficulty_mean"] == pytest.approx(own.mean(), rel=1e-4)
    assert record["set_share_by_decile"] == [0.5, 0, 0, 0, 0, 0.5, 0, 0, 0, 0]


@pytest.mark.parametrize("name", slow_but(["idc", "dsa", "dm", "cafe", "mtt"], "idc"))
def test_what_the_matcher_looked_at(name):
    problem = small_problem(matcher__name=name)
    results = small_results(matcher__name=name)
    like = problem.network.init(jax.random.key(0))
    for result in results:
        seen = result.seen.start if name == "mtt" else result.seen
        assert isinstance(result.seen, Span) == (name == "mtt")
        assert jax.tree.map(np.shape, seen) == jax.tree.map(np.shape, like)
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(seen))
    reference = measures.make_reference(problem)
    for record in measures.measure_segments(problem, reference, results):
        shares = record["gradient_norm_share_by_decile"]
        assert shares["random"] != shares["trained"]
        assert sum(shares["random"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_the_network_that_was_looked_at_is_trained():
    """With no network step it is the one that the last outer iteration began with."""
    still = dasm.run_dasm(small_problem(matcher__idc__trajectory__recipe__lr=0.0))
    moved = small_results()
    problem = small_problem()
    for result, other in zip(still, moved, strict=True):
        last = result.plan.outer_iterations - 1
        key = key_for(jax.random.key(0), Use.NETWORK_INIT, result.plan.segment, last)
        for ours, began, trained in zip(
            *map(jax.tree.leaves, (result.seen, problem.network.init(key), other.seen)),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, began)
            assert not np.array_equal(ours, trained)


def test_accuracy_of_every_test_image_and_by_decile(problem, reference):
    total = 8
    problem = small_problem(evaluate__steps=40)  # some images right, some wrong
    evaluator = evaluate.make_evaluator(problem)
    data, table = evaluate.random_set(problem, 4, total)
    result = evaluator(data, table)
    labels = problem.dataset.test.labels
    assert result.correct is not None
    assert result.correct.shape == labels.shape
    assert set(np.unique(result.correct)) <= {0.0, 0.5, 1.0}  # two networks
    assert (np.diff(result.correct) < 0).any()
    assert result.correct.mean() == pytest.approx(result.mean)
    by_decile = measures.accuracy_by_decile(reference, result)
    slow = [
        np.mean([c for c, d in zip(result.correct, reference.test_deciles) if d == k])
        for k in range(10)
    ]
    np.testing.assert_allclose(by_decile, slow, rtol=1e-4)
    # Which images are right, not only how many.
    s = problem.settings.evaluate
    train = trainers.make_trainer(
        problem.network,
        recipe_from(s.recipe, s.steps),
        problem.statistics,
        problem.loop,
    )
    right = []
    for network in range(2):
        key = key_for(jax.random.key(0), Use.EVALUATION_NETWORK, network)
        params = train(key, data, table)[-1]
        inputs = problem.dataset.test.images.astype(np.float32) / 255
        inputs = training.normalize(jnp.asarray(inputs), problem.statistics)
        logits = np.asarray(jax.jit(problem.network.apply)(params, inputs))
        right.append(logits.argmax(1) == labels)
    np.testing.assert_array_equal(result.correct, np.mean(right, axis=0))
