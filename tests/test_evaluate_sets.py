"""experiment=evaluate: a true run, its scores and table, and what is kept."""

import errno
import json
import shutil

import numpy as np
import pytest

from dasm_jax import evaluate, records, run, source
from dasm_jax.errors import CannotRead, UserError
from dasm_jax.evaluate import Accuracy
from dasm_jax.experiments import common
from dasm_jax.experiments import evaluate as experiment
from dasm_jax.settings import from_config
from dasm_jax.synthetic_files import load_set
from tests.checkpoint_cases import content
from tests.small import small_config, small_dataset, small_problem
from tests.test_synthetic_files import make_file
from tests.unreadable import unreadable


@pytest.fixture(autouse=True)
def _small_data(monkeypatch):
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))


class Counter:
    """Stands in for the evaluator: accuracies made up from what it is given."""

    def __init__(self, monkeypatch):
        self.calls, self.fail = [], None
        monkeypatch.setattr(evaluate, "make_evaluator", self.make)

    def make(self, problem, *, network, recipe, looks):
        def evaluator(data, table):
            count = int(table.counts[0])
            self.calls.append((count, recipe.augment, recipe.decay_steps))
            if self.fail is not None:
                self.fail(len(self.calls))
            base = min(count, 40) / 80 + 0.1 * bool(recipe.augment)
            networks = tuple(base + 0.01 * n for n in range(2))
            return Accuracy(networks, tuple(x + 0.05 for x in networks))

        return evaluator


@pytest.fixture
def counter(monkeypatch):
    return Counter(monkeypatch)


@pytest.fixture
def made(tmp_path):
    return make_file(tmp_path / "synthetic.npz", small_problem(), factor=2, ipc=3)


def start(workdir, path, **changes):
    changes = {"experiment": "evaluate", "evaluate__synthetic": str(path), **changes}
    return run.run(from_config(small_config(**changes)), str(workdir))


def rows_of(workdir):
    return json.loads((workdir / "summary.json").read_text())["table"]


# --- a true run -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_whole_evaluation(tmp_path, made):
    text = start(
        tmp_path / "run",
        made,
        evaluate__architectures=("convnet/instance", "convnet/batch"),
        evaluate__augmentations=("recipe", "none"),
    )
    assert all(len(line) <= 80 for line in text.split("\n\nwrote")[0].splitlines())
    rows = rows_of(tmp_path / "run")
    kinds = [(row["architecture"], row["augmentation"], row["images"]) for row in rows]
    assert kinds == [
        (architecture, augmentation, images)
        for architecture in ("convnet/instance", "convnet/batch")
        for augmentation in ("recipe", "none")
        for images in ("set", "Random", "Full")
    ]
    for row in rows:
        assert len(row["networks"]) == 2
        assert row["mean"] == pytest.approx(np.mean(row["networks"]))
        assert row["best_mean"] >= row["mean"]
        assert row["steps"] == 6
        assert row["wall_seconds"] > 0
        assert row["peak_bytes"] > 1e6
        stored = 80 * 64 if row["images"] == "Full" else 6 * 64
        assert row["stored_bytes"] == stored
        assert f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}" in text
        if row["images"] == "set":
            assert 0 <= row["lrs"][0] <= 1
            assert ("ars" in row) == (row["augmentation"] == "recipe")
    assert "best on the test split, not a result" in text
    # The evaluator of the library says the same of the set.
    p = small_problem(evaluate__at_once=1)
    found = load_set(made, p.dataset, p.statistics)
    expected = evaluate.make_evaluator(p)(*evaluate.in_buffer(found.decoded, 24))
    assert rows[0]["networks"] == list(expected.networks)
    document = (tmp_path / "run" / "table.md").read_text()
    assert "| images | convnet/instance | convnet/batch |" in document
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert set(manifest["wall_seconds"]) == {"data", "evaluate"}
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["evaluation"] * 12


# --- what is kept ---------------------------------------------------------------------


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, made, counter):
    def interrupt(call):
        if call == 2:
            raise KeyboardInterrupt

    counter.fail = interrupt
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "run", made)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / "manifest.json").exists()
    counter.fail = None
    start(tmp_path / "run", made)
    # The set is done; Random, 6 images, is begun again.
    assert [count for count, *_ in counter.calls] == [24, 6, 6, 80]
    assert [row["reused"] for row in rows_of(tmp_path / "run")] == [True, False, False]
    text = start(tmp_path / "run", made)
    assert len(counter.calls) == 4
    assert text.count("*") >= 3


def test_a_table_may_grow(tmp_path, made, counter):
    start(tmp_path / "run", made)
    other = make_file(tmp_path / "other.npz", small_problem(), factor=1, ipc=2)
    start(tmp_path / "run", f"{made},{other}", evaluate__augmentations=("none",))
    start(
        tmp_path / "run",
        f"{made},{other}",
        evaluate__augmentations=("recipe", "none"),
        evaluate__architectures=("convnet",),
    )
    counts = [count for count, *_ in counter.calls]
    # The last run has new of 'recipe' only the other set and its Random; Full is kept.
    assert counts == [24, 6, 80, 24, 4, 6, 4, 80, 4, 4]


def test_baselines_are_kept_for_other_runs_and_sets_are_not(
    tmp_path, made, counter, cache_dir
):
    start(tmp_path / "a", made)
    start(tmp_path / "b", made)
    assert [count for count, *_ in counter.calls] == [24, 6, 80, 24]
    kept = sorted((cache_dir / "baselines").iterdir())
    assert len(kept) == 2
    assert all(file.suffix == ".json" for file in kept)
    assert (
        rows_of(tmp_path / "a")[1]["networks"]
        == (rows_of(tmp_path / "b")[1]["networks"])
    )


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({}, set()),
        ({"seed": 3}, {6}),  # of the draw; Full has none
        ({"evaluate__seed": 3}, {6, 80}),
        ({"evaluate__steps": 7}, {6, 80}),
        ({"evaluate__recipe__lr": 0.02}, {6, 80}),
        ({"evaluate__looks": 2}, {6, 80}),
        ({"network__width": 5}, {6, 80}),
        ({"evaluate__architectures": ("convnet/batch",)}, {6, 80}),
        ({"evaluate__augmentations": ("dsa",)}, {6, 80}),
        ({"data__mean": (0.3,), "data__std": (0.4,)}, {6, 80}),
        ({"evaluate__at_once": 2}, {6, 80}),
    ],
)
def test_baselines_depend_on_what_makes_them(tmp_path, counter, changes, again):
    images = np.zeros((6, 8, 8, 1), np.float32)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(6) % 2)
    start(tmp_path / "a", tmp_path / "x.npz")
    del counter.calls[:]
    # Of 6 images like Random, so it is the first call.
    start(tmp_path / "b", tmp_path / "x.npz", **changes)
    assert {count for count, *_ in counter.calls[1:]} == again


def test_results_depend_on_the_code_that_makes_them(
    tmp_path, made, counter, monkeypatch
):
    start(tmp_path / "a", made)
    monkeypatch.setattr(experiment, "source_hash", lambda package: "other")
    del counter.calls[:]
    start(tmp_path / "a", made)
    start(tmp_path / "b", made)
    assert [count for count, *_ in counter.calls] == [24, 6, 80, 24]


def test_all_of_the_code_is_what_is_not_hidden(tmp_path, monkeypatch):
    package = tmp_path / "package"
    shutil.copytree(source.PACKAGE, package)
    monkeypatch.setattr(source, "PACKAGE", package)
    before = source.everything.__wrapped__()
    (package / ".#report.py").symlink_to("nobody@nowhere")  # Emacs, while one types
    (package / ".checkpoints").mkdir()
    (package / ".checkpoints" / "report.py").write_text("old")
    assert source.everything.__wrapped__() == before == source.everything()
    (package / "report.py").write_text("new")
    assert source.everything.__wrapped__() != before


def test_the_code_is_told_by_the_modules_that_decide(tmp_path):
    def changed(name):
        package = tmp_path / name.replace("/", "_")
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source.PACKAGE, package, ignore=ignored)
        with open(package / name, "a") as file:
            file.write("# changed\n")
        return experiment.source_hash(package)

    unchanged = experiment.source_hash(source.PACKAGE)
    assert changed("report.py") == unchanged
    deciding = ("training.py", "augment.py", "sampling.py", "nets/resnet.py")
    hashes = {changed(name) for name in deciding}
    assert len(hashes | {unchanged}) == 5


def test_a_damaged_result_is_made_again(tmp_path, made, counter, cache_dir):
    start(tmp_path / "a", made)
    files = sorted((cache_dir / "baselines").iterdir())
    for damage in (b"{", b"[]", b"", files[1].read_bytes(), b'{"identity": 1}'):
        files[0].write_bytes(damage)
        del counter.calls[:]
        start(tmp_path / f"b{len(damage)}", made)
        assert len(counter.calls) == 2  # the set, and one baseline
        assert "networks" in json.loads(files[0].read_text())["result"]
    content = json.loads(files[0].read_text())
    for wrong in ([0.5], [0.5, 7], [0.5, None], [0.5, float("nan")], "ab", None):
        content["result"]["networks"] = wrong
        files[0].write_text(json.dumps(content))
        del counter.calls[:]
        start(tmp_path / f"c{wrong}", made)
        assert len(counter.calls) == 2


@pytest.mark.parametrize("name", ["wall_seconds", "peak_bytes"])
@pytest.mark.parametrize("wrong", [None, "1", float("inf"), float("nan"), -1, True])
def test_a_result_needs_its_costs(tmp_path, name, wrong):
    result = {"networks": [0.5], "best": [0.5], "wall_seconds": 1.5, "peak_bytes": 7}
    records.keep(tmp_path, {}, result)
    assert records.find(tmp_path, {}, 1) == result
    records.keep(tmp_path, {}, {**result, name: wrong})
    assert records.find(tmp_path, {}, 1) is None
    del result[name]
    records.keep(tmp_path, {}, result)
    assert records.find(tmp_path, {}, 1) is None


def test_a_set_that_changed_is_evaluated_again(tmp_path, made, counter):
    start(tmp_path / "run", made)
    make_file(made, small_problem(), factor=1, ipc=3)
    start(tmp_path / "run", made)
    assert [count for count, *_ in counter.calls] == [24, 6, 80, 6]


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    tmp_path, made, counter, cache_dir
):
    cache_dir.write_text("a file where the folder should be")
    assert "Full" in start(tmp_path / "run", made)
    first = (tmp_path / "run" / "log.txt").read_text()
    start(tmp_path / "run", made)
    assert len(counter.calls) == 3  # the workdir has them
    assert "not kept" in first


def test_a_cache_that_cannot_be_read_now_is_no_obstacle_and_cells_are(
    tmp_path, made, counter, cache_dir
):
    start(tmp_path / "a", made)
    with unreadable(cache_dir / "baselines", errno.EIO):
        start(tmp_path / "b", made)
    assert len(counter.calls) == 6
    cells = tmp_path / "b" / "cells"
    before = content(cells)
    with unreadable(cells, errno.EIO), pytest.raises(CannotRead, match="Input/output"):
        start(tmp_path / "b", made)
    assert content(cells) == before


def test_a_cell_that_fails_is_its_result(tmp_path, made, counter):
    def diverge(call):
        if call == 2:
            raise UserError("evaluation network 1 diverged; lower it")

    counter.fail = diverge
    text = start(tmp_path / "run", made)
    assert "failed: convnet, recipe, Random: evaluation network 1 diverged" in text
    assert [("failure" in row) for row in rows_of(tmp_path / "run")] == [
        False,
        True,
        False,
    ]
    assert "lrs" not in rows_of(tmp_path / "run")[0]
    start(tmp_path / "run", made)  # and tried again
    assert [count for count, *_ in counter.calls] == [24, 6, 80, 6]
