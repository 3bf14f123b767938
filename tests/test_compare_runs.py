"""A true table of matchers: its cells, its document, and a second start."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from dasm_jax import run
from dasm_jax.errors import UserError
from dasm_jax.settings import changed
from tests.test_compare_table import rows_of, settings_with
from tests.test_document import section

BROKEN = "seqmatch_dasm_ipc4_seed0"


def tiny_table(document):
    """IDC diverges, and with it SeqMatch; DM does not."""
    return settings_with(
        network__width=2,
        matcher__dm__loop__niter=1,
        matcher__dm__loop__inner=1,
        matcher__dm__augment="none",
        matcher__idc__augment="none",
        matcher__idc__trajectory__recipe__augment="none",
        matcher__idc__trajectory__recipe__cutmix=0.0,
        matcher__idc__image__lr=1e38,
        dasm__networks=1,
        dasm__score_steps=2,
        evaluate__steps=2,
        evaluate__recipe__augment="none",
        evaluate__recipe__cutmix=0.0,
        recover__augment="none",
        recover__teacher_steps=2,
        recover__steps=2,
        compare__matchers=("dm",),
        compare__ipcs=(4,),
        compare__seeds=(0,),
        compare__document=str(document),
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A finished table, what it printed, its document, and how to start it again."""
    folder = tmp_path_factory.mktemp("table")
    document = folder / "results.md"
    document.write_text("before\n")
    s = tiny_table(document)

    def start():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DASM_CACHE_DIR", str(folder / "cache"))
            cache = jax.config.jax_compilation_cache_dir
            patch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
            patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
            return run.run(s, str(folder / "run"))

    return folder / "run", start(), document, start


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_true_table(table):
    workdir, printed, document, _ = table
    text = (workdir / "table.md").read_text()
    assert printed.startswith(text)
    for path in ("table.md", "cells", str(document)):
        assert path in printed.removeprefix(text)
    assert document.read_text() == "before\n\n" + section("matchers: digits", text)
    assert {path.name for path in (workdir / "cells").iterdir()} == {
        "random_ipc4_seed0",
        "dm_one-segment_ipc4_seed0",
        "dm_dasm_ipc4_seed0",
        BROKEN,
        "sre2l_one-segment_ipc4_seed0",
    }
    rows = rows_of(text)[4]
    assert list(rows) == ["", "DM", "SeqMatch", "SRe2L", "Random", "Full"]

    def shown(cell, index=0):
        row = read(workdir / "cells" / f"{cell}_ipc4_seed0" / "summary.json")["table"]
        mean, std = row[index]["mean"], row[index]["std"]
        return f"{100 * mean:.1f} ± {100 * std:.1f}"

    assert rows["Random"][0] == shown("random")
    assert rows["Full"][0] == shown("random", 1)
    assert rows["DM"][0].startswith(shown("dm_one-segment"))
    assert rows["DM"][1].startswith(shown("dm_dasm"))
    assert rows["SRe2L"][0].startswith(shown("sre2l_one-segment"))
    assert rows["SRe2L"][1] == ""
    for name in ("DM", "SRe2L"):
        seconds, peaks = rows[name][2:]
        assert all(int(field) >= 0 for field in seconds.split(" / "))
        assert all(50 < int(field) < 50_000 for field in peaks.split(" / "))
    details = read(workdir / "cells" / "random_ipc4_seed0" / "manifest.json")
    commit, date = details["git_commit"] or "unknown", details["date"]
    assert commit[:7] in text
    assert date[:10] in text


@pytest.mark.slow
def test_cells_are_distilled_as_the_table_says(table):
    workdir, *_ = table
    for column, segments in (("one-segment", 1), ("dasm", 2)):
        folder = workdir / "cells" / f"dm_{column}_ipc4_seed0"
        summary = read(folder / "summary.json")
        assert summary["segments"] == segments
        assert [(row["ipc"]) for row in summary["table"]] == [4]
        config = read(folder / "config.json")
        assert (config["experiment"], config["matcher"]["name"]) == ("distill", "dm")
        with np.load(folder / "synthetic.npz") as file:
            assert file["stored_pixels"].shape == (40, 8, 8, 1)
            assert set(file["stored_segments"]) == set(range(1, segments + 1))


@pytest.mark.slow
def test_a_cell_that_fails_does_not_end_the_table(table):
    workdir, *_ = table
    text = (workdir / "table.md").read_text()
    assert rows_of(text)[4]["SeqMatch"] == ["", "failed", "", ""]
    assert re.search(r"^- SeqMatch, DASM, IPC 4: .*not finite", text, re.MULTILINE)
    assert not (workdir / "cells" / BROKEN / "summary.json").exists()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["cell"] for record in records if "failure" in record] == [BROKEN]
    assert len(records) == 5
    assert records[-1]["cell"].startswith("sre2l")  # it came after the failure
    assert records[-1]["label_bytes"] > records[-1]["image_bytes"] / 256


@pytest.mark.slow
def test_soft_labels_of_a_true_table_are_noted(table):
    workdir, *_ = table
    summary = read(workdir / "cells" / "sre2l_one-segment_ipc4_seed0" / "summary.json")
    soft, hard = summary["table"]
    assert soft["set"] == "soft labels"
    note = " ".join((workdir / "table.md").read_text().split("- SRe2L at")[1].split())
    assert f"images {10 * 4 * 64:,} bytes, labels {soft['label_bytes']:,} bytes" in note
    assert note.endswith(f"hard labels {100 * hard['mean']:.1f}.")


@pytest.mark.slow
def test_finished_cells_are_not_run_again(table):
    workdir, printed, document, start = table
    cells = workdir / "cells"
    finished = [path for path in cells.iterdir() if path.name != BROKEN]
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for folder in finished
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert len(before) > 20
    # What a cell says is believed, even where it is not what a run would give.
    marked = cells / "random_ipc4_seed0" / "summary.json"
    summary = read(marked)
    summary["table"][1]["mean"] = 0.123
    marked.write_text(json.dumps(summary))
    del before[marked]
    shutil.rmtree(cells / BROKEN)
    document.write_text(document.read_text() + "after\n")

    again = start()
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before}
    assert (cells / BROKEN / "config.json").exists()  # this one was tried again
    rows, earlier = (rows_of(text)[4] for text in (again, printed))
    assert rows.pop("Full")[0].startswith("12.3 ± ")
    del earlier["Full"]
    assert rows == earlier
    text = (workdir / "table.md").read_text()
    expected = "before\n\n" + section("matchers: digits", text) + "after\n"
    assert document.read_text() == expected


@pytest.mark.slow
def test_a_table_of_other_settings_is_another_table(table, tmp_path):
    workdir, *_ = table
    other = changed(tiny_table(tmp_path / "results.md"), {"evaluate.steps": 5})
    with pytest.raises(UserError, match=r"differs in evaluate\.steps; use another"):
        run.run(other, str(workdir))
