"""The evaluator: networks at once, looks, Random, augmentations."""

import dataclasses

import jax
import numpy as np
import pytest

from dasm_jax import evaluate, trainers
from dasm_jax.errors import UserError
from dasm_jax.evaluate import networks_at_once
from dasm_jax.keys import Use, key_for
from dasm_jax.problem import network_for
from dasm_jax.recipes import recipe_from, under_augmentation
from dasm_jax.settings import from_config
from tests.small import slow_but, small_config, small_problem


def trainer_of(p):
    s = p.settings.evaluate
    recipe = recipe_from(s.recipe, s.steps)
    return trainers.make_trainer(p.network, recipe, p.statistics, p.loop)


def keys_of(p, count):
    root = jax.random.key(p.settings.evaluate.seed)
    return [key_for(root, Use.EVALUATION_NETWORK, n) for n in range(count)]


# --- several networks at once ---------------------------------------------------------


@pytest.mark.parametrize("norm", slow_but(["instance", "batch"], "instance"))
def test_networks_trained_at_once_are_those_trained_alone(norm):
    p = small_problem(evaluate__recipe__cutmix=0.5, evaluate__steps=8)
    p = p._replace(network=network_for(p, f"convnet/{norm}"))
    train, data = trainer_of(p), evaluate.random_set(p, 8, 20)
    keys = keys_of(p, 3)
    together = train(jax.numpy.stack(keys), *data)[-1]
    for n, key in enumerate(keys):
        jax.tree.map(
            lambda one, all_, n=n: np.testing.assert_allclose(
                one, all_[n], rtol=1e-3, atol=1e-5
            ),
            train(key, *data)[-1],
            together,
        )


def test_the_first_weights_are_the_same_bits_however_many_are_trained():
    p = small_problem(evaluate__recipe__lr=0.0, evaluate__steps=1)
    train, data = trainer_of(p), evaluate.random_set(p, 8, 20)
    keys = keys_of(p, 3)
    together = train(jax.numpy.stack(keys), *data)[-1]
    for n, key in enumerate(keys):
        first = p.network.init(key_for(key, Use.NETWORK_INIT))
        for alone, one, all_ in zip(
            *map(jax.tree.leaves, (first, train(key, *data)[-1], together))
        ):
            np.testing.assert_array_equal(alone, one)
            np.testing.assert_array_equal(alone, all_[n])


@pytest.mark.parametrize("at_once", slow_but([2, 3], 2))
def test_accuracies_do_not_depend_on_the_chunks(at_once):
    def accuracies(at_once):
        p = small_problem(
            evaluate__networks=3, evaluate__steps=25, evaluate__at_once=at_once
        )
        return evaluate.make_evaluator(p)(*evaluate.random_set(p, 8, 20))

    alone = accuracies(1)
    assert len(set(alone.networks)) == 3
    # One of the 40 test images may fall on the other side.
    assert accuracies(at_once).networks == pytest.approx(alone.networks, abs=0.03)


def test_one_at_a_time_is_the_plain_trainer_bit_for_bit():
    p = small_problem(evaluate__networks=2, evaluate__at_once=1)
    data, train = evaluate.random_set(p, 8, 20), trainer_of(p)
    predict = trainers.make_predictor(p.network.apply, p.statistics, None)
    expected = [
        evaluate.accuracy(predict, train(key, *data)[-1], p.dataset.test)
        for key in keys_of(p, 2)
    ]
    for looks in (1, 3):
        found = evaluate.make_evaluator(p, looks=looks)(*data)
        assert list(found.networks) == expected


@pytest.mark.parametrize(
    ("at_once", "platform", "expected"),
    [(0, "cpu", 1), (0, "gpu", 5), (2, "cpu", 2), (2, "gpu", 2), (9, "gpu", 5)],
)
def test_how_many_are_trained_at_once(at_once, platform, expected):
    s = small_problem(evaluate__networks=5, evaluate__at_once=at_once).settings
    assert networks_at_once(s.evaluate, platform) == expected


class Crowded:
    """A trainer on a device with room for a few networks."""

    def __init__(self, monkeypatch, room):
        self.room, self.sizes = room, []
        make = trainers.make_trainer

        def make_trainer(*args, **kwargs):
            train = make(*args, **kwargs)

            def crowded(key, *more):
                size = len(key) if key.ndim else 1
                self.sizes.append(size)
                if size > self.room:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 TB")
                return train(key, *more)

            return crowded

        monkeypatch.setattr(trainers, "make_trainer", make_trainer)


def test_out_of_memory_halves_the_chunk_and_goes_on(monkeypatch):
    p = small_problem(evaluate__networks=5, evaluate__steps=4, evaluate__at_once=5)
    data = evaluate.random_set(p, 8, 20)
    roomy = evaluate.make_evaluator(p)(*data)
    crowded = Crowded(monkeypatch, room=2)
    evaluator = evaluate.make_evaluator(p)
    found = evaluator(*data)
    assert crowded.sizes == [5, 2, 2, 1]
    assert found.networks == pytest.approx(roomy.networks, abs=0.03)
    # It remembers how many there is room for.
    assert evaluator(*data).networks == found.networks
    assert crowded.sizes[4:] == [2, 2, 1]


def test_one_network_that_does_not_fit_is_one_line(monkeypatch):
    p = small_problem(evaluate__at_once=2)
    Crowded(monkeypatch, room=0)
    with pytest.raises(UserError, match=r"lower config\.evaluate\.recipe\.batch=16"):
        evaluate.make_evaluator(p)(*evaluate.random_set(p, 2, 4))


def test_other_failures_of_the_device_are_not_hidden(monkeypatch):
    def broken(*_, **__):
        def train(*_):
            raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

        return train

    monkeypatch.setattr(trainers, "make_trainer", broken)
    p = small_problem()
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        evaluate.make_evaluator(p)(*evaluate.random_set(p, 2, 4))


# --- looks ----------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_last_look_counts_and_the_best_stands_beside(monkeypatch, at_once):
    # Accuracies of two networks at three looks; alone they are trained one by one.
    seen = {1: [0.5, 0.9, 0.7, 0.3, 0.2, 0.6], 2: [0.5, 0.3, 0.9, 0.2, 0.7, 0.6]}
    waiting = list(seen[at_once])

    def correctness(*_):
        right = round(10 * waiting.pop(0))
        return np.float64([1.0] * right + [0.0] * (10 - right))

    monkeypatch.setattr(evaluate, "correctness", correctness)
    p = small_problem(evaluate__networks=2, evaluate__at_once=at_once)
    found = evaluate.make_evaluator(p, looks=3)(*evaluate.random_set(p, 2, 4))
    assert found.networks == (0.7, 0.6)
    assert found.best == (0.9, 0.6)


def test_looks_are_evenly_spaced():
    p = small_problem(evaluate__steps=9)
    train, (key,) = trainer_of(p), keys_of(p, 1)
    data = evaluate.random_set(p, 8, 20)

    def norms(snapshots):
        return train(key, *data, snapshots, lambda w: float(w["classifier"]["bias"][0]))

    every = norms(9)
    assert len(set(every)) == 9
    assert norms(3) == [every[2], every[5], every[8]]


# --- sets -----------------------------------------------------------------------------


def test_what_is_learned_does_not_depend_on_the_length_of_the_buffer():
    p = small_problem(evaluate__steps=10, evaluate__recipe__cutmix=0.5)
    train, (key,) = trainer_of(p), keys_of(p, 1)
    short, long = (train(key, *evaluate.random_set(p, 9, n))[-1] for n in (18, 31))
    jax.tree.map(np.testing.assert_array_equal, short, long)


def test_random_with_a_count_for_each_class():
    p = small_problem()
    data, table = evaluate.random_set(p, (3, 1), 10)
    even, _ = evaluate.random_set(p, 3, 10)
    assert int(table.counts[0]) == 4
    assert data.labels[:4].tolist() == [0, 0, 0, 1]
    np.testing.assert_array_equal(data.images[:4], even.images[:4])
    assert np.asarray(data.images[4:]).max() == 0


# --- augmentations --------------------------------------------------------------------


def recipe_under(name, **changes):
    s = from_config(small_config(**changes)).evaluate.recipe
    return under_augmentation(s, name)


def test_augmentations_by_name():
    full = "color_crop_cutout_flip_scale_rotate"
    recipe = recipe_under("recipe", evaluate__recipe__augment=full)
    assert (recipe.augment, recipe.cutmix) == (full, 0.5)
    for name, augment, cutmix in [
        ("none", "none", 0.0),
        ("dsa", full, 0.0),
        ("dsa_cutmix", "color_crop_flip_scale_rotate", 0.5),
    ]:
        found = recipe_under(name, evaluate__recipe__augment=full)
        assert (found.augment, found.cutmix) == (augment, cutmix)
        # Everything else is the recipe's.
        changes = {"augment": full, "cutmix": 0.5}
        assert dataclasses.replace(found, **changes) == recipe


@pytest.mark.parametrize("name", ["dsa", "dsa_cutmix"])
@pytest.mark.parametrize("of_recipe", ["color_crop_scale_rotate", "none"])
def test_digits_are_never_mirrored(name, of_recipe):
    found = recipe_under(name, evaluate__recipe__augment=of_recipe)
    assert "flip" not in found.augment
    assert {"crop", "rotate"} <= set(found.augment.split("_"))


# --- networks by name -----------------------------------------------------------------


def test_a_network_by_name():
    p = small_problem()
    key = jax.random.key(0)
    same, batch = (network_for(p, text) for text in ("convnet", "convnet/batch"))
    jax.tree.map(np.testing.assert_array_equal, same.init(key), p.network.init(key))
    assert "batch_stats" in batch.init(key)


@pytest.mark.parametrize("text", ["resnet99", "convnet/sparse"])
def test_an_unknown_network(text):
    with pytest.raises(UserError, match=r"config\.evaluate\.architectures: unknown"):
        network_for(small_problem(), text)
