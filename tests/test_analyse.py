"""Measures of finished runs side by side: rows, tables, figures."""

import json

import numpy as np
import pytest

from dasm_jax import run
from dasm_jax.experiments import analysis_table, common
from dasm_jax.experiments.analysis_rows import read_csv, rows_of, to_csv
from dasm_jax.settings import from_config
from tests.analysis_cases import (
    RISING,
    finished,
    lines_of,
    measures,
    start,
    two_of_each,
)
from tests.small import small_config, small_dataset


@pytest.fixture
def four(tmp_path):
    return two_of_each(tmp_path)


def test_rows_hold_what_the_files_hold(four):
    rows = rows_of(four)
    assert {(row.run, row.seed) for row in rows} == {
        (n, s) for n in "AB" for s in (0, 1)
    }
    (found,) = {
        row.values
        for row in rows
        if row.quantity == "gradient_norm_share_by_decile.trained"
    }
    assert found == tuple(RISING)
    by_place = {
        (row.segment, row.ipc): row.values
        for row in rows
        if row.run == "A" and row.quantity == "diversity_of_union"
    }
    assert by_place == {(1, 2): (3.0,), (2, 4): (4.0,)}
    accuracies = {
        (row.quantity, row.ipc): row.values
        for row in rows
        if row.run == "B" and row.seed == 1 and row.quantity == "accuracy"
    }
    assert {place: value for place, (value,) in accuracies.items()} == pytest.approx(
        {("accuracy", 2): 0.622, ("accuracy", 4): 0.722}
    )
    assert {row.commit for row in rows} == {"1234567+dirty"}
    assert {row.date for row in rows} == {"2026-11-22"}


def test_shares_of_the_easier_half(tmp_path):
    pools = [[0.0] * 3 + [1.0] * 6 + [0.5], [0.5] * 5 + [1.0] * 5]
    folders = [
        finished(
            tmp_path / str(seed),
            seed,
            records=[measures(1), measures(2, pool_share_by_decile=pool)],
        )
        for seed, pool in enumerate(pools)
    ]
    rows = rows_of({"A": folders})
    _, second = analysis_table.segments_of(rows)
    cells = {head: value(second) for head, value, _ in analysis_table.COLUMNS}
    carried = [np.array(RISING) * pool for pool in pools]
    wanted = [100 * each[:5].sum() / each.sum() for each in carried]
    assert cells["gradient in pool"] == pytest.approx(wanted)
    assert cells["pool"] == pytest.approx([100 * 2 / 6.5, 100 * 2.5 / 7.5])
    assert cells["gradient, matched"] == pytest.approx([100 * 15 / 55] * 2)
    assert cells["gradient, fresh"] == pytest.approx([50, 50])
    assert cells["set"] == pytest.approx([50, 50])
    assert cells["pool CE"] == [1.0, 1.0]
    markdown = analysis_table.render_markdown(rows)
    row = next(line for line in markdown.splitlines() if line.startswith("| 2 A "))
    mean, std = np.mean(wanted), np.std(wanted, ddof=1)
    assert row.split(" | ")[1:5] == [
        "50.0 ± 0.0",
        "27.3 ± 0.0",
        "32.1 ± 1.8",
        f"{mean:.1f} ± {std:.1f}",
    ]
    panels = analysis_table.bias_panels(rows)
    held = dict(panels["% held by the pool"]["2 A"])
    assert held == pytest.approx(dict(enumerate(50 * np.sum(pools, axis=0), start=1)))
    lines = analysis_table.diversity_lines(rows)
    assert lines["A"] == [(2, 3.0), (4, 4.0)]


def test_gains_are_paired_by_seed(four, tmp_path):
    # Another seed that only one of them has does not count.
    four["B"].append(finished(tmp_path / "b2", 2, 0.1))
    (gain,) = analysis_table.gains(rows_of(four))
    assert (gain.run, gain.first, gain.ipc, gain.seeds) == ("B", "A", 4, 2)
    assert gain.overall.mean == pytest.approx(0.021)
    means = [found.mean for found in gain.deciles]
    assert means == pytest.approx([0.021] * 9 + [0.0105])
    assert gain.deciles[0].seen
    text = analysis_table.render_text(rows_of(four))
    # Student's interval of 2.0 and 2.2; of 80 and 70 to 82 and 72 it would hold zero.
    assert "  decile 1    +2.1 [0.8, 3.4]" in text
    assert "B − A, IPC 4 (2 seeds)" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "1 A (2 seeds)" in text


def test_gains_are_of_sets_of_one_size(four, tmp_path):
    path = four["B"][0] / "summary.json"
    summary = json.loads(path.read_text())
    summary["table"][2]["ipc"] = 40
    path.write_text(json.dumps(summary))
    (gain,) = analysis_table.gains(rows_of(four))
    assert (gain.ipc, gain.seeds) == (4, 1)  # of the other seed
    for folder in four["B"]:
        (folder / "summary.json").write_text(
            (folder / "summary.json").read_text().replace('"ipc": 4,', '"ipc": 41,')
        )
    (gain,) = analysis_table.gains(rows_of(four))
    assert (gain.ipc, gain.seeds) == (2, 2)


def test_what_is_undefined_is_a_dash(four):
    for folder in [*four["A"], *four["B"]]:
        path = folder / "summary.json"
        summary = json.loads(path.read_text())
        summary["measures"][1] |= {
            "diversity": None,
            "set_share_by_decile": [None] * 10,
            "pool_share_by_decile": [0.0] * 10,
        }
        summary["table"][2]["accuracy_by_decile"][4] = None
        path.write_text(json.dumps(summary))
    rows = rows_of(four)
    lines = analysis_table.render_markdown(rows).splitlines()
    row = next(line for line in lines if line.startswith("| 2 A ")).split(" | ")
    assert [i for i, cell in enumerate(row) if cell == "–"] == [3, 4, 5, 8]
    assert row[-1] == "4.00 ± 0.00 |"  # as many random images
    assert "| decile 5 | – |" in lines
    assert analysis_table.bias_panels(rows)["% of the segment’s images"]["2 A"] == []
    assert "decile 5" not in analysis_table.gain_panels(rows)["B − A, IPC 4"]
    (gain,) = analysis_table.summary_of(rows)["gains"]
    assert gain["decile 5"] is None
    assert gain["all images"]["mean"] == pytest.approx(0.021)
    json.dumps(analysis_table.summary_of(rows), allow_nan=False)


def test_tables_come_from_the_rows_alone(four, tmp_path):
    text = start(tmp_path / "one", analyse__runs=lines_of(four))
    one = tmp_path / "one"
    again = start(tmp_path / "two", analyse__rows=str(one / "rows.csv"))
    two = tmp_path / "two"
    for name in ("rows.csv", "table.md", "bias.png", "diversity.png", "gains.png"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert text.split("wrote")[0] == again.split("wrote")[0]
    assert (one / "report.html").exists()
    rows = read_csv(one / "rows.csv")
    assert to_csv(rows) == (one / "rows.csv").read_text()


def test_a_section_of_a_document(four, tmp_path):
    document = tmp_path / "analysis.md"
    document.write_text("# Mine\n")
    for _ in range(2):  # renewed, not repeated
        start(
            tmp_path / "x",
            analyse__runs=lines_of(four),
            analyse__document=str(document),
        )
    text = document.read_text()
    assert text.startswith("# Mine\n")
    assert text.count("| 1 A |") == 1
    names = {path.name for path in (tmp_path / "analysis").iterdir()}
    pictures = {
        f"analysis__digits_{name}.png" for name in ("bias", "diversity", "gains")
    }
    assert names == {"analysis__digits_rows.csv", *pictures}
    for name in names:
        assert f"(analysis/{name})" in text


@pytest.mark.slow
def test_true_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
    lines, summaries = [], []
    for name, segments in (("IDC", 1), ("DASM", 2)):
        made = small_config(
            network__depth=1,
            measure__networks=1,
            evaluate__networks=1,
            evaluate__prefixes=False,
            dasm__segments=segments,
        )
        run.run(from_config(made), str(tmp_path / name))
        lines.append(f"{name}: {tmp_path / name}")
        summaries.append(json.loads((tmp_path / name / "summary.json").read_text()))
    # Settings that it does not read are not looked at.
    start(tmp_path / "shown", analyse__runs=tuple(lines), dasm__segments=20)
    rows = read_csv(tmp_path / "shown" / "rows.csv")
    found = {
        row.segment: row.values
        for row in rows
        if row.run == "DASM" and row.quantity == "diversity"
    }
    for record in summaries[1]["measures"]:
        assert found[record["segment"]] == pytest.approx((record["diversity"],))
    (gain,) = analysis_table.gains(rows)
    idc, dasm = (summary["table"][0]["mean"] for summary in summaries)
    assert gain.overall.mean == pytest.approx(dasm - idc, abs=1e-5)
