"""Difficulty scores, recomputed in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import scoring
from dasm_jax.types import Normalization

LOGITS = np.array(
    [[2.0, -1.0, 0.5], [0.0, 0.0, 3.0], [-1.0, 4.0, 1.0], [1.0, 1.5, -2.0]], np.float32
)
LABELS = np.array([0, 1, 1, 2], np.int32)
OTHERS = np.random.default_rng(0).normal(0, 2, (4, 3)).astype(np.float32)


def softmax(logits):
    exp = np.exp(logits.astype(np.float64))
    return exp / exp.sum(1, keepdims=True)


def own(logits):
    return softmax(logits)[np.arange(len(logits)), LABELS]


def el2n(logits):
    return np.linalg.norm(softmax(logits) - np.eye(3)[LABELS], axis=1)


def margin(logits):
    return np.array(
        [
            max(np.delete(p, label)) - p[label]
            for p, label in zip(softmax(logits), LABELS)
        ]
    )


EXPECTED = {
    "ce": lambda logits: -np.log(own(logits)),
    "el2n": el2n,
    "margin": margin,
    "misclassified": lambda logits: (logits.argmax(1) != LABELS).astype(float),
}


@pytest.mark.parametrize("name", sorted(scoring.LOGIT_SCORES))
def test_logit_scores(name):
    scores = scoring.LOGIT_SCORES[name](jnp.asarray(LOGITS), jnp.asarray(LABELS))
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, EXPECTED[name](LOGITS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(scoring.LOGIT_SCORES))
def test_larger_is_harder(name):
    """From sure and right, over undecided, to sure and wrong; finite at the ends."""
    logits = jnp.array([[90.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 90.0]])
    scores = np.asarray(scoring.LOGIT_SCORES[name](logits, jnp.zeros(4, jnp.int32)))
    assert np.isfinite(scores).all()
    assert (np.diff(scores) >= 0).all()
    assert scores[-1] > scores[0]


def test_forgetting_events():
    history = ["1111", "0000", "1010", "1011", "0001", "0100", "0101", "1000"]
    correct = jnp.array([[c == "1" for c in image] for image in history]).T
    events = scoring.forgetting_events(correct)
    np.testing.assert_array_equal(events, [0, 4, 2, 1, 0, 1, 1, 1])
    assert events.dtype == jnp.float32


# --- gradient norm --------------------------------------------------------------------


def mlp(params, images):
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["w"] + params["b"][None])
    return hidden @ params["v"]


def mlp_params(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"w": (8, 5), "b": (5,), "v": (5, 3)}
    return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items())}


def test_gradient_norm_is_that_of_each_image_alone():
    images = np.random.default_rng(1).integers(0, 256, (7, 2, 4, 1), np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2, 0], np.int32)
    params = mlp_params(0)

    statistics = Normalization((0.5,), (1.0,))
    norms = scoring.make_gradient_norm(mlp, statistics, chunk=4)(
        params, jnp.asarray(images), jnp.asarray(labels)
    )

    @jax.grad
    def gradient(params, image, label):
        return -jax.nn.log_softmax(mlp(params, image[None])[0])[label]

    for norm, image, label in zip(norms, images, labels):
        leaves = gradient(
            params, jnp.asarray(image / np.float32(255) - np.float32(0.5)), label
        )
        expected = sum((np.asarray(g, np.float64) ** 2).sum() for g in leaves.values())
        assert float(norm) == pytest.approx(expected**0.5, rel=1e-5)
    assert norms.shape == (7,)


# --- scorer ---------------------------------------------------------------------------


def score_of(name, trajectories):
    """Networks whose parameters are their logits; images stand for nothing."""

    def gradient_norm(params, images, labels):
        return jnp.asarray(params[:, 0])

    score = scoring.make_scorer(name, lambda params, images: params, gradient_norm)
    nothing = jnp.zeros((len(LABELS), 1, 1, 1))
    return score(
        [[jnp.asarray(p) for p in t] for t in trajectories],
        nothing,
        jnp.asarray(LABELS),
    )


@pytest.mark.parametrize("name", sorted(scoring.LOGIT_SCORES))
def test_score_is_the_mean_over_networks(name):
    difficulty = score_of(name, [[LOGITS], [OTHERS]])
    expected = (EXPECTED[name](LOGITS) + EXPECTED[name](OTHERS)) / 2
    np.testing.assert_allclose(difficulty.scores, expected, rtol=1e-5, atol=1e-6)


def test_learned_and_confidence_are_of_the_mean_probability():
    difficulty = score_of("ce", [[LOGITS], [OTHERS], [-LOGITS]])
    mean = (softmax(LOGITS) + softmax(OTHERS) + softmax(-LOGITS)) / 3
    np.testing.assert_allclose(
        difficulty.confidence, mean[np.arange(4), LABELS], rtol=1e-5
    )
    np.testing.assert_array_equal(difficulty.learned, mean.argmax(1) == LABELS)
    # A sure network outvotes an undecided one: it is no majority of predictions.
    sure, weak = np.float32([[9, 0, 0]] * 4), np.float32([[0, 0.1, 0]] * 4)
    votes = score_of("ce", [[sure], [weak], [weak]])
    np.testing.assert_array_equal(votes.learned, LABELS == 0)
    assert all(isinstance(field, np.ndarray) for field in difficulty)
    assert difficulty.learned.dtype == bool


def test_only_the_last_snapshot_is_scored():
    alone = score_of("ce", [[LOGITS]])
    for field, expected in zip(score_of("ce", [[OTHERS, -LOGITS, LOGITS]]), alone):
        np.testing.assert_array_equal(field, expected)


def test_gradient_norm_scorer():
    difficulty = score_of("grad_norm", [[-OTHERS, LOGITS], [OTHERS]])
    expected = (LOGITS[:, 0] + OTHERS[:, 0]) / 2
    np.testing.assert_allclose(difficulty.scores, expected, rtol=1e-6)


def test_forgetting_scorer_looks_at_the_whole_training():
    right = 5 * np.eye(3, dtype=np.float32)[LABELS]
    wrong = -right
    first = [right, wrong, right, wrong]  # forgotten twice
    second = [wrong, wrong, wrong, wrong]  # never right: 4
    difficulty = score_of("forgetting", [first, second])
    np.testing.assert_array_equal(difficulty.scores, [3.0] * 4)
    assert not difficulty.learned.any()


def test_snapshots():
    assert scoring.snapshots_for("forgetting") >= 4
    assert {scoring.snapshots_for(name) for name in scoring.SCORES[:-1]} == {1}
    assert set(scoring.SCORES) == {*scoring.LOGIT_SCORES, "grad_norm", "forgetting"}
