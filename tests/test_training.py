"""The trainer, the predictor, and what evaluation is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import evaluate, problem, sampling, trainers, training
from dasm_jax.errors import UserError
from dasm_jax.loops import Loop
from dasm_jax.nets import make_convnet
from dasm_jax.recipes import recipe_from
from dasm_jax.schema import RecipeSettings
from dasm_jax.training import Recipe, SoftLabels
from dasm_jax.types import ArrayDataset, Normalization
from tests.small import bare_network, small_problem

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

    return bare_network(init, apply)


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
    step = jax.jit(training.make_train_step(net, recipe(), PLAIN))
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
        trainers.make_trainer(net, recipe(decay_steps=6), PLAIN, loop)
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
    train = trainers.make_trainer(net, recipe(decay_steps=9), PLAIN, WRITTEN_OUT)
    clean = train(jax.random.key(0), poisoned, sampling.prefix_table(4, 8))[-1]
    assert np.isfinite(clean["w"]).all()


@pytest.mark.parametrize("count", [3, 8, 10])
def test_predictions_do_not_depend_on_the_chunks(count):
    data, net = linear_data(count), linear_network()
    params = {"w": jnp.asarray(np.random.default_rng(1).random((4, 3), np.float32))}
    predict = trainers.make_predictor(net.apply, PLAIN, None, chunk=4)
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
        return recipe_from(settings).augment

    assert "cutout" in strategy(0.0)
    assert strategy(0.5) == ("brightness", "saturation", "contrast", "crop")


def test_channel_statistics():
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3)).astype(np.uint8)
    images[..., 2] = 7
    mean, std, whitening = problem.channel_statistics(images)
    assert whitening is None
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
    assert first.networks == again.networks
    assert first.mean > 0.8  # two digits are told apart
    assert evaluate.Accuracy((0.5,)).std is None
    assert evaluate.Accuracy((0.4, 0.6)).std == pytest.approx(0.1 * 2**0.5)


def test_a_diverged_evaluation_is_no_result():
    p = small_problem(evaluate__recipe__lr=1e30)
    with pytest.raises(UserError, match="evaluation network 1 diverged"):
        evaluate.make_evaluator(p)(*evaluate.full_set(p))


# --- running statistics and soft labels -----------------------------------------------


def test_running_statistics_follow_the_batch_and_do_not_decay():
    net = make_convnet((2, 2, 1), 3, width=4, depth=1, norm="batch")
    data = linear_data()
    table = sampling.prefix_table(4, 4)
    r = recipe(momentum=0.0, weight_decay=1.0)
    step = jax.jit(training.make_train_step(net, r, PLAIN))
    start = jax.tree.map(np.asarray, net.init(jax.random.key(0)))
    state = training.start_training(start, r, sampling.start_sampler(table))

    def loss(params):
        logits, _ = net.train(params, data.images)
        return -jnp.take_along_axis(
            jax.nn.log_softmax(logits), data.labels[:, None], axis=1
        ).mean()

    for _ in range(2):
        before = state.params
        grads = jax.grad(loss)(before)["params"]
        state, _ = step(jax.random.key(1), state, data, table)
        jax.tree.map(  # as a step without decay would have them
            lambda new, seen: np.testing.assert_allclose(new, seen, rtol=1e-5),
            state.params["batch_stats"],
            net.train(before, data.images)[1],
        )
        jax.tree.map(  # as decay makes them, so there was some
            lambda new, old, grad: np.testing.assert_allclose(
                new, 0.9 * old - 0.1 * grad, rtol=1e-4, atol=1e-6
            ),
            state.params["params"],
            before["params"],
            grads,
        )
    moved = state.params["batch_stats"]["norm_0"]["mean"]
    assert np.abs(moved - start["batch_stats"]["norm_0"]["mean"]).min() > 1e-4


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_step_on_soft_labels_is_the_gradient_of_their_cross_entropy(temperature):
    data, net = linear_data(), linear_network()
    table = sampling.prefix_table(4, 4)
    teacher = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)

    def label(images):
        return jax.nn.softmax(images.reshape(len(images), -1) @ teacher)

    r = recipe(momentum=0.0, weight_decay=0.0)
    labels = SoftLabels(label, temperature)
    step = jax.jit(training.make_train_step(net, r, PLAIN, soft_labels=labels))
    state = training.start_training(
        {"w": jnp.asarray(teacher[::-1])}, r, sampling.start_sampler(table)
    )
    state, loss = step(jax.random.key(1), state, data, table)
    x = np.asarray(data.images).reshape(4, 4).astype(np.float64)
    w = teacher[::-1].astype(np.float64)
    soft, p = np.exp(x @ teacher), np.exp(x @ w / temperature)
    soft, p = (a / a.sum(axis=1, keepdims=True) for a in (soft, p))
    expected = -sum(soft[i] @ np.log(p[i]) for i in range(4)) / 4
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(
        state.params["w"],
        w - 0.1 * x.T @ (p - soft) / temperature / 4,
        rtol=1e-4,
        atol=1e-6,
    )


def test_soft_labels_are_of_the_very_images_the_network_sees():
    seen, labelled = [], []

    def apply(params, images):
        seen.append(images)
        return images.mean((1, 2)) @ params["w"]

    def label(images):
        labelled.append(images)
        return jnp.full((len(images), 3), 1 / 3)

    net = bare_network(lambda key: {"w": jnp.ones((1, 3))}, apply)
    grey = jnp.broadcast_to(jnp.linspace(0.2, 0.8, 4).reshape(4, 1, 1, 1), (4, 8, 8, 1))
    data = ArrayDataset(grey, jnp.arange(4, dtype=jnp.int32))
    table, r = sampling.prefix_table(4, 4), recipe(augment=("brightness",), cutmix=1.0)
    step = training.make_train_step(net, r, PLAIN, soft_labels=SoftLabels(label, 1.0))
    state = training.start_training(net.init(None), r, sampling.start_sampler(table))
    step(jax.random.key(1), state, data, table)  # not compiled: arrays, not tracers
    np.testing.assert_array_equal(seen[0], labelled[0])
    # Brightened, and with a box of another image.
    assert not np.isin(np.asarray(labelled[0]), np.asarray(grey)).any()
    assert max(len(np.unique(image)) for image in labelled[0]) == 2


def test_one_hot_soft_labels_are_hard_labels():
    data, net = linear_data(8), linear_network()
    # The first pixel says which class it is, so that a function of the image can tell.
    marked = data.images.at[:, 0, 0, 0].set(data.labels.astype(jnp.float32))
    data = ArrayDataset(marked, data.labels)

    def label(images):
        return jax.nn.one_hot(images[:, 0, 0, 0].round().astype(jnp.int32), 3)

    table, r = sampling.prefix_table(8, 8), recipe(decay_steps=6)
    hard, soft = (
        trainers.make_trainer(
            net, r, PLAIN, WRITTEN_OUT, soft_labels=fn and SoftLabels(fn, 1.0)
        )(jax.random.key(0), data, table)[-1]["w"]
        for fn in (None, label)
    )
    np.testing.assert_allclose(soft, hard, rtol=1e-5)
    assert not np.allclose(hard, 0.1, atol=0.01)
