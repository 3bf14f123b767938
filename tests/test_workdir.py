"""The workdir of a run: one run at a time, logs that go on, pipes, a power loss."""

import hashlib
import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from dasm_jax import checkpoint, files
from dasm_jax.errors import UserError
from dasm_jax.experiments.rollback import Rollback, undo
from dasm_jax.files import make_folder, open_to_append, write_atomically
from dasm_jax.run_log import LogPosition, RunLog
from dasm_jax.settings import from_config, to_dict
from dasm_jax.source import ADDED, RESULTS
from dasm_jax.workdir import identity_of, open_workdir
from tests.small import small_config
from tests.stopped import Killed, _compiled_once, kill, start  # noqa: F401  (fixtures)
from tests.torture import ROOT


def test_a_workdir_has_one_run_at_a_time(tmp_path):
    settings = from_config(small_config())
    with open_workdir(str(tmp_path), settings):
        with pytest.raises(UserError, match="in use by another run; wait for it, or"):
            start(tmp_path)
        code = "from dasm_jax.files import locked\nfrom pathlib import Path\n"
        code += f"with locked(Path({str(tmp_path / '.lock')!r})) as ours: print(ours)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
        )
        assert done.stdout == "False\n", done.stderr
    with open_workdir(str(tmp_path), settings) as folder:
        assert folder == tmp_path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("polish_target", "pool"),
        ("ceiling", "chance"),
        ("polish_nested", 0.5),
        ("polish_schedule", "cosine"),
    ],
)
def test_a_run_that_is_older_than_a_field_is_ours(tmp_path, field, value):
    settings = from_config(small_config())
    config = to_dict(settings)
    del config["dasm"][field]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open_workdir(str(tmp_path), settings):
        pass
    other = from_config(small_config(**{f"dasm__{field}": value}))
    said = rf"differs in dasm\.{field}; use another"
    with pytest.raises(UserError, match=said), open_workdir(str(tmp_path), other):
        pass


def test_a_run_with_a_field_that_went_is_ours_where_it_said_nothing(tmp_path):
    settings = from_config(small_config())
    config = to_dict(settings)
    config["dasm"]["polish_prefixes"] = 0.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open_workdir(str(tmp_path), settings):
        pass
    config["dasm"]["polish_prefixes"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = r"differs in dasm\.polish_prefixes; use another"
    with pytest.raises(UserError, match=said), open_workdir(str(tmp_path), settings):
        pass


def test_fields_that_come_or_go_are_thought_of():
    """Else runs made before are refused for a setting that nobody changed."""

    def names(group, prefix=""):
        for name, value in group.items():
            yield from (
                names(value, f"{prefix}{name}.")
                if isinstance(value, dict)
                else [f"{prefix}{name}"]
            )

    config, found = to_dict(from_config(small_config())), set()
    for experiment in ("distill", "compare", "coreset"):  # together they read all
        found |= {*names(identity_of(config | {"experiment": experiment}))}
    text = "\n".join(sorted(found - {*ADDED}))
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    said = "name it in source.ADDED, or raise RESULTS"
    assert (RESULTS, digest) == (3, "e6eff8ce00fd"), said


def test_values_of_another_meaning_are_other_runs():
    """Sets of before, of settings that read the same, are not taken for theirs."""

    def dasm(**changes):
        config = to_dict(from_config(small_config(**changes)))
        return config["dasm"], identity_of(config)["dasm"]

    for changes, field in (
        ({"dasm__context": "cumulative"}, "context"),
        ({"dasm__rescore_every": 2, "dasm__polish": 0.5}, "rescore_every"),
    ):
        written, depends = dasm(**changes)
        assert written[field] != depends[field]
    written, depends = dasm(dasm__rescore_every=2)
    assert written.items() >= depends.items()
    for init, factor, other in (
        ("mix", 2, True),
        ("uncovered", 0, True),
        ("mix", 1, False),
        ("random", 2, False),
    ):
        config = small_config(synthetic__init=init, synthetic__factor=factor)
        depends = identity_of(to_dict(from_config(config)))["synthetic"]
        assert (depends["init"] != init) == other


def test_what_a_kill_left_of_a_file_is_removed(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "unlink", lambda path: None)  # as if killed before it
        for path in (tmp_path / "synthetic.npz", tmp_path / "images" / "a.png"):
            with pytest.raises(Killed):
                files.write_atomically(path, lambda file: kill())
    assert len(list(tmp_path.rglob(".*.unfinished"))) == 2
    with open_workdir(str(tmp_path), from_config(small_config())):
        assert not list(tmp_path.rglob(".*.unfinished"))


def test_logs_are_continued_at_whole_lines(tmp_path):
    log = RunLog(tmp_path, 3)
    log.metrics("a")
    log.advance("one", True)
    position = log.position
    log.metrics("b")
    log.close()
    for name in ("metrics.jsonl", "log.txt"):
        with (tmp_path / name).open("a") as file:
            file.write("torn")
    log = RunLog(tmp_path, 3, after=position)
    log.metrics("c")
    log.advance("two", True)
    assert log.position.done == 2
    assert log.position.seconds > position.seconds
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["a", "c"]
    text = (tmp_path / "log.txt").read_text()
    assert "torn" not in text
    assert ["1/3 one" in text, "2/3 two" in text] == [True, True]
    RunLog(tmp_path, 3, after=LogPosition()).close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    RunLog(tmp_path, 3).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_metrics_that_a_power_loss_took_are_said(tmp_path, caplog):
    log = RunLog(tmp_path, 3)
    log.metrics("a")
    position = log.position
    log.close()
    (tmp_path / "metrics.jsonl").write_bytes(b"\0" * position.metrics_bytes)
    RunLog(tmp_path, 3, after=position).close()
    said = f"metrics.jsonl holds 0 bytes of the {position.metrics_bytes} it had"
    assert said in caplog.text
    assert said in (tmp_path / "log.txt").read_text()


def test_what_a_rollback_has_cut_is_not_lost(tmp_path, caplog):
    log = RunLog(tmp_path, 3)
    log.metrics("a")
    earlier = log.position
    log.metrics("b", text="some more bytes than a rollback has " * 9)
    later = log.position
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('no JSON\n[1]\n{"kind": "rollback"}\n{"halvings": 1}\n')
    back = Rollback("a pixel is not finite", "the beginning", 1, earlier)
    undo(log, back)
    undo(log, back._replace(halvings=2))
    log.close()  # killed before there is a checkpoint of it
    RunLog(tmp_path, 3, after=later).close()
    assert "lost" not in caplog.text + (tmp_path / "log.txt").read_text()
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [(r["kind"], r.get("halvings")) for r in lines] == [
        ("a", None),
        ("rollback", 1),
        ("rollback", 2),
    ]


def test_metrics_that_vanish_are_said_in_one_line(tmp_path):
    log = RunLog(tmp_path, 3)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: No such"):
        log.go_back(LogPosition(), lambda record: True)
    log.close()


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt"])
def test_logs_that_lead_elsewhere_are_left_alone(tmp_path, name):
    (tmp_path / "precious").write_text("no whole line")
    (tmp_path / name).symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=f"{name} is a link, and .* remove it"):
        RunLog(tmp_path, 3, after=LogPosition())
    assert (tmp_path / "precious").read_text() == "no whole line"


def synced(monkeypatch):
    """Names of what is synced from now on, in order."""
    done, fsync = [], os.fsync

    def noted(handle):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    return done


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="no /proc")
def test_what_is_written_outlasts_a_power_loss(tmp_path, monkeypatch):
    done = synced(monkeypatch)
    files.write_json(tmp_path / "a.json", {})
    assert done[-1] == tmp_path.name
    log = RunLog(tmp_path, 3)
    log.metrics("a")
    _ = log.position
    assert done[-1] == "metrics.jsonl"
    log.close()
    done.clear()
    checkpoint.save(tmp_path / "items", "item", [np.ones(3)], {})
    names = {path.name for path in (tmp_path / "items" / "item" / "tree").rglob("*")}
    metadata = next(i for i, name in enumerate(done) if name.startswith(".metadata"))
    assert {*names, "tree"} <= {*done[:metadata]}
    assert done[metadata + 1 :] == ["item", "items"]


def test_the_first_error_of_a_file_is_told(tmp_path, monkeypatch):
    def gone(path):
        raise FileNotFoundError(2, "gone")

    monkeypatch.setattr(files.os, "unlink", gone)
    with pytest.raises(UserError, match=r"a\.json: the first"):
        files.write_atomically(tmp_path / "a.json", fail)


def fail(file):
    raise OSError("the first")


@pytest.mark.parametrize("name", [".lock", "config.json"])
def test_pipes_are_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    reader = os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(UserError, match=r"is no file; remove it|cannot be read"):
            start(tmp_path)
    finally:
        os.close(reader)
    with pytest.raises(UserError, match=r"cannot (write|be read).*No such device|read"):
        start(tmp_path)


def test_logs_are_no_pipes(tmp_path):
    os.mkfifo(tmp_path / "log.txt")
    reader = os.open(tmp_path / "log.txt", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(UserError, match=r"log\.txt is no file; remove it"):
        RunLog(tmp_path, 3, after=LogPosition())
    os.close(reader)


def test_a_pipe_in_the_place_of_a_summary(tmp_path):
    os.mkfifo(tmp_path / "summary.json")
    with pytest.raises(UserError, match=r"summary\.json is .* damaged; remove it"):
        start(tmp_path)


def test_a_folder_that_is_named_like_an_unfinished_file(tmp_path):
    (tmp_path / ".mine.unfinished").mkdir()
    with open_workdir(str(tmp_path), from_config(small_config())):
        assert (tmp_path / ".mine.unfinished").is_dir()


@pytest.mark.parametrize(
    "config",
    [{"experiment": "distill", "matcher": {}}, {"matcher": {"name": []}}, {}, [1]],
)
def test_a_config_that_no_run_wrote(tmp_path, config):
    if isinstance(config, dict):
        config.setdefault("experiment", "distill")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"cannot be read|belongs to a run with another"
    ):
        start(tmp_path)


def test_files_have_the_modes_that_the_user_wants(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "whole", lambda file: file.write(b"x"))
        open_to_append(tmp_path / "lines").close()
    finally:
        os.umask(before)
    for name in ("whole", "lines"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "cells").touch()
    with pytest.raises(UserError, match=r"cannot write .*cells: File exists"):
        make_folder(tmp_path / "cells")


def test_files_of_a_run_inside_are_left_alone(tmp_path):
    (tmp_path / "inner").mkdir()
    being_written = tmp_path / "inner" / ".summary.json.x.unfinished"
    being_written.touch()
    with open_workdir(str(tmp_path), from_config(small_config())):
        assert being_written.exists()
