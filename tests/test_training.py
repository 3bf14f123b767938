"""The trainer, the predictor, and what evaluation is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import evaluate, problem, sampling, training
from dasm_jax.errors import UserError
from dasm_jax.loops import Loop
from dasm_jax.nets import Network
from dasm_jax.settings import RecipeSettings
from dasm_jax.training import Recipe
from dasm_jax.types import ArrayDataset, Normalization
from tests.small import small_problem

PLAIN = Normalization((0.0,), (1.0,))
WRITTEN_OUT = Loop(rolled=False, steps_per_call=1)


def recipe(**changes):
    values = {
        "batch": 4,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "augment": (),
        "cutmix": 0.0,
    }
    return Recipe(**values | changes)


def linear_network(n_classes=3):
    def init(key):
        return {"w": jnp.full((4, n_classes), 0.1)}

    def apply(params, images):
        return images.reshape(len(images), -1) @ params["w"]

    return Network(init, apply)


def linear_data(count=4):
    images = np.random.default_rng(0).random((count, 2, 2, 1), np.float32)
    return ArrayDataset(jnp.asarray(images), jnp.arange(count, dtype=jnp.int32) % 3)


def test_learning_rate_falls_by_five_at_two_thirds_and_five_sixths():
    optimizer = training.make_optimizer(
        recipe(momentum=0.0, weight_decay=0.0, decay_steps=12)
    )
    params = jnp.zeros(())
    state = optimizer.init(params)
    moves = []
    for _ in range(12):
        update, state = optimizer.update(jnp.ones(()), state, params)
        moves.append(-float(update))
    expected = [0.1] * 8 + [0.02] * 2 + [0.004] * 2
    np.testing.assert_allclose(moves, expected, rtol=1e-5)


def test_steps_are_sgd_with_momentum_and_weight_decay_on_the_mean_loss():
    data, net = linear_data(), linear_network()
    table = sampling.prefix_table(4, 4)
    step = jax.jit(training.make_train_step(net.apply, recipe(), PLAIN))
    state = training.start_training(
        net.init(jax.random.key(0)), recipe(), sampling.start_sampler(table)
    )
    x = np.asarray(data.images).reshape(4, 4).astype(np.float64)
    y = np.eye(3)[np.asarray(data.labels)]
    w, velocity = np.full((4, 3), 0.1), np.zeros((4, 3))
    for _ in range(3):
        state, loss = step(jax.random.key(1), state, data, table)
        p = np.exp(x @ w)
        p /= p.sum(axis=1, keepdims=True)
        assert float(loss) == pytest.approx(-np.log((p * y).sum(1)).mean(), rel=1e-5)
        velocity = 0.9 * velocity + x.T @ (p - y) / 4 + 0.01 * w
        w = w - 0.1 * velocity
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
    assert int(state.step) == 3


def test_trainer_stops_on_time_and_gives_snapshots():
    data, net = linear_data(), linear_network()
    table = sampling.prefix_table(4, 4)
    key = jax.random.key(0)
    by_steps = [
        training.make_trainer(net, recipe(decay_steps=6), PLAIN, loop)
        for loop in (WRITTEN_OUT, Loop(rolled=True, steps_per_call=4))
    ]
    one_by_one, four_by_four = (train(key, data, table, 3) for train in by_steps)
    assert len(one_by_one) == 3
    for ours, theirs in zip(one_by_one, four_by_four, strict=True):
        np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-5)
    assert not np.allclose(one_by_one[0]["w"], one_by_one[1]["w"])
    (last,) = by_steps[0](key, data, table)
    np.testing.assert_array_equal(last["w"], one_by_one[-1]["w"])


def test_only_images_in_the_table_are_trained_on():
    data, net = linear_data(8), linear_network()
    poisoned = ArrayDataset(data.images.at[4:].set(jnp.nan), data.labels)
    train = training.make_trainer(net, recipe(decay_steps=9), PLAIN, WRITTEN_OUT)
    clean = train(jax.random.key(0), poisoned, sampling.prefix_table(4, 8))[-1]
    assert np.isfinite(clean["w"]).all()


@pytest.mark.parametrize("count", [3, 8, 10])
def test_predictions_do_not_depend_on_the_chunks(count):
    data, net = linear_data(count), linear_network()
    params = {"w": jnp.asarray(np.random.default_rng(1).random((4, 3), np.float32))}
    predict = training.make_predictor(net.apply, PLAIN, chunk=4)
    np.testing.assert_allclose(
        predict(params, data.images), net.apply(params, data.images), rtol=1e-6
    )


def test_bytes_and_floats_are_the_same_image():
    images = np.array([0, 51, 255], np.uint8).reshape(1, 3, 1, 1)
    unit = training.to_unit(jnp.asarray(images))
    np.testing.assert_allclose(unit.ravel(), [0, 0.2, 1], rtol=1e-6)
    shifted = training.normalize(unit, Normalization((0.5,), (0.25,)))
    np.testing.assert_allclose(shifted.ravel(), [-2, -1.2, 2], rtol=1e-5)


def test_cutmix_takes_the_place_of_cutout():
    def strategy(cutmix):
        settings = RecipeSettings(64, 0.01, 0.9, 5e-4, "color_cutout_crop", cutmix)
        return problem.recipe_from(settings).augment

    assert "cutout" in strategy(0.0)
    assert strategy(0.5) == ("brightness", "saturation", "contrast", "crop")


def test_channel_statistics():
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3)).astype(np.uint8)
    images[..., 2] = 7
    mean, std = problem.channel_statistics(images)
    unit = images / 255
    np.testing.assert_allclose(mean, unit.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(std[:2], unit.std(axis=(0, 1, 2))[:2])
    assert std[2] == 1.0


def test_random_sets_are_real_balanced_and_nested():
    p = small_problem()
    small, table = evaluate.random_set(p, 2, 20)
    large, _ = evaluate.random_set(p, 5, 20)
    assert int(table.counts[0]) == 4
    assert small.labels[:4].tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(small.images[:2], large.images[:2])
    real = p.dataset.train.images / np.float32(255)
    for image in np.asarray(large.images[:10]):
        assert np.abs(real - image).max(axis=(1, 2, 3)).min() < 1e-6


def test_accuracy_is_that_of_the_last_step_over_fresh_networks():
    p = small_problem(evaluate__steps=40)
    evaluator = evaluate.make_evaluator(p)
    first, again = (evaluator(*evaluate.full_set(p)) for _ in range(2))
    assert first == again
    assert first.mean > 0.8  # two digits are told apart
    assert evaluate.Accuracy((0.5,)).std is None
    assert evaluate.Accuracy((0.4, 0.6)).std == pytest.approx(0.1 * 2**0.5)


def test_a_diverged_evaluation_is_no_result():
    p = small_problem(evaluate__recipe__lr=1e30)
    with pytest.raises(UserError, match="evaluation network 1 diverged"):
        evaluate.make_evaluator(p)(*evaluate.full_set(p))
