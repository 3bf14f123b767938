"""Expert trajectories: how they are trained, stored, and drawn from."""

import functools
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dasm_jax import checkpoint, experts, sampling, training
from dasm_jax.errors import UserError
from dasm_jax.experts import ExpertPlan
from dasm_jax.files import locked
from dasm_jax.keys import Use, key_for
from dasm_jax.loops import Loop
from dasm_jax.nets import make_convnet
from dasm_jax.training import Recipe
from dasm_jax.types import ArrayDataset, Normalization
from tests.small import bare_network, slow_but

PLAIN = Normalization((0.5,), (0.5,))
ROOT = jax.random.key(3)
IDENTITY = {"seed": 3, "data": {"hash": "small"}, "recipe": {"augment": ("flip",)}}


def plan(**changes):
    recipe = Recipe(
        batch=8,
        learning_rate=0.05,
        momentum=0.9,
        weight_decay=5e-4,
        augment=("flip",),
        cutmix=0.0,
    )
    values = {"experts": 5, "epochs": 2, "at_once": 2, "recipe": recipe}
    return ExpertPlan(**values | changes)


@functools.cache
def network():
    return make_convnet((8, 8, 1), 3, width=4, depth=1)


@functools.cache
def images():
    """Three noisy patterns, one class after another."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3, dtype=np.int32), 40)
    pixels = rng.integers(0, 256, (3, 8, 8, 1))[labels] * 0.6
    pixels += rng.integers(0, 100, (120, 8, 8, 1))
    return ArrayDataset(jnp.asarray(pixels.astype(np.uint8)), jnp.asarray(labels))


def some_images(count=20):
    """A table in which the images in use are not the first ones."""
    return sampling.make_table([np.arange(120)[:: 120 // count][:count]], width=120)


@functools.cache
def trainer(**changes):
    return experts.make_expert_trainer(network(), plan(**changes), PLAIN)


def train(numbers, segment=1, table=None, **changes):
    table = some_images() if table is None else table
    return trainer(**changes)(ROOT, segment, numbers, images(), table)


def trajectories(folder=None, identity=IDENTITY, segment=1, on_chunk=None, **changes):
    return experts.expert_trajectories(
        trainer(epochs=changes.get("epochs", 2)),
        network(),
        plan(**changes),
        root=ROOT,
        segment=segment,
        data=images(),
        table=some_images(),
        folder=folder,
        identity=identity,
        on_chunk=on_chunk or (lambda done: None),
    )


def assert_same(ours, theirs, **tolerance):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert isinstance(a, np.ndarray)
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(a, b)


def rows(buffer, *index):
    return jax.tree.map(lambda leaf: leaf[index], buffer)


def test_experts_start_where_the_network_does():
    buffer = train([4, 1])
    for row, expert in enumerate([4, 1]):
        key = key_for(key_for(ROOT, Use.EXPERT, 1, expert), Use.NETWORK_INIT)
        initial = jax.tree.map(np.asarray, network().init(key))
        assert_same(rows(buffer, row, 0), initial, rtol=1e-6)
    shapes = jax.tree.map(lambda leaf: (2, 3, *leaf.shape), initial)
    assert jax.tree.map(np.shape, buffer) == shapes


@pytest.mark.parametrize(
    ("count", "steps"),
    [(20, 2), pytest.param(16, 2, marks=pytest.mark.slow), (5, 1)],
)
def test_an_epoch_is_the_whole_batches_that_a_table_holds(count, steps):
    buffer = train([0], table=some_images(count))
    key = key_for(ROOT, Use.EXPERT, 1, 0)
    recipe = plan().recipe._replace(batch=min(8, count))
    step = jax.jit(training.make_train_step(network(), recipe, PLAIN))
    table = some_images(count)
    state = training.start_training(
        network().init(key_for(key, Use.NETWORK_INIT)),
        recipe,
        sampling.start_sampler(table),
    )
    for epoch in (1, 2):
        for _ in range(steps):
            state, _ = step(key, state, images(), table)
        expected = jax.tree.map(np.asarray, state.params)
        assert_same(rows(buffer, 0, epoch), expected, rtol=1e-4, atol=1e-6)


def test_an_expert_is_the_same_whoever_is_beside_it():
    together = train([0, 1, 2])
    for row, expert in enumerate([0, 1, 2]):
        alone = train([expert])
        assert_same(rows(together, row), rows(alone, 0), rtol=1e-3, atol=1e-5)
    kernel = together["conv_0"]["kernel"]
    assert not np.allclose(kernel[0, 0], kernel[1, 0])
    assert not np.allclose(kernel[:, 0], kernel[:, 1])
    later = train([0, 1, 2], segment=2)["conv_0"]["kernel"]
    assert not np.allclose(kernel, later)


@pytest.mark.parametrize("numbers", slow_but([[0], [0, 1]], [0, 1]))
def test_experts_do_not_depend_on_the_loop(numbers):
    rolled = experts.make_expert_trainer(
        network(), plan(), PLAIN, Loop(rolled=True, steps_per_call=3)
    )
    table = some_images(40)
    theirs = rolled(ROOT, 1, numbers, images(), table)
    assert_same(train(numbers, table=table), theirs, rtol=1e-3, atol=1e-5)


def test_only_images_in_the_table_are_trained_on():
    data, table = images(), some_images()
    unused = np.setdiff1d(np.arange(120), table.indices[0, :20])
    pixels = training.to_unit(data.images).at[unused].set(jnp.nan)
    buffer = trainer()(ROOT, 1, [0, 1], ArrayDataset(pixels, data.labels), table)
    assert_same(buffer, train([0, 1]), rtol=1e-3, atol=1e-5)


def test_experts_learn():
    long = trainer(epochs=12)(
        ROOT, 1, [0, 1], images(), sampling.prefix_table(120, 120)
    )
    inputs = training.normalize(training.to_unit(images().images), PLAIN)

    def loss(params):
        log_p = jax.nn.log_softmax(network().apply(params, inputs))
        return -jnp.take_along_axis(log_p, images().labels[:, None], 1).mean()

    for expert in (0, 1):
        before, after = (float(loss(rows(long, expert, e))) for e in (0, 12))
        assert before > 1.0
        assert after < 0.3


@pytest.mark.parametrize("numbers", slow_but([[0], [0, 1]], [0, 1]))
def test_divergence_names_the_learning_rate(numbers):
    recipe = plan().recipe._replace(learning_rate=1e30)
    train = experts.make_expert_trainer(network(), plan(recipe=recipe), PLAIN)
    with pytest.raises(UserError, match=r"config\.matcher\.mtt\.recipe\.lr=1e\+30"):
        train(ROOT, 1, numbers, images(), some_images())


def test_one_diverged_expert_of_several_is_enough():
    def init(key):
        return {"w": jax.random.normal(key, (64, 3)), "finite": jnp.ones(2)}

    def apply(params, images):
        # Blows up for one of the two networks only.
        kind = jnp.where(params["w"][0, 0] > limit, jnp.inf, 1.0)
        return images.reshape(len(images), -1) @ params["w"] * kind

    keys = [key_for(ROOT, Use.EXPERT, 1, e) for e in (0, 1)]
    first = [float(init(key_for(k, Use.NETWORK_INIT))["w"][0, 0]) for k in keys]
    limit = sum(first) / 2
    train = experts.make_expert_trainer(bare_network(init, apply), plan(), PLAIN)
    with pytest.raises(UserError, match="an expert of segment 1 diverged in epoch 1"):
        train(ROOT, 1, [0, 1], images(), some_images())


def test_trajectories_are_those_of_their_chunks():
    done = []
    buffer = trajectories(on_chunk=done.append)
    assert done == [2, 4, 5]
    for chunk in ([0, 1], [2, 3], [4]):
        assert_same(rows(buffer, chunk), train(chunk))


class Stop(Exception):
    pass


@pytest.mark.parametrize("lost", [None, 1])
def test_resuming_changes_no_bit(tmp_path, lost):
    def stop_at(done):
        if done == 4:
            raise Stop

    whole = trajectories(tmp_path / "whole")
    with pytest.raises(Stop):
        trajectories(tmp_path / "parts", on_chunk=stop_at)
    names = [f"segment1_expert{e}" for e in range(4)]
    there = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert there == [".lock", *names]
    if lost is not None:  # interrupted while a chunk was being stored
        shutil.rmtree(tmp_path / "parts" / names[lost])
    assert_same(trajectories(tmp_path / "parts"), whole)
    assert_same(trajectories(None), whole)


def test_finished_experts_are_not_trained_again(tmp_path, monkeypatch):
    trained = []

    def counting(root, segment, numbers, data, table):
        trained.extend(numbers)
        return trainer()(root, segment, numbers, data, table)

    def with_counting(**changes):
        return experts.expert_trajectories(
            counting,
            network(),
            plan(**changes),
            root=ROOT,
            segment=1,
            data=images(),
            table=some_images(),
            folder=tmp_path,
            identity=IDENTITY,
        )

    whole = with_counting()
    assert trained == [0, 1, 2, 3, 4]
    assert_same(with_counting(), whole)
    assert_same(with_counting(experts=3, at_once=1), rows(whole, slice(3)))
    assert trained == [0, 1, 2, 3, 4]
    with_counting(experts=6, at_once=3)  # more experts, in other chunks
    assert trained == [0, 1, 2, 3, 4, 3, 4, 5]


def test_segments_are_stored_side_by_side(tmp_path):
    first = trajectories(tmp_path, experts=2)
    second = trajectories(tmp_path, experts=2, segment=2)
    assert_same(trajectories(tmp_path, experts=2), first)
    assert_same(trajectories(tmp_path, experts=2, segment=2), second)


def test_experts_of_another_run_are_refused(tmp_path):
    trajectories(tmp_path, experts=3)
    other = {**IDENTITY, "data": {"hash": "other"}, "pool": "abc"}
    with pytest.raises(UserError, match=r"differ in data\.hash, pool; use") as caught:
        trajectories(tmp_path, other, experts=3)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="differ in epochs; use"):
        trajectories(tmp_path, experts=3, epochs=1)


def test_experts_of_another_pool_are_trained_again(tmp_path, caplog):
    """A run that goes back, or on elsewhere, may come to choose another."""
    done = []
    trajectories(tmp_path, {**IDENTITY, "pool": "before"}, experts=2)
    now = {**IDENTITY, "pool": "now"}
    trajectories(tmp_path, now, experts=2, on_chunk=done.append)
    assert caplog.text.count("is of another pool; it is trained again") == 2
    stored = checkpoint.read_metadata(tmp_path, "segment1_expert1")
    assert stored is not None
    assert stored["pool"] == "now"
    assert done[-1] == 2


def test_strangers_are_refused_before_anything_is_trained(tmp_path):
    trajectories(tmp_path, {**IDENTITY, "seed": 4}, experts=1, segment=1)
    (tmp_path / "segment1_expert0").rename(tmp_path / "segment1_expert4")
    done = []
    with pytest.raises(UserError, match="differ in seed; use"):
        trajectories(tmp_path, on_chunk=done.append)
    assert done == []


def test_stored_identity_is_what_the_caller_gave(tmp_path):
    trajectories(tmp_path, experts=1)
    stored = checkpoint.read_metadata(tmp_path, "segment1_expert0")
    assert stored == json.loads(json.dumps({**IDENTITY, "epochs": 2}))


@pytest.mark.parametrize("how", ["a file of the tree", "the metadata"])
def test_damaged_experts_are_trained_again(tmp_path, caplog, how):
    trajectories(tmp_path, experts=3)
    item = tmp_path / "segment1_expert1"
    path = item / "metadata.json"
    if how != "the metadata":
        path = max(item.rglob("?" * 32), key=lambda path: path.stat().st_size)
    path.write_bytes(b"")
    assert_same(trajectories(tmp_path, experts=3), trajectories(experts=3))
    assert "segment1_expert1 is damaged; it is trained again" in caplog.text
    caplog.clear()
    trajectories(tmp_path, experts=3)
    assert caplog.text == ""


def numbered_buffer(n_experts=4, epochs=6):
    """Every value says which expert and epoch it belongs to."""
    numbers = 100.0 * np.arange(n_experts)[:, None] + np.arange(epochs + 1)[None, :]
    return {"w": numbers[:, :, None] + np.zeros(2), "b": numbers.copy()}


def test_spans_are_rows_of_the_buffer():
    spans = experts.draw_spans(
        jax.random.key(0), numbered_buffer(), count=200, first=1, last=3, length=2
    )
    assert spans.start["w"].shape == (200, 2)
    expert, start = np.divmod(spans.start["b"], 100)
    np.testing.assert_array_equal(spans.end["b"], spans.start["b"] + 2)
    for span in spans:
        np.testing.assert_array_equal(span["w"][:, 0], span["b"])
        np.testing.assert_array_equal(span["w"][:, 1], span["b"])
    # Every pair is drawn, independently, and no other.
    assert {*zip(expert, start)} == {(e, s) for e in range(4) for s in (1, 2, 3)}
    share = [np.mean(start == s) for s in (1, 2, 3)]
    np.testing.assert_allclose(share, 1 / 3, atol=0.12)


def test_spans_depend_on_the_key_only():
    def draw(seed):
        key = jax.random.key(seed)
        buffer = numbered_buffer()
        return experts.draw_spans(key, buffer, count=20, first=0, last=4, length=2)

    assert_same(draw(0).start, draw(0).start)
    assert not np.array_equal(draw(0).start["b"], draw(1).start["b"])


def test_too_few_expert_epochs_are_refused():
    def draw(last, length):
        key = jax.random.key(0)
        buffer = numbered_buffer(epochs=6)
        experts.draw_spans(key, buffer, count=3, first=0, last=last, length=length)

    draw(4, 2)  # ends with the last epoch
    with pytest.raises(UserError, match=r"raise config\.matcher\.mtt\.epochs=6 to 7"):
        draw(4, 3)
    with pytest.raises(UserError, match=r"raise config\.matcher\.mtt\.epochs=6 to 7"):
        draw(5, 2)


def test_windows_of_one_segment_are_those_of_trajectory_matching():
    assert experts.epoch_window(1, 1, 20) == (0, 20)
    assert experts.epoch_window(1, 1, 0) == (0, 0)


@pytest.mark.parametrize("max_start", [0, 1, 7, 20])
@pytest.mark.parametrize("segments", [1, 2, 3, 5, 10])
def test_windows_rise_and_leave_no_gap(segments, max_start):
    windows = [
        experts.epoch_window(k, segments, max_start) for k in range(1, segments + 1)
    ]
    assert windows[0][0] == 0
    assert windows[-1][1] == max_start
    assert all(first <= last for first, last in windows)
    for (_, last), (first, _) in itertools.pairwise(windows):
        assert last == first


def test_windows_in_numbers():
    assert [experts.epoch_window(k, 4, 20) for k in (1, 2, 3, 4)] == [
        (0, 5),
        (5, 10),
        (10, 15),
        (15, 20),
    ]


# --- memory, and folders that are shared ----------------------------------------------


def test_more_experts_than_the_memory_holds(monkeypatch):
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(rows(train([0]), 0, 0)))
    monkeypatch.setattr(experts, "physical_memory", lambda: 2 * 3 * size)
    trajectories(experts=2)
    monkeypatch.setattr(experts, "physical_memory", lambda: 2 * 3 * size - 1)
    said = f"2 networks of 2 epochs take {6 * size:,} bytes, more .*lower config"
    with pytest.raises(UserError, match=said):
        trajectories(experts=2)


def test_one_run_at_a_time_trains_into_a_folder(tmp_path):
    with locked(tmp_path / ".lock"), pytest.raises(UserError, match="another run"):
        trajectories(tmp_path)
    first = trajectories(tmp_path)
    with locked(tmp_path / ".lock"):  # what is finished is only read
        assert_same(trajectories(tmp_path), first)
