"""The table of matchers: which cells it has, how it is printed, and a true one."""

import json
import os
import re
import shutil

import jax
import numpy as np
import pytest

from dasm_jax import run
from dasm_jax.errors import UserError
from dasm_jax.experiments import common, compare
from dasm_jax.experiments.compare import cell_settings, cells_of, run_cell
from dasm_jax.experiments.compare_table import render, renew_section
from dasm_jax.settings import changed, from_config
from tests.small import small_config, small_dataset

MATCHERS = ("idc", "dc", "dsa", "dm", "cafe", "mtt")


def settings_with(**changes):
    return from_config(small_config(**{"experiment": "compare", **changes}))


# --- cells ----------------------------------------------------------------------------


def kinds(cells):
    return [(cell.row, cell.column, cell.ipc, cell.seed) for cell in cells]


def test_every_matcher_alone_and_under_dasm_and_what_stands_beside():
    s = settings_with(compare__ipcs=(6, 4), compare__seeds=(3, 1))
    expected = [
        (row, column, ipc, seed)
        for seed in (3, 1)
        for ipc in (4, 6)  # the cheap ones first
        for row, column in [
            ("Random", ""),
            *(
                (name.upper(), column)
                for name in MATCHERS
                for column in ("one segment", "DASM")
            ),
            ("SeqMatch", "DASM"),
            ("SRe2L", "one segment"),
        ]
    ]
    cells = cells_of(s)
    assert kinds(cells) == expected
    assert len({cell.folder for cell in cells}) == len(expected)
    assert all(re.fullmatch(r"[a-z0-9_-]+", cell.folder) for cell in cells)
    experiments = {cell.row: cell.experiment for cell in cells}
    assert experiments.pop("Random") == "baselines"
    assert experiments.pop("SRe2L") == "recover"
    assert set(experiments.values()) == {"distill"}


def test_only_the_matchers_asked_for():
    s = settings_with(
        compare__matchers=("mtt", "dm"), compare__ipcs=(4,), compare__seeds=(0,)
    )
    rows = [row for row, *_ in kinds(cells_of(s))]
    assert rows == ["Random", "MTT", "MTT", "DM", "DM", "SeqMatch", "SRe2L"]


def test_settings_of_the_cells():
    s = settings_with(
        dasm__segments=3,
        matcher__name="cafe",
        dasm__pool="static_filter",
        compare__ipcs=(4, 6),
        compare__seeds=(0, 7),
    )
    for cell in cells_of(s):
        of_cell = cell_settings(s, cell)
        assert (of_cell.ipc, of_cell.seed) == (cell.ipc, cell.seed)
        experiment = "recover" if cell.row == "SRe2L" else "distill"
        assert of_cell.experiment == experiment
        if cell.experiment == "distill":
            segments = 1 if cell.column == "one segment" else 3
            assert of_cell.dasm.segments == segments
            name = "idc" if cell.row == "SeqMatch" else cell.row.lower()
            assert of_cell.matcher.name == name
        if cell.row not in ("SeqMatch", "SRe2L", "Random"):
            assert of_cell.dasm.pool == "static_filter"
            assert of_cell.dasm.context == "active"
            assert of_cell.matcher.dm == s.matcher.dm
            assert of_cell.matcher.idc == s.matcher.idc
            assert not of_cell.matcher.active.needs_segment_networks


def test_seqmatch_has_segments_but_no_difficulty():
    s = settings_with(dasm__segments=2, matcher__name="dm")
    cell = next(cell for cell in cells_of(s) if cell.row == "SeqMatch")
    of_cell = cell_settings(s, cell)
    assert of_cell.dasm.segments == 2
    assert of_cell.dasm.pool == "full"
    assert of_cell.dasm.context == "cumulative"
    assert of_cell.matcher.name == "idc"
    assert of_cell.matcher.idc.trajectory.start == "segments"
    assert of_cell.matcher.active.needs_segment_networks
    # Otherwise it is IDC as it stands.
    assert of_cell.matcher.idc.image == s.matcher.idc.image
    assert of_cell.matcher.idc.loop == s.matcher.idc.loop


def test_all_cells_are_evaluated_alike():
    s = settings_with(compare__ipcs=(4, 6), compare__seeds=(5, 7), evaluate__seed=9)
    evaluations = {}
    for cell in cells_of(s):
        of_cell = cell_settings(s, cell)
        evaluations.setdefault(cell.seed, set()).add(of_cell.evaluate)
        assert of_cell.evaluate.seed == cell.seed
        assert not of_cell.evaluate.prefixes
        assert not of_cell.evaluate.baselines
        assert of_cell.evaluate.recipe == s.evaluate.recipe
        assert of_cell.evaluate.steps == s.evaluate.steps
        assert (of_cell.data, of_cell.network) == (s.data, s.network)
    assert {seed: len(found) for seed, found in evaluations.items()} == {5: 1, 7: 1}


def test_a_table_that_does_not_hold_together_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "ProcessPoolExecutor", None)  # calling it would fail
    with pytest.raises(UserError, match=r"config\.ipc=1 is smaller"):
        run.run(settings_with(compare__ipcs=(4, 1)), str(tmp_path))
    assert not (tmp_path / "config.json").exists()


# --- the printed table ----------------------------------------------------------------


def result(mean, std=0.001, seconds=10.0, peak=1e8, **more):
    return {
        "mean": mean,
        "std": std,
        "seconds": seconds,
        "peak_bytes": peak,
        "commit": "abc1234",
        "date": "2026-01-02",
        "device": "2 cores, cpu: cpu",
        **more,
    }


def cells_named(s, row, column, ipc=4):
    return [
        cell
        for cell in cells_of(s)
        if (cell.row, cell.column, cell.ipc) == (row, column, ipc)
    ]


def results_of(s):
    """A made-up result for every cell: everything beats Random."""
    results = {}
    for cell in cells_of(s):
        more = {}
        if cell.row == "Random":
            more = {"full_mean": 0.99, "full_std": 0.002}
        if cell.row == "SRe2L":
            more = {"label_bytes": 1234567, "image_bytes": 2560, "hard_mean": 0.234}
        mean = 0.5 if cell.row == "Random" else 0.7
        results[cell] = result(mean, **more)
    return results


def put(results, cells, values):
    assert len(cells) == len(values)
    results.update(zip(cells, values))


def rows_of(text):
    """The rows of the printed tables by IPC, by their first field."""
    tables = {}
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            first, *fields = [field.strip() for field in line.strip("|").split("|")]
            if first.startswith("IPC "):
                tables[int(first[4:])] = table = {"": fields}
            else:
                assert first not in table
                assert len(fields) == 4
                table[first] = fields
    return tables


def three_seeds(**changes):
    return settings_with(
        **{
            "compare__ipcs": (4,),
            "compare__seeds": (0, 1, 2),
            "compare__matchers": ("dm", "mtt"),
            **changes,
        }
    )


def test_mean_and_spread_over_seeds():
    s = three_seeds()
    results = results_of(s)
    dm = [result(m, 0.5, t, p) for m, t, p in [(0.6, 1, 1e6), (0.7, 2, 9e6)]]
    dm.append(result(0.8, 0.5, 6, 2e6))
    put(results, cells_named(s, "DM", "one segment"), dm)
    put(
        results,
        cells_named(s, "DM", "DASM"),
        [result(0.9, seconds=20.4, peak=30.6e6) for _ in range(3)],
    )
    random = [(0.1, 0.98), (0.2, 0.99), (0.3, 1.0)]
    put(
        results,
        cells_named(s, "Random", ""),
        [result(m, full_mean=f, full_std=0.5) for m, f in random],
    )
    text = render(s, results)
    (table,) = rows_of(text).values()
    assert table[""] == ["one segment", "DASM, 2 segments", "seconds", "peak MB"]
    # mean 0.7, sample deviation 0.1; mean of 1, 2, 6 s; the largest peak
    assert table["DM"] == ["70.0 ± 10.0", "90.0 ± 0.0", "3 / 20", "9 / 31"]
    assert table["Random"] == ["20.0 ± 10.0", "", "", ""]
    assert table["Full"] == ["99.0 ± 1.0", "", "", ""]
    assert list(table) == ["", "DM", "MTT", "SeqMatch", "SRe2L", "Random", "Full"]
    assert table["SeqMatch"][:2] == ["", "70.0 ± 0.0"]
    assert table["SRe2L"][:2] == ["70.0 ± 0.0", ""]
    head = " ".join(text.split("\n\n")[0].split())
    assert "mean ± std over seeds; seeds 0, 1, 2, 2 networks of 6 steps each" in head
    assert "digits, f = 1, convnet of width 4 and depth 2" in head
    assert "2026-01-02, 2 cores, cpu: cpu, commit abc1234." in head


def test_spread_of_one_seed_is_over_networks():
    s = three_seeds(compare__seeds=(4,), evaluate__networks=5)
    results = results_of(s)
    put(results, cells_named(s, "MTT", "DASM"), [result(0.61, std=0.023)])
    put(results, cells_named(s, "DM", "DASM"), [result(0.61, std=None)])
    text = render(s, results)
    assert rows_of(text)[4]["MTT"][1] == "61.0 ± 2.3"
    assert rows_of(text)[4]["DM"][1] == "61.0"
    assert rows_of(text)[4]["Full"][0] == "99.0 ± 0.2"
    assert "± std over 5 networks; seeds 4," in " ".join(text.split())


def test_commits_and_days_of_all_cells_are_named():
    s = three_seeds()
    results = results_of(s)
    first, second, *_ = results
    results[first] |= {"commit": "fedcba9+dirty", "date": "2026-01-01"}
    results[second] |= {"device": "1 cores, gpu: H200"}
    head = " ".join(render(s, results).split("\n\n")[0].split())
    assert "2026-01-01, 2026-01-02," in head
    assert "1 cores, gpu: H200, 2 cores, cpu: cpu," in head
    assert "commit abc1234, fedcba9+dirty." in head


@pytest.mark.parametrize(
    ("mean", "marked"), [(0.49, True), (0.5, True), (0.501, False), (0.7, False)]
)
def test_what_does_not_beat_random_is_marked(mean, marked):
    s = three_seeds(compare__ipcs=(4, 6))
    results = results_of(s)
    for cell in cells_named(s, "Random", "", 6):
        results[cell]["mean"] = 0.1  # Random of another IPC does not count
    put(results, cells_named(s, "DM", "DASM"), [result(mean)] * 3)
    table = rows_of(render(s, results))[4]
    assert table["DM"][1].endswith(" ≤ Random") == marked
    assert table["DM"][1].startswith(f"{100 * mean:.1f} ± 0.0")
    others = [field for row in table.values() for field in row[:2]]
    assert sum("Random" in field for field in others) == marked


def test_every_ipc_has_a_table_of_its_own():
    s = three_seeds(compare__ipcs=(6, 4))
    results = results_of(s)
    put(results, cells_named(s, "MTT", "DASM", 6), [result(0.81)] * 3)
    put(results, cells_named(s, "MTT", "DASM", 4), [result(0.82)] * 3)
    tables = rows_of(render(s, results))
    assert list(tables) == [4, 6]
    assert (tables[4]["MTT"][1], tables[6]["MTT"][1]) == ("82.0 ± 0.0", "81.0 ± 0.0")


def test_a_failed_cell_says_so_and_why():
    s = three_seeds()
    results = results_of(s)
    reason = {"failure": "segment 1: not finite; lower config.matcher.mtt.image.lr"}
    put(
        results,
        cells_named(s, "MTT", "DASM"),
        [result(0.7), reason, result(0.7)],  # the mean of two is not that of three
    )
    text = render(s, results)
    assert rows_of(text)[4]["MTT"] == ["70.0 ± 0.0", "failed", "10", "100"]
    assert rows_of(text)[4]["DM"] == [
        "70.0 ± 0.0",
        "70.0 ± 0.0",
        "10 / 10",
        "100 / 100",
    ]
    notes = [line for line in text.splitlines() if line.startswith("- ")]
    assert f"- MTT, DASM, IPC 4: {reason['failure']}" in notes
    assert sum("not finite" in note for note in notes) == 1
    assert text.index("| Full") < text.index("- MTT, DASM")


def test_a_failed_random_marks_nobody():
    s = three_seeds()
    results = results_of(s)
    put(results, cells_named(s, "Random", ""), [{"failure": "no data"}] * 3)
    table = rows_of(render(s, results))[4]
    assert table["DM"][0] == "70.0 ± 0.0"
    assert table["Random"][0] == table["Full"][0] == "failed"
    assert "Random and Full, IPC 4: no data" in render(s, results)


def test_bytes_of_soft_labels_are_noted():
    s = three_seeds(compare__ipcs=(4, 6))
    text = render(s, results_of(s))
    notes = " ".join(text[text.rindex("|") + 1 :].split())
    expected = (
        "SRe2L at IPC {} is evaluated with soft labels: images 2,560 bytes, labels "
        "1,234,567 bytes; the same images with hard labels 23.4."
    )
    assert notes == f"- {expected.format(4)} - {expected.format(6)}"


def test_bytes_are_noted_when_the_first_seed_failed():
    s = three_seeds()
    results = results_of(s)
    results[cells_named(s, "SRe2L", "one segment")[0]] = {"failure": "diverged"}
    assert "1,234,567 bytes" in " ".join(render(s, results).split())


def test_text_is_narrow_and_ends_in_one_line_break():
    s = three_seeds()
    text = render(s, results_of(s))
    assert text.endswith(".\n")
    for line in text.splitlines():
        assert len(line) <= 80
        assert line == line.rstrip()


# --- the document ---------------------------------------------------------------------


def section(name, text):
    return f"<!-- {name} -->\n{text}<!-- end of {name} -->\n"


def test_a_new_document(tmp_path):
    document = tmp_path / "results.md"
    renew_section(document, "matchers: a", "| 1 |\n")
    assert document.read_text() == section("matchers: a", "| 1 |\n")


def test_a_section_is_replaced_where_it_stands(tmp_path):
    document = tmp_path / "results.md"
    head, between, tail = "# Ü\n\ntext  \n", "\nbetween\n\n\n", "\nend without a break"
    old = head + section("a", "old\nlonger\n") + between + section("a b", "B\n") + tail
    document.write_text(old, encoding="utf-8")
    renew_section(document, "a", "new ±\n")
    expected = head + section("a", "new ±\n") + between + section("a b", "B\n") + tail
    assert document.read_text(encoding="utf-8") == expected
    renew_section(document, "a", "new ±\n")
    assert document.read_text(encoding="utf-8") == expected
    renew_section(document, "a b", "C\n")
    assert document.read_text(encoding="utf-8") == expected.replace("B\n", "C\n")


def test_a_section_is_appended_to_what_is_there(tmp_path):
    document = tmp_path / "results.md"
    document.write_text("# Title\n")
    renew_section(document, "a", "1\n")
    renew_section(document, "b", "2\n")
    expected = "# Title\n\n" + section("a", "1\n") + "\n" + section("b", "2\n")
    assert document.read_text() == expected


def test_line_breaks_around_a_section_are_left_alone(tmp_path):
    document = tmp_path / "results.md"
    document.write_bytes(b"# Title\r\n\r\ntext\r\n")
    renew_section(document, "a", "1\n")
    assert document.read_bytes().startswith(b"# Title\r\n\r\ntext\r\n")


def test_a_document_that_cannot_be_written_is_refused_ahead(tmp_path):
    (tmp_path / "file").touch()
    for document in (tmp_path / "none" / "results.md", tmp_path / "file" / "x.md"):
        s = tiny_table(document)
        with pytest.raises(UserError, match=r"config\.compare\.document"):
            compare.run(s, tmp_path)
    assert not (tmp_path / "cells").exists()


def die(*_):
    os._exit(9)


def test_a_killed_cell_does_not_end_the_table(monkeypatch):
    monkeypatch.setattr(compare, "run_cell", die)
    failure = compare._in_a_process("distill", three_seeds(), "nowhere")
    assert "killed" in failure["failure"]


def test_a_document_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*nowhere.results\.md"):
        renew_section(tmp_path / "nowhere" / "results.md", "a", "1\n")
    with pytest.raises(UserError, match="cannot read"):
        renew_section(tmp_path, "a", "1\n")
    binary = tmp_path / "binary.md"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot read"):
        renew_section(binary, "a", "1\n")
    assert binary.read_bytes() == b"\xff\xfe"


# --- one cell -------------------------------------------------------------------------


def test_a_cell_that_fails_is_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
    s = settings_with(matcher__idc__image__lr=1e38)
    cell = next(cell for cell in cells_of(s) if cell.row == "IDC")
    of_cell = cell_settings(s, cell)
    outcome = run_cell(cell.experiment, of_cell, str(tmp_path / "idc"))
    assert list(outcome) == ["failure"]
    assert "not finite" in outcome["failure"]
    (tmp_path / "file").touch()
    outcome = run_cell(cell.experiment, of_cell, str(tmp_path / "file" / "idc"))
    assert "cannot write" in outcome["failure"]


def test_a_bug_is_no_result(tmp_path, monkeypatch):
    def broken(*arguments, **keywords):
        raise RuntimeError("a bug")

    monkeypatch.setattr(common, "load_dataset", broken)
    s = settings_with()
    cell = next(cell for cell in cells_of(s) if cell.row == "DM")
    with pytest.raises(RuntimeError, match="a bug"):
        run_cell(cell.experiment, cell_settings(s, cell), str(tmp_path / "dm"))


# --- a true table ---------------------------------------------------------------------

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


def test_soft_labels_of_a_true_table_are_noted(table):
    workdir, *_ = table
    summary = read(workdir / "cells" / "sre2l_one-segment_ipc4_seed0" / "summary.json")
    soft, hard = summary["table"]
    assert soft["set"] == "soft labels"
    note = " ".join((workdir / "table.md").read_text().split("- SRe2L at")[1].split())
    assert f"images {10 * 4 * 64:,} bytes, labels {soft['label_bytes']:,} bytes" in note
    assert note.endswith(f"hard labels {100 * hard['mean']:.1f}.")


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


def test_a_table_of_other_settings_is_another_table(table, tmp_path):
    workdir, *_ = table
    other = changed(tiny_table(tmp_path / "results.md"), {"evaluate.steps": 5})
    with pytest.raises(UserError, match=r"differs in evaluate\.steps; use another"):
        run.run(other, str(workdir))
