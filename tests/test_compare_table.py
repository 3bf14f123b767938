"""How the table of matchers is printed, and put into a document."""

import pytest

from dasm_jax.experiments.compare import cells_of
from dasm_jax.experiments.compare_table import render
from dasm_jax.settings import from_config
from tests.small import small_config


def settings_with(**changes):
    return from_config(small_config(**{"experiment": "compare", **changes}))


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
