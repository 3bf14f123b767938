"""Runs that begin anew, or go on elsewhere: links, accounts, other machines."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from dasm_jax import checkpoint, numbered, run, workdir
from dasm_jax.errors import CannotWrite, UserError
from dasm_jax.experiments import distill as experiment
from dasm_jax.experiments import keeper, kept
from dasm_jax.plan import plan_segments
from dasm_jax.progress import Progress, Snapshot
from dasm_jax.run_log import RunLog
from tests.checkpoint_cases import content
from tests.small import small_problem
from tests.stopped import (  # noqa: F401  (fixtures)
    UNITS,
    _compiled_once,
    kill,
    killed,
    outcome,
    start,
    stop_after,
)


def test_never_follows_a_link_to_checkpoints(calm, tmp_path, monkeypatch):
    killed(tmp_path / "run", 3)
    folder = tmp_path / "run" / "checkpoints"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(keeper, "remove_all", lambda folder: None)
        with pytest.raises(UserError, match=r"resume='never', and .* cannot be"):
            start(tmp_path / "run", checkpoint__resume="never")
    done = stop_after(monkeypatch, 0, kill)
    start(tmp_path / "run", checkpoint__resume="never")
    assert len(done) == UNITS
    assert outcome(tmp_path / "run") == outcome(calm)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_never_begins_a_finished_run_anew(calm, tmp_path, monkeypatch):
    start(tmp_path)
    (tmp_path / "experts" / "of_another_time").mkdir(parents=True)
    (tmp_path / "mine.txt").touch()
    done = stop_after(monkeypatch, 0, kill)
    start(tmp_path, checkpoint__resume="never")
    assert len(done) == UNITS
    assert outcome(tmp_path) == outcome(calm)
    assert not (tmp_path / "experts").exists()
    assert (tmp_path / "mine.txt").exists()


def test_never_removes_experts_behind_links_and_of_tables(tmp_path, monkeypatch):
    def item(*names):
        path = tmp_path.joinpath(*names)
        checkpoint.save(path.parent, path.name, [np.ones(1)], {})
        return path

    removed = [
        item("elsewhere", "segment_01", "segment1_expert0"),
        item("elsewhere", "bank", "segment0_expert0"),
        item("runs", "dasm", "segment_02", "segment2_expert0"),
        item("runs", "idc", "bank", "segment0_expert0"),
    ]
    stay = [item("elsewhere", "mine", "item"), item("runs", "mine", "bank", "item")]
    (tmp_path / "elsewhere" / "segment_01" / "notes.txt").touch()
    (tmp_path / "experts").symlink_to(tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(run, "remove_items", lambda folder: False)
        with pytest.raises(UserError, match=r"'never', and .*segment_01 cannot be rem"):
            run._remove_result(tmp_path)
    run._remove_result(tmp_path)
    assert not any(path.exists() for path in removed)
    assert all(path.exists() for path in stay)
    assert (tmp_path / "elsewhere" / "segment_01" / "notes.txt").exists()
    assert (tmp_path / "experts").is_symlink()


def test_distances_whose_sum_float32_cannot_hold(tmp_path, monkeypatch):
    problem = small_problem(network__depth=1, matcher__name="dm")
    plans = plan_segments(problem)
    distances = np.full((2, 2), 3e38, np.float32)

    def distil(self, *, on_outer, **rest):
        on_outer(Progress(plans[0], 1, distances, 0.0, lambda: Snapshot([])))
        return []

    monkeypatch.setattr(keeper.Keeper, "distil", distil)
    log = RunLog(tmp_path, 9)
    with keeper.Keeper(problem, plans, tmp_path) as own:
        experiment._distill(problem, own, tmp_path, log)
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["distance"] == pytest.approx(3e38)
    assert line["distance_per_class"] == pytest.approx([3e38, 3e38])


def test_time_and_memory_of_all_processes_are_counted(tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdir, "peak_memory", lambda: {"process": 10**15, "gpu": None})
        killed(tmp_path, 6)
    path = tmp_path / "checkpoints" / "accounts.json"
    spent = json.loads(path.read_text())
    seconds = spent["wall_seconds"]
    assert {*seconds} == {"data", "plan", "distill", "measure", "evaluate"}
    assert all(0 < value < 600 for value in seconds.values())
    more = {name: value + 1000 for name, value in seconds.items()}
    path.write_text(json.dumps(spent | {"wall_seconds": more | {"distill": "x"}}))
    start(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert 1000 < summary["seconds_evaluating"] < 1600
    assert 1000 < manifest["wall_seconds"]["evaluate"] < 1600
    assert 1000 <= manifest["wall_seconds"]["data"] < 1600
    assert manifest["wall_seconds"]["distill"] < 600
    assert manifest["peak_memory_bytes"]["process"] == 10**15
    assert workdir.highest_peak(manifest["peak_memory_bytes"]) == 10**15


def test_what_could_not_be_kept_is_kept_an_outer_iteration_later(
    calm, tmp_path, caplog
):
    saved = []

    def save(folder, name, tree, metadata):
        saved.append(name)
        if len(saved) == 1:
            raise CannotWrite("disk full")
        checkpoint.save(folder, name, tree, metadata)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbered, "checkpoint", SimpleNamespace(**vars(checkpoint)))
        patch.setattr(numbered.checkpoint, "save", save)
        start(tmp_path, checkpoint__minutes=1000.0)
    # The end of the first segment, an outer iteration later, the end of the second.
    assert saved == ["000001", "000002", "000003"]
    assert "disk full; 000002 is whole instead" in caplog.text
    assert outcome(tmp_path) == outcome(calm)


def test_devices_that_are_used_are_counted():
    assert kept.machine(small_problem())["devices"] == 1
    assert kept.machine(small_problem(devices=2))["devices"] == 2


def test_another_machine_is_said(calm, tmp_path, caplog):
    killed(tmp_path, 3)
    with pytest.MonkeyPatch.context() as patch:
        here = kept.machine(small_problem())
        there = here | {"devices": 2, "jax": "0.0.1"}
        patch.setattr(keeper.kept, "machine", lambda problem: there)
        killed(tmp_path, 1)
    said = (
        f"goes on with devices 2 where it was 1, jax 0.0.1 where it was {here['jax']}"
    )
    said += ": the last bits may differ"
    assert said in caplog.text
    assert said in (tmp_path / "log.txt").read_text()
    caplog.clear()
    killed(tmp_path / "same", 3)
    start(tmp_path / "same")
    assert "goes on with" not in caplog.text


def test_what_the_last_bits_follow(monkeypatch):
    here = kept.machine(small_problem())
    assert {"cpu", "cores", "numpy", "optax", "flax", "jax", "jaxlib"} <= {*here}
    assert here["cores"] >= 1
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    there = kept.machine(small_problem())
    assert checkpoint.differences(here, there) == ["XLA_FLAGS"]
    assert "--xla_cpu_enable_fast_math=true where it was" in kept.moved(here, there)


def test_a_field_that_changes_nothing_is_no_other_run(calm, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdir, "ADDED", {})  # as of the commit that brought a field
        killed(tmp_path, 3)
    start(tmp_path)
    assert outcome(tmp_path) == outcome(calm)


def test_a_length_that_was_not_stored_is_unknown():
    here = kept.machine(small_problem()) | {kept.SCHEDULE: "3 4"}
    there = kept.machine(small_problem())
    assert kept.moved(there, here) == ""
    assert kept.moved(there | {"jax": "0.0.1"}, here).endswith("last bits may differ")


def test_segments_of_another_length_are_more_than_last_bits(calm, tmp_path, caplog):
    killed(tmp_path, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeper.kept, "schedule", lambda plans: {kept.SCHEDULE: "2 9"})
        killed(tmp_path, 1)
    assert "goes on with outer iterations 2 9 where it was 2 " in caplog.text
    assert ": the set will be another one" in caplog.text


def test_arrays_of_other_code_are_not_thrown_away(calm, tmp_path, caplog):
    """Digests that are right say that whoever wrote them meant them."""
    killed(tmp_path, 3)
    before = content(tmp_path / "checkpoints")
    here = kept.machine(small_problem())

    def other(*arguments):
        raise ValueError("of another shape")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeper.kept, "_check_snapshot", other)
        patch.setattr(
            keeper.kept, "machine", lambda problem: here | {"source": "of tomorrow"}
        )
        said = rf"this code \(source of tomorrow where it was {here['source']}\); go on"
        with pytest.raises(UserError, match=said):
            start(tmp_path)
        assert content(tmp_path / "checkpoints") == before
        # By this code they cannot be what it wrote.
        patch.setattr(keeper.kept, "machine", lambda problem: here)
        caplog.clear()
        start(tmp_path)
    assert "is damaged, and there is no whole one before it" in caplog.text
    assert outcome(tmp_path) == outcome(calm)
