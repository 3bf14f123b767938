"""A study: every arm at every size, cells that notice a change, tables from rows."""

import json

import pytest
from PIL import Image

from dasm_jax import run
from dasm_jax.errors import NonFiniteError, UserError
from dasm_jax.experiments import cells, common, sets
from dasm_jax.experiments.study_rows import from_csv
from dasm_jax.settings import from_config
from tests.small import small_config, small_dataset

# The last one would be three times as long.
LONG = "full_pool: dasm.pool=full matcher.dm.loop.niter=12"
ARMS = ("random", "one: dasm.segments=1", "dasm", LONG)
QUICK = {
    "network__depth": 1,
    "matcher__name": "dm",
    "matcher__dm__augment": "none",
    "matcher__dm__loop__niter": 4,
    "dasm__budget": "flops",
    "evaluate__recipe__augment": "none",
    "measure__networks": 0,
}


def settings_with(**changes):
    given = {
        "experiment": "study",
        "study__arms": ARMS,
        "study__baseline": "one",
        "study__ipcs": (2, 4),
        "study__prefixes": True,
        **QUICK,
        **changes,
    }
    return from_config(small_config(**given))


def start(workdir, **changes):
    return run.run(settings_with(**changes), str(workdir))


@pytest.fixture(autouse=True)
def _small_data(monkeypatch):
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))


# --- cells ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
        workdir = tmp_path_factory.mktemp("study")
        return workdir, start(workdir, study__seeds=(0, 1))


@pytest.fixture
def made(monkeypatch):
    """Names of the runs and selections that are made."""
    names, real = [], cells._Bench._make

    def spy(self, source):
        names.append(source.whole.name)
        return real(self, source)

    monkeypatch.setattr(cells._Bench, "_make", spy)
    return names


def rows_in(workdir):
    return from_csv((workdir / "cells.csv").read_bytes(), "x")


def test_every_arm_is_at_every_size(finished):
    workdir, text = finished
    rows = rows_in(workdir)
    names = ["random", "one", "dasm", "full_pool"]
    places = {(row.arm, row.ipc, row.made_as) for row in rows}
    assert places == {
        *((name, ipc, ipc) for name in names for ipc in (2, 4)),
        *((name, 2, 4) for name in names[2:]),  # prefixes
        ("full", 0, 0),
    }
    assert len(rows) == len(places) * 2 * 2  # seeds, networks
    assert all(len(line) <= 80 for line in text.splitlines() if "/" not in line)
    assert json.loads((workdir / "summary.json").read_text())["failures"] == []
    for name in ("accuracy.png", "differences.png"):
        with Image.open(workdir / name) as image:
            assert image.size[0] > 400


def test_flops_are_those_of_the_baseline(finished):
    workdir, _ = finished
    rows = rows_in(workdir)
    base = {row.ipc: row.flops for row in rows if row.arm == "one"}
    for row in rows:
        if row.arm in ("dasm", "full_pool") and row.made_as == row.ipc:
            # Few iterations, whole ones.
            assert row.flops / base[row.ipc] == pytest.approx(1, abs=0.3)
    assert {row.flops for row in rows if row.arm == "random"} == {0.0}


def test_a_second_start_makes_nothing(finished, made):
    workdir, text = finished
    assert start(workdir, study__seeds=(0, 1)) == text
    assert made == []


def test_only_what_is_missing_is_added(finished, made):
    workdir, _ = finished
    more = (*ARMS, "reverse: dasm.pool=reverse")
    start(workdir, study__seeds=(0,), study__ipcs=(2,), study__arms=more)
    assert made == ["reverse_ipc2_seed0"]
    made.clear()
    start(workdir, study__seeds=(2,), study__ipcs=(2,), study__arms=ARMS[:2])
    assert made == ["random_ipc2_seed2", "one_ipc2_seed2"]


@pytest.mark.slow
def test_an_arm_of_other_settings_is_made_again(finished, made, tmp_path):
    workdir, _ = finished
    given = {"study__seeds": (0,), "study__ipcs": (2,)}
    lines = (*ARMS[:3], "arm: dasm.pool=random")
    start(workdir, study__arms=lines, **given)
    before = (workdir / "sets" / "arm_ipc2_seed0.npz").read_bytes()
    made.clear()
    start(workdir, study__arms=(*ARMS[:3], "arm: dasm.pool=reverse"), **given)
    assert made == ["arm_ipc2_seed0"]
    log = (workdir / "log.txt").read_text()
    assert "arm_ipc2_seed0.json is of other settings; it is made again" in log
    assert (workdir / "sets" / "arm_ipc2_seed0.npz").read_bytes() != before
    made.clear()
    # Of another baseline, it is of another length.
    lines = ("one: dasm.segments=1 matcher.dm.loop.niter=8", *ARMS[2:3])
    start(workdir, study__arms=lines, **given)
    assert made == ["one_ipc2_seed0", "dasm_ipc2_seed0"]


def test_a_run_that_failed_keeps_what_it_goes_on_from(tmp_path, monkeypatch):
    given = {"study__seeds": (0,), "study__ipcs": (2,)}
    start(tmp_path, study__arms=ARMS[:2], **given)
    removed, whole = [], cells.discard
    monkeypatch.setattr(cells, "discard", lambda f: (removed.append(f.name), whole(f)))

    def fail(*arguments):
        raise UserError("the disk is full")

    monkeypatch.setattr(sets, "distil", fail)
    # There is a whole set of that name, of other settings.
    other = f"{ARMS[1]} dasm.rho=0.1"
    start(tmp_path, study__arms=(ARMS[0], other), **given)
    assert {name.split("_")[0] for name in removed} == {"random", "full"}


def test_a_cell_that_failed_is_a_row(tmp_path, monkeypatch):
    real = sets.distil

    def fail(settings, *args):
        if settings.dasm.segments == 2:
            raise NonFiniteError("a pixel is not finite", None)
        return real(settings, *args)

    given = {"study__ipcs": (2,), "study__arms": ARMS[1:3]}
    with monkeypatch.context() as patch:
        patch.setattr(sets, "distil", fail)
        text = start(tmp_path, **given)
    (row,) = [row for row in rows_in(tmp_path) if row.failure]
    assert (row.arm, row.ipc, row.seed, row.network) == ("dasm", 2, 0, 0)
    said = "dasm, IPC 2, seed 0 failed: a pixel is not finite"
    assert said in " ".join(text.split()), text
    assert "seed 0 failed" not in " ".join(start(tmp_path, **given).split())


def test_a_study_of_failures_is_an_error(tmp_path):
    with pytest.raises(UserError, match="every cell of the study failed"):
        start(
            tmp_path, study__arms=ARMS[1:2], study__ipcs=(2,), evaluate__recipe__lr=1e30
        )
    assert len(rows_in(tmp_path)) == 2  # and Full


def test_another_evaluation_is_refused(finished):
    workdir, _ = finished
    with pytest.raises(UserError, match=r"differs in .*evaluate\.steps"):
        start(workdir, evaluate__steps=7)


# --- rows -----------------------------------------------------------------------------


def test_tables_come_from_the_rows_alone(finished, tmp_path, monkeypatch):
    workdir, text = finished
    start(workdir, study__seeds=(0, 1))

    def loads_nothing(*args, **kwargs):
        raise AssertionError("data was loaded")

    monkeypatch.setattr(common, "load_dataset", loads_nothing)
    rows = tmp_path / "cells.csv"
    rows.write_bytes((workdir / "cells.csv").read_bytes())
    again = start(tmp_path / "again", study__rows=str(rows), study__arms=("dasm",))
    assert again.split("wrote")[0] == text.split("wrote")[0]
    for name in ("table.md", "cells.csv", "accuracy.png", "differences.png"):
        assert (tmp_path / "again" / name).read_bytes() == (workdir / name).read_bytes()


def test_one_size_has_no_lines_to_draw(finished, tmp_path):
    workdir, _ = finished
    lines = (workdir / "cells.csv").read_text().splitlines(keepends=True)
    fourth = [line for line in lines[1:] if ",2,2," not in line and ",2,4," not in line]
    rows = tmp_path / "cells.csv"
    rows.write_text("".join([lines[0], *fourth]))
    document = tmp_path / "study.md"
    given = {"study__rows": str(rows), "study__document": str(document)}
    start(tmp_path / "again", **given)
    assert not (tmp_path / "again" / "accuracy.png").exists()
    assert "accuracy.png" not in document.read_text()
    assert (tmp_path / "again" / "differences.png").exists()


def test_a_document_gets_section_figures_and_rows(finished, tmp_path):
    workdir, _ = finished
    document = tmp_path / "study.md"
    document.write_text("# Study\n")
    given = {
        "study__rows": str(workdir / "cells.csv"),
        "study__document": str(document),
        "study__name": "con/trols",
    }
    start(tmp_path / "a", **given)
    start(tmp_path / "b", **given)
    text = document.read_text()
    assert text.count("<!-- study: con/trols, digits 8px -->") == 1
    assert "| IPC 2 | accuracy | against one | FLOPs | seconds |" in text
    names = {path.name for path in (tmp_path / "study").iterdir()}
    assert names == {
        "con_trols_digits_8px.csv",
        "con_trols_digits_8px_accuracy.png",
        "con_trols_digits_8px_differences.png",
    }
    assert all(f"study/{name}" in text for name in names)
    copied = (tmp_path / "study" / "con_trols_digits_8px.csv").read_bytes()
    assert copied == (workdir / "cells.csv").read_bytes()
