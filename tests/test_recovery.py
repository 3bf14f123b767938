"""Recovery from batch norms (SRe2L): its loss, its images, its labels, a whole run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import evaluate, recovery, run, sampling, training
from dasm_jax.experiments import common
from dasm_jax.keys import Use, key_for
from dasm_jax.loops import Loop
from dasm_jax.problem import make_problem
from dasm_jax.settings import from_config
from dasm_jax.types import ArrayDataset, Normalization
from tests.small import small_config, small_dataset
from tests.test_nets import batch_norm_forward, batch_norm_network, some_images

SHAPE = (6, 4, 2)
LABELS = np.array([0, 2, 1], np.int32)
STATISTICS = Normalization((0.5, 0.4), (0.25, 0.3))
WRITTEN_OUT = Loop(rolled=False, steps_per_call=1)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


# --- loss -----------------------------------------------------------------------------


@pytest.mark.parametrize("bn_weight", [0.0, 0.7])
def test_loss_is_cross_entropy_and_distances_of_means_and_variances(bn_weight):
    net, params = batch_norm_network()
    images = some_images()
    logits, entering = batch_norm_forward(params, images, train=False)
    expected = -np.log(softmax(logits)[np.arange(3), LABELS]).mean()
    for layer, x in enumerate(entering):
        learned = params["batch_stats"][f"norm_{layer}"]
        mean_apart = x.mean((0, 1, 2)) - learned["mean"]
        var_apart = x.var((0, 1, 2)) - learned["var"]
        # Norms, not their squares, and no mean over channels; the first counts tenfold.
        weight = bn_weight * (10 if layer == 0 else 1)
        expected += weight * np.linalg.norm(mean_apart)
        expected += weight * np.linalg.norm(var_apart)
    labels = jnp.asarray(LABELS)
    loss = recovery.recovery_loss(net, params, images, labels, bn_weight)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_gradient_where_batch_and_running_statistics_are_equal():
    net, params = batch_norm_network(depth=1)
    images, labels = some_images(), jnp.asarray(LABELS)
    (moments,) = net.moments(params, images)[1]
    same = {"norm_0": {"mean": moments.mean, "var": moments.var}}
    params = net.with_statistics(params, same)
    (moments,) = net.moments(params, images)[1]
    np.testing.assert_array_equal(moments.mean, moments.running_mean)
    np.testing.assert_array_equal(moments.var, moments.running_var)

    def gradient(bn_weight):
        return jax.grad(recovery.recovery_loss, argnums=2)(
            net, params, images, labels, bn_weight
        )

    # The norm has no derivative at 0: it must be 0 there, not NaN.
    grads = gradient(10.0)
    assert np.isfinite(grads).all()
    assert np.abs(grads).max() > 0
    np.testing.assert_allclose(grads, gradient(0.0), rtol=1e-5, atol=1e-7)


# --- images ---------------------------------------------------------------------------


def adam_allowed():
    """Optax's Adam takes a float to the power of its int32 count."""
    return jax.numpy_dtype_promotion("standard")


def recoverer(net, *, steps, strategy=(), loop=WRITTEN_OUT, statistics=STATISTICS):
    recover = recovery.make_recoverer(
        net,
        statistics,
        steps=steps,
        learning_rate=0.1,
        bn_weight=0.5,
        strategy=strategy,
        loop=loop,
    )
    return adam_allowed()(recover)


def noise(key):
    return jax.random.normal(key_for(key, Use.IMAGE_INIT), (len(LABELS), *SHAPE))


def test_recovery_lowers_the_loss():
    net, params = batch_norm_network()
    train = jax.jit(net.train)
    for _ in range(40):  # to statistics that some images have
        seen = train(params, 2 * some_images(16) + 1)[1]
        params = net.with_statistics(params, seen)
    key = jax.random.key(1)
    wide = Normalization((0.5, 0.4), (0.02, 0.02))  # nothing leaves [0, 1]
    recover = recoverer(net, steps=40, strategy=("flip",), statistics=wide)
    pixels = recover(key, params, LABELS, SHAPE)
    assert pixels.shape == (3, *SHAPE)

    def loss(inputs):
        labels = jnp.asarray(LABELS)
        return float(recovery.recovery_loss(net, params, inputs, labels, 0.5))

    assert loss(training.normalize(pixels, wide)) < 0.6 * loss(noise(key))


def test_steps_are_adam_with_cosine_decay_from_unit_noise():
    net, params = batch_norm_network()
    key = jax.random.key(2)
    gradient = jax.grad(recovery.recovery_loss, argnums=2)
    inputs = noise(key)
    first = second = np.zeros(inputs.shape)
    for count in range(3):
        grads = gradient(net, params, inputs, jnp.asarray(LABELS), 0.5)
        grads = np.asarray(grads, np.float64)
        first = 0.5 * first + 0.5 * grads
        second = 0.9 * second + 0.1 * grads**2
        rate = 0.1 * (1 + np.cos(np.pi * count / 3)) / 2
        move = first / (1 - 0.5 ** (count + 1))
        move = move / (np.sqrt(second / (1 - 0.9 ** (count + 1))) + 1e-8)
        moved = np.asarray(inputs, np.float64) - rate * move
        expected = (moved * STATISTICS.std + STATISTICS.mean).clip(0, 1)
        inputs = jnp.float32((expected - STATISTICS.mean) / STATISTICS.std)
    pixels = recoverer(net, steps=3)(key, params, LABELS, SHAPE)
    assert {0.0, 1.0} < set(expected.ravel().tolist())  # the range is at stake
    np.testing.assert_allclose(pixels, expected, atol=1e-4)


def test_steps_per_call_do_not_change_the_images():
    net, params = batch_norm_network()
    # 5 steps in calls of 4: the decay ends at 0, so that the last 3 do nothing.
    loops = (WRITTEN_OUT, Loop(rolled=True, steps_per_call=4))
    one_by_one, four_by_four = (
        recoverer(net, steps=5, loop=loop)(jax.random.key(3), params, LABELS, SHAPE)
        for loop in loops
    )
    np.testing.assert_allclose(one_by_one, four_by_four, atol=1e-4)


def test_one_key_one_set_of_images():
    net, params = batch_norm_network()
    recover = recoverer(net, steps=2, strategy=("crop", "flip"))
    first, again, other = (
        np.asarray(recover(jax.random.key(seed), params, LABELS, SHAPE))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.1


def test_augmentation_is_drawn_anew_at_every_step(monkeypatch):
    net, params = batch_norm_network()
    seen = []
    augment_each = recovery.augment.augment_each

    def watched(key, images, strategy):
        jax.debug.callback(lambda k: seen.append(k.tolist()), jax.random.key_data(key))
        return augment_each(key, images, strategy)

    monkeypatch.setattr(recovery.augment, "augment_each", watched)
    recoverer(net, steps=3, strategy=("flip",))(
        jax.random.key(0), params, LABELS, SHAPE
    )
    jax.effects_barrier()
    assert len({tuple(key) for key in seen}) == 3


# --- labels ---------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_teacher_labels_are_those_of_running_statistics(temperature):
    net, params = batch_norm_network()
    images = some_images()
    label = recovery.make_teacher_labels(net, params, temperature)
    labels = jax.jit(label.of)(images)
    assert label.temperature == temperature
    logits, _ = batch_norm_forward(params, images, train=False)
    np.testing.assert_allclose(labels, softmax(logits / temperature), rtol=1e-4)
    np.testing.assert_allclose(labels.sum(axis=1), 1.0, rtol=1e-6)


def test_label_bytes():
    # 5 epochs of 6 images in 10 classes, two bytes per probability.
    assert recovery.label_bytes(5 * 6, 10) == 5 * 6 * 10 * 2
    assert recovery.label_bytes(7, 3) == np.zeros((7, 3), np.float16).nbytes


# --- a whole run ----------------------------------------------------------------------


def settings(**changes):
    small = {
        "experiment": "recover",
        "recover__teacher_steps": 40,
        "recover__steps": 20,
        "recover__temperature": 2.0,
        "evaluate__steps": 30,
        "evaluate__recipe__batch": 8,
        "evaluate__recipe__lr": 0.05,
    }
    return from_config(small_config(**small | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
        workdir = tmp_path_factory.mktemp("recovered")
        with adam_allowed():
            return workdir, run.run(settings(), str(workdir))


def test_summary_and_report(finished):
    workdir, text = finished
    summary = json.loads((workdir / "summary.json").read_text())
    soft, hard = summary["table"]
    assert (soft["set"], hard["set"]) == ("soft labels", "hard labels")
    for row in (soft, hard):
        assert row["ipc"] == 4
        assert row["stored_bytes"] == 2 * 4 * 8 * 8  # one byte per value
        assert len(row["networks"]) == 2
        assert row["mean"] == pytest.approx(np.mean(row["networks"]))
        assert f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}" in text
    # 30 steps of 8 views, 2 classes, 2 bytes each; against one byte per image.
    assert soft["label_bytes"] == 30 * 8 * 2 * 2
    assert hard["label_bytes"] == 8
    assert "soft labels: images 512, labels 960\n" in text
    assert "hard labels: images 512, labels 8\n" in text
    assert 0.9 <= summary["teacher_accuracy"] <= 1.0  # two digits are told apart
    shown = 100 * summary["teacher_accuracy"]
    assert f"teacher with batch norm {shown:.1f}\n" in text


def test_files(finished):
    workdir, text = finished
    with np.load(workdir / "synthetic.npz", allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
        assert file["segments"].tolist() == [1] * 8
    assert images.shape == (8, 8, 8, 1)
    assert images.min() >= 0
    assert images.max() <= 1
    assert labels.tolist() == [0] * 4 + [1] * 4
    manifest = json.loads((workdir / "manifest.json").read_text())
    assert manifest["data_hash"] == "small"
    phases = {"data", "teach", "recover", "evaluate"}
    assert set(manifest["wall_seconds"]) == phases
    config = json.loads((workdir / "config.json").read_text())
    assert config["experiment"] == "recover"
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    sets = [json.loads(line)["set"] for line in lines]
    assert sets == ["soft labels", "hard labels"]
    log = (workdir / "log.txt").read_text().splitlines()
    assert [line.split()[1] for line in log] == ["1/4", "2/4", "3/4", "4/4"]
    for name in ("synthetic.npz", "summary.json", "manifest.json"):
        assert str(workdir / name) in text


def test_hard_row_is_the_stored_set_with_its_own_labels(finished):
    workdir, _ = finished
    soft, hard = json.loads((workdir / "summary.json").read_text())["table"]
    with np.load(workdir / "synthetic.npz") as file:
        data = jax.device_put(ArrayDataset(file["images"], file["labels"]))
    p = make_problem(settings(), small_dataset(2))
    result = evaluate.make_evaluator(p)(data, sampling.prefix_table(8, 8))
    assert list(result.networks) == hard["networks"]
    assert soft["networks"] != hard["networks"]


@pytest.mark.slow
def test_images_are_stored_whole_whatever_the_factor(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
    short = {"recover__teacher_steps": 1, "recover__steps": 1, "evaluate__steps": 3}
    with adam_allowed():
        run.run(
            settings(synthetic__factor=2, evaluate__networks=1, ipc=1, **short),
            str(tmp_path),
        )
    with np.load(tmp_path / "synthetic.npz") as file:
        assert int(file["factor"]) == 1
        np.testing.assert_array_equal(file["images"], file["stored_pixels"])


@pytest.mark.slow
def test_every_view_has_its_label_counted(tmp_path, monkeypatch):
    rows = []
    make_teacher_labels = recovery.make_teacher_labels

    def watched(*arguments):
        label = make_teacher_labels(*arguments)

        def watched_label(images):
            rows.append(len(images))
            return label.of(images)

        return label._replace(of=watched_label)

    monkeypatch.setattr(recovery, "make_teacher_labels", watched)
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
    # 8 images fill a batch of 16 by going round, each time with another augmentation.
    short = {"recover__teacher_steps": 1, "recover__steps": 1, "evaluate__steps": 3}
    with adam_allowed():
        run.run(
            settings(evaluate__recipe__batch=16, evaluate__networks=1, **short),
            str(tmp_path),
        )
    soft, _ = json.loads((tmp_path / "summary.json").read_text())["table"]
    assert set(rows) == {16}
    assert soft["label_bytes"] == 3 * 16 * 2 * 2


def test_a_finished_recovery_is_not_run_again(finished, monkeypatch):
    workdir, text = finished
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    monkeypatch.setattr(common, "load_dataset", None)  # calling it would fail
    again = run.run(settings(), str(workdir))
    assert "finished before" in again
    assert again.splitlines()[:8] == text.splitlines()[:8]
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before
