"""Measures in true runs: what is recorded, and that nothing else changes."""

import json

import numpy as np
import pytest

from dasm_jax import measures, run
from dasm_jax.experiments import common, compare
from dasm_jax.experiments.compare import cell_settings, cells_of
from dasm_jax.settings import from_config
from tests.small import small_config, small_dataset

KEYS = {
    "segment",
    "pool_difficulty_mean",
    "real_difficulty_mean",
    "pool_share_by_decile",
    "gradient_norm_share_by_decile",
    "mean_gradient_norm_by_decile",
    "set_difficulty_mean",
    "set_share_by_decile",
    "diversity",
    "diversity_of_union",
    "diversity_of_random",
}


def start(workdir, **changes):
    changes = {"network__depth": 1, **changes}  # compiled in half the time
    run.run(from_config(small_config(**changes)), str(workdir))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return json.loads((workdir / "summary.json").read_text()), records


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
        found = {}
        for networks in (0, 1):
            workdir = tmp_path_factory.mktemp(f"networks{networks}")
            found[networks] = workdir, *start(workdir, measure__networks=networks)
        return found


def of_kind(records, kind):
    return [
        {name: value for name, value in r.items() if name not in ("kind", "seconds")}
        for r in records
        if r["kind"] == kind
    ]


def test_records_of_a_run(runs):
    _, summary, records = runs[1]
    measured = of_kind(records, "measures")
    assert [record["segment"] for record in measured] == [1, 2]
    assert summary["measures"] == measured
    for record in measured:
        assert set(record) == KEYS
        assert len(record["pool_share_by_decile"]) == 10
        assert sum(record["set_share_by_decile"]) == pytest.approx(1)
        for name in ("gradient_norm_share_by_decile", "mean_gradient_norm_by_decile"):
            assert set(record[name]) == {"random", "trained"}
            assert all(len(values) == 10 for values in record[name].values())
    assert summary["seconds_measuring"] > 0
    rows = of_kind(records, "evaluation")
    assert rows == summary["table"]
    for row in rows:
        assert len(row["accuracy_by_decile"]) == 10
        # Twenty test images of a class: deciles are equally large.
        assert np.mean(row["accuracy_by_decile"]) == pytest.approx(row["mean"])


def test_measuring_does_not_change_a_bit(runs):
    (bare, summary, records), (measured, with_measures, _) = runs[0], runs[1]
    synthetic = "synthetic.npz"
    assert (bare / synthetic).read_bytes() == (measured / synthetic).read_bytes()
    assert of_kind(records, "measures") == summary["measures"] == []
    for row, other in zip(summary["table"], with_measures["table"], strict=True):
        assert "accuracy_by_decile" not in row
        assert row["networks"] == other["networks"]


@pytest.mark.slow
def test_one_image_per_class_has_no_diversity(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
    summary, _ = start(tmp_path, ipc=2, evaluate__baselines=False)
    first, second = summary["measures"]
    assert first["diversity"] is first["diversity_of_random"] is None
    assert first["diversity_of_union"] is None
    assert second["diversity"] is None
    assert second["diversity_of_union"] > 0


def test_a_run_whose_ruler_diverges_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
    monkeypatch.setattr(measures, "make_reference", lambda problem: None)
    summary, _ = start(tmp_path, evaluate__networks=1)
    assert summary["measures"] == []
    assert all("accuracy_by_decile" not in row for row in summary["table"])
    assert "nothing is measured" in (tmp_path / "log.txt").read_text()


def test_cells_of_a_table_do_not_pay(runs):
    workdir, summary, _ = runs[1]
    s = from_config(small_config(experiment="compare", compare__ipcs=(4,)))
    assert s.measure.networks == 1
    for cell in cells_of(s):
        assert cell_settings(s, cell).measure.networks == 0
    seconds = compare._outcome(workdir)["seconds"]
    names = ("matching", "scoring", "experts")
    parts = sum(summary[f"seconds_{name}"] for name in names)
    assert seconds == pytest.approx(parts)
