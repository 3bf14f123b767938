"""experiment=coreset: what is kept and evaluated, and a method that fails."""

import json

import numpy as np
import pytest

from dasm_jax.errors import NonFiniteError, UserError
from dasm_jax.experiments import sets
from dasm_jax.experiments.rollback import Rollback
from dasm_jax.run_log import LogPosition
from tests.small import small_dataset
from tests.stopped import Killed
from tests.test_curve import _small_data, start  # noqa: F401  (fixtures)


def test_coresets_are_kept_and_evaluated(tmp_path):
    methods = ("random", "forgetting", "static_filter")
    given = {"experiment": "coreset", "coreset__methods": methods}
    text = start(tmp_path, **given)
    table = json.loads((tmp_path / "summary.json").read_text())["table"]
    assert [(row["set"], row["ipc"]) for row in table] == [
        ("Random", 4),
        ("Forgetting", 4),
        ("static filter", 4),
        ("Full", 40),
    ]
    for row in table:
        accuracy = f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}"
        assert any(
            line.startswith(row["set"]) and accuracy in line
            for line in text.splitlines()
        )

    def decoded(method):
        with np.load(tmp_path / "sets" / f"{method}.npz") as file:
            return dict(file)

    for method in methods:
        labels = decoded(method)["labels"]
        assert np.bincount(labels).tolist() == [4, 4]
    real = {image.tobytes() for image in small_dataset(2).train.images}
    images = decoded("forgetting")["images"]
    assert all(np.rint(x * 255).astype(np.uint8).tobytes() in real for x in images)
    images = decoded("static_filter")["images"]
    assert not all(np.rint(x * 255).astype(np.uint8).tobytes() in real for x in images)
    left = tmp_path / "runs" / methods[-1] / "checkpoints"
    (left / "000009").mkdir(parents=True)  # of a kill at the very end
    assert "finished before" in start(tmp_path, **given)
    assert not left.exists()


def test_failures_are_tried_again_and_nothing_else_is_an_error(tmp_path, monkeypatch):
    def fail(*args):
        raise NonFiniteError("a pixel is not finite", None)

    given = {"experiment": "coreset", "coreset__methods": ("static_filter",)}
    with monkeypatch.context() as patch:
        patch.setattr(sets, "distil", fail)
        for _ in range(2):
            with pytest.raises(UserError, match=r"every method failed, .*not finite"):
                start(tmp_path, **given)
    assert "static filter" in start(tmp_path, **given)
    assert json.loads((tmp_path / "summary.json").read_text())["failures"] == {}


def test_a_method_that_fails_leaves_the_others(tmp_path, monkeypatch):
    def fail(*args):
        raise NonFiniteError("a pixel is not finite", None)

    monkeypatch.setattr(sets, "distil", fail)
    methods = ("static_filter", "random")
    text = start(tmp_path, experiment="coreset", coreset__methods=methods)
    assert "static filter failed: a pixel is not finite" in text
    table = json.loads((tmp_path / "summary.json").read_text())["table"]
    assert [row["set"] for row in table] == ["Random", "Full"]


def test_rollbacks_of_an_earlier_process_stay_on_record(tmp_path, monkeypatch):
    part = sets.Part(np.zeros((2, 4, 8, 8, 1), np.float32), 0.0, 0.0)
    diverges = [True]

    def distil(settings, dataset, folder, say, on_rollback):
        if diverges:
            on_rollback(Rollback("a pixel is NaN", "the start", 1, LogPosition()))
            diverges.clear()
            raise Killed
        return [part], []

    monkeypatch.setattr(sets, "distil", distil)
    methods = ("random", "static_filter")
    given = {"experiment": "coreset", "coreset__methods": methods}
    with pytest.raises(Killed):
        start(tmp_path, **given)
    start(tmp_path, **given)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [(r["kind"], r["set"]) for r in map(json.loads, lines)] == [
        ("rollback", "static filter"),
        ("evaluation", "Random"),
        ("evaluation", "static filter"),
        ("evaluation", "Full"),
    ]
    assert (tmp_path / "log.txt").read_text().count("a pixel is NaN") == 1
