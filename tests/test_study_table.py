"""The rows of a study: their file, differences of pairs, and the printed table."""

import numpy as np
import pytest

from dasm_jax.errors import UserError
from dasm_jax.experiments.study_rows import (
    Row,
    changes_of,
    from_csv,
    read,
    to_csv,
)
from dasm_jax.experiments.study_table import (
    entries_of,
    panels_of,
    prefix_notes,
    render_markdown,
    render_text,
    summary_of,
    tables_of,
)
from tests.test_study import _small_data, start  # noqa: F401  (fixtures)

# --- rows -----------------------------------------------------------------------------


def row(arm="a", ipc=2, seed=0, network=1, accuracy=0.5, **more):
    given = {"setup": "d 8px; n; 6 steps; test; 1a2b", "changes": "", "made_as": ipc}
    given |= {"flops": 2e9, "commit": "abc", "date": "2026-01-02"}
    return Row(
        arm=arm, ipc=ipc, seed=seed, network=network, accuracy=accuracy, **given | more
    )


def test_rows_survive_the_file():
    rows = [
        row(changes="dasm.rho=0.1", accuracy=0.51234),
        row(seed=1, network=0, accuracy=0.0, failure='it "failed", so'),
    ]
    assert from_csv(to_csv(rows), "x") == rows


def test_an_arm_is_told_by_the_one_it_adds_to():
    given = {
        "two": "dasm.rho=0.1 dasm.high=0.9",
        "three": "dasm.rho=0.1 dasm.high=0.9 dasm.gamma=2",
        "four": "dasm.gamma=2 dasm.rho=0.1 dasm.high=0.9 ipc=3",
        "five": "dasm.rho=0.1 dasm.high=0.9 dasm.gamma=2 ipc=3 seed=1",
        "other": "dasm.rho=0.2 dasm.high=0.9 dasm.gamma=2 ipc=3",
    }
    rows = [row(name, changes=changes) for name, changes in given.items()]
    assert changes_of([*rows, row("none")]) == given | {
        "four": "three with ipc=3",  # two changes are as short as a name
        "five": "four with seed=1",
    }


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: "",
        lambda t: "x" + t,
        lambda t: t.replace("0.5,", "nan,"),
        lambda t: t.replace("0.5,", "1.5,"),
        lambda t: t.replace("0.5,", "-1,"),
        lambda t: t.replace("0.5,", "x,"),
        lambda t: t.replace(",2,", ","),
        lambda t: t + "a,b\n",
        lambda t: t + '"',
        lambda t: t.replace("abc", "\0"),
        lambda t: t + "9" * 200_000,
        lambda t: t.replace(",1,0.5", ",0,0.5"),
        lambda t: t.replace("; test", ""),
    ],
)
def test_a_damaged_file_is_one_line(damage, tmp_path):
    path = tmp_path / "cells.csv"
    path.write_text(damage(to_csv([row()]).decode()))
    if path.read_text() == to_csv([row()]).decode().replace("abc", "\0"):
        assert read([path])[0].commit == "\0"  # newer Pythons read it
        return
    with pytest.raises(UserError, match=r"cells\.csv") as caught:
        read([path])
    assert "\n" not in str(caught.value)


def test_files_are_put_together(tmp_path):
    one, two, three = (tmp_path / f"{n}.csv" for n in "123")
    failed = row("b", network=0, accuracy=0.0, failure="oh")
    one.write_bytes(to_csv([row(), failed]))
    two.write_bytes(to_csv([row(accuracy=0.25), row("b", accuracy=0.75)]))
    assert [(r.arm, r.accuracy) for r in read([one, two])] == [("a", 0.5), ("b", 0.75)]
    three.write_bytes(to_csv([row(setup="d 8px; n; 7 steps; test; 1a2b")]))
    with pytest.raises(UserError, match=r"3\.csv is of .*7 steps"):
        read([one, three])
    three.write_bytes(to_csv([row(changes="dasm.rho=0.1")]))
    with pytest.raises(UserError, match=r"arm 'a' has the changes 'dasm\.rho=0\.1'"):
        read([one, three])
    with pytest.raises(UserError, match="cannot read"):
        read([tmp_path / "none.csv"])
    with pytest.raises(UserError, match="no rows"):
        read([])


# --- tables ---------------------------------------------------------------------------


def arm_rows(arm, values, **more):
    """Rows of accuracies [seed][network]."""
    return [
        row(arm, seed=s, network=n, accuracy=value, **more)
        for s, networks in enumerate(values)
        for n, value in enumerate(networks, start=1)
    ]


BASE = [[0.5, 0.51], [0.6, 0.61], [0.4, 0.41]]
ROWS = [
    *arm_rows("base", BASE),
    *arm_rows("better", [[0.53, 0.53], [0.62, 0.63], [0.42, 0.44]]),
    *arm_rows("same", [[0.52, 0.5], [0.58, 0.61], [0.41, 0.4]]),
    *arm_rows("full", [[0.9, 0.9]] * 3, ipc=0),
    row("bad", network=0, accuracy=0.0, failure="it | failed"),
]


def test_a_difference_is_paired_and_said():
    # Seeds differ by ten points, and the pairs by two: unpaired it would not be seen.
    (table,) = tables_of(ROWS, ("base",))
    said = {line.entry.arm: line.against["base"].text for line in table.lines}
    assert said["base"] == "baseline"
    assert said["better"] == "+2.3 [1.6, 3.1]"
    # A number in any case: what is not seen may be large all the same.
    assert said["same"] == "-0.2 [-2.1, 1.7], no difference seen"
    assert said["full"].startswith("+39.5 [")


def test_the_figure_shows_what_the_table_says():
    (table,), panels = tables_of(ROWS, ("base",)), panels_of(ROWS, "base")
    shown = panels["IPC 2"]
    for line in table.lines:
        found = line.against["base"].found
        if found is not None and line.entry.arm != "full":
            _, low, high = shown[line.entry.arm]
            assert found.seen == (not low <= 0 <= high)


def test_a_baseline_that_matches_nothing_has_no_ratios():
    rows = [row._replace(flops=0.0 if row.arm == "base" else 2.0) for row in ROWS]
    (table,) = tables_of(rows, ("base",))
    assert {line.ratio for line in table.lines} == {None}
    assert "| better |" in render_markdown(rows, ("base",))


def test_pairs_need_the_same_seed_and_network():
    rows = [r for r in ROWS if not (r.arm == "better" and r.seed == 1)]
    (table,) = tables_of(rows, ("base",))
    line = next(line for line in table.lines if line.entry.arm == "better")
    found = line.against["base"].found
    assert found.seeds == 2
    assert found.mean == pytest.approx(0.025)
    one = [r for r in ROWS if r.seed == 0]
    (table,) = tables_of(one, ("base",))
    line = next(line for line in table.lines if line.entry.arm == "better")
    assert line.against["base"].text == "+2.5 (one seed)"


def test_the_markdown_holds_all():
    text = render_markdown(ROWS, ("base",))
    flat = " ".join(text.split())
    assert "| IPC 2 | accuracy | against base | FLOPs | seconds |" in text
    assert "| base | 50.5 ± 10.0 | baseline | 1.000 | 0 |" in text
    assert "| same | 50.3 ± 9.5 | -0.2 [-2.1, 1.7], no difference seen |" in text
    assert "Test accuracy in %, mean ± std over seeds (0, 1, 2)" in flat
    assert "bad, IPC 2, seed 0 failed: it &#124; failed" in flat
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "+2.3 [1.6, 3.1]" in render_text(ROWS, ("base",))


def test_means_and_spread_are_over_seeds():
    entry = entries_of(ROWS)[0]
    assert entry.mean == pytest.approx(np.mean(BASE))
    assert entry.std == pytest.approx(np.std(np.mean(BASE, axis=1), ddof=1))
    assert entries_of(ROWS[:2])[0].std == pytest.approx(np.std(BASE[0], ddof=1))


def test_prefixes_stand_beside_runs_made_for_their_size():
    prefix = arm_rows("base", np.subtract(BASE, 0.05).tolist(), made_as=4)
    (note,) = prefix_notes([*ROWS, *prefix])
    assert note == "base, first 2 of 4, against base made for it: -5.0 [-5.0, -5.0]"
    (table,) = tables_of([*ROWS, *prefix], ("base",))
    labels = [line.entry.label for line in table.lines]
    assert "base, first 2 of 4" in labels
    summary = summary_of([*ROWS, *prefix], ("base",))
    line = next(x for x in summary["table"] if x["set"] == "base, first 2 of 4")
    assert line["difference"] == pytest.approx(-0.05)
    # Of any arm, and with numbers where no difference is seen.
    own = np.add(BASE, [[0.03], [0.0], [-0.02]]).tolist()
    rows = [*ROWS, *prefix, *arm_rows("same", own, made_as=4)]
    said = dict(note.split(" made for it: ") for note in prefix_notes(rows))
    assert said["same, first 2 of 4, against same"] == (
        "+0.5 [-5.2, 6.2], no difference seen"
    )
    shown = {x["set"]: x for x in summary_of(rows, ("base",))["table"]}
    assert "against_made_for_it" not in shown["same"]
    kept = shown["same, first 2 of 4"]["against_made_for_it"]
    assert kept["difference"] == pytest.approx(0.005)
    assert (kept["seen"], kept["low"] < 0 < kept["high"]) == (False, True)


@pytest.mark.parametrize("polish", ["0.0", "0.5"])
def test_what_prefixes_of_a_polish_cost_is_said(polish):
    changes = f"dasm.rho=0.1 dasm.polish={polish} dasm.polish_rate=1.0"
    whole = arm_rows("moved", BASE, ipc=4, changes=changes)
    first = arm_rows("moved", BASE, made_as=4, changes=changes)
    note = "moved: its prefixes exist only after the polish of the whole set"
    for render in (render_text, render_markdown):
        text = " ".join(render([*ROWS, *whole, *first], ("base",)).split())
        assert (note in text) == (polish == "0.5")
        assert note not in " ".join(render([*ROWS, *whole], ("base",)).split())


def test_every_baseline_has_a_column():
    both = ("base", "better")
    text = render_markdown(ROWS, both)
    assert "| IPC 2 | accuracy | against base | against better | FLOPs |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert "| base | 50.5 ± 10.0 | baseline | -2.3 [-3.1, -1.6] | 1.000 |" in text
    assert "| better | 52.8 ± 9.8 | +2.3 [1.6, 3.1] | baseline | 1.000 |" in text
    assert "Difference to base and to better in points" in " ".join(text.split())
    # A terminal has room for one of them at a time.
    shown = render_text(ROWS, both)
    assert "IPC 2, against base\n" in shown
    assert "IPC 2, against better\nbase    50.5 ± 10.0  -2.3 [-3.1, -1.6]\n" in shown
    # The first one is as if it were alone, in the file that programs read as well.
    alone, summary = summary_of(ROWS, ("base",)), summary_of(ROWS, both)
    for one, line in zip(alone["table"], summary["table"], strict=True):
        further = line.pop("against", {})
        assert line == one
        # The full set is in every table, and in none of them alone.
        assert ("better" in further) == (one["set"] not in ("better", "Full"))
    base = summary_of(ROWS, both)["table"][0]
    assert "difference" not in base
    assert base["against"]["better"]["difference"] == pytest.approx(-0.0233, abs=1e-4)


def test_the_baseline_must_be_there(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_bytes(to_csv(ROWS))
    for baseline in ("one", "base, one"):
        with pytest.raises(UserError, match=r"study\.baseline='one' is no arm of"):
            start(tmp_path / "x", study__rows=str(path), study__baseline=baseline)
