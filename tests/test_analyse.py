"""Measures of finished runs side by side: rows, tables, figures, refusals."""

import json

import numpy as np
import pytest

from dasm_jax import run
from dasm_jax.errors import UserError
from dasm_jax.experiments import analysis_table, common
from dasm_jax.experiments.analysis_rows import read_csv, rows_of, to_csv
from dasm_jax.settings import from_config, to_dict
from tests.small import small_config, small_dataset

EVEN = [0.1] * 10
RISING = [i / 55 for i in range(1, 11)]


def measures(segment, **changes):
    return {
        "segment": segment,
        "pool_difficulty_mean": 0.5 * segment,
        "real_difficulty_mean": 0.5,
        "pool_share_by_decile": [1.0] * 10,
        "gradient_norm_share_by_decile": {"random": EVEN, "trained": RISING},
        "mean_gradient_norm_by_decile": {"random": EVEN, "trained": RISING},
        "set_difficulty_mean": 0.25,
        "set_share_by_decile": EVEN,
        "diversity": 3.0,
        "diversity_of_union": 2.0 + segment,
        "diversity_of_random": 4.0,
    } | changes


def finished(folder, seed=0, accuracy=0.8, records=None, config=None, **changes):
    """The files of a run of two segments that an analysis reads."""
    folder.mkdir()
    records = records or [measures(1), measures(2)]
    settings = to_dict(from_config(small_config(seed=seed, evaluate__seed=seed)))
    for path, value in (config or {}).items():
        group, _, field = path.rpartition(".")
        (settings[group] if group else settings)[field] = value

    def row(name, ipc, mean):
        return {
            "set": name,
            "ipc": ipc,
            "mean": mean,
            "accuracy_by_decile": [mean] * 9 + [mean / 2],
        }

    summary = {
        "dataset": "digits",
        "split": "test",
        "table": [
            row("DASM", 2, accuracy - 0.1),
            row("Random", 2, 0.5),
            row("DASM", 4, accuracy),
            row("Full", 40, 0.9),
        ],
        "measures": records,
    }
    manifest = {
        "data_hash": "abc",
        "git_commit": "1234567890+dirty",
        "date": "2026-11-22T10:00:00+0000",
        "devices": ["cpu: cpu"],
        "cpu_count": 2,
    } | changes
    for name, content in (
        ("config", settings),
        ("summary", summary),
        ("manifest", manifest),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content, default=list))
    return folder


@pytest.fixture
def four(tmp_path):
    """Two seeds of two ways of making a set; the second way is two points better."""
    return {
        "A": [finished(tmp_path / f"a{seed}", seed) for seed in (0, 1)],
        "B": [
            finished(tmp_path / f"b{seed}", seed, 0.82 + 0.002 * seed)
            for seed in (0, 1)
        ],
    }


def lines_of(folders):
    return tuple(f"{name}: {', '.join(map(str, f))}" for name, f in folders.items())


def start(workdir, **changes):
    config = small_config(experiment="analyse", **changes)
    return run.run(from_config(config), str(workdir))


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
        if row.run == "B" and row.seed == 1 and row.quantity.endswith("accuracy")
    }
    assert {place: value for place, (value,) in accuracies.items()} == pytest.approx(
        {
            ("set.accuracy", 2): 0.722,
            ("Random.accuracy", 2): 0.5,
            ("set.accuracy", 4): 0.822,
            ("Full.accuracy", 40): 0.9,
        }
    )
    assert {row.commit for row in rows} == {"1234567+dirty"}
    assert {row.date for row in rows} == {"2026-11-22"}


def test_shares_of_the_easier_half(tmp_path):
    pool = [0.0] * 3 + [1.0] * 6 + [0.5]
    folders = [
        finished(
            tmp_path / str(seed),
            seed,
            records=[measures(1), measures(2, pool_share_by_decile=pool)],
        )
        for seed in (0, 1)
    ]
    _, second = analysis_table.segments_of(rows_of({"A": folders}))
    carried = np.array(RISING) * pool
    wanted = 100 * carried[:5].sum() / carried.sum()
    cells = {
        head: (value(second), form) for head, value, form in analysis_table.COLUMNS
    }
    assert cells["in the pool"][0] == pytest.approx([wanted, wanted])
    assert cells["gradient, matched"][0] == pytest.approx([100 * 15 / 55] * 2)
    assert cells["gradient, fresh"][0] == pytest.approx([50, 50])
    assert cells["pool CE"][0] == [1.0, 1.0]
    markdown = analysis_table.render_markdown(rows_of({"A": folders}))
    row = next(line for line in markdown.splitlines() if line.startswith("| A 2 "))
    assert row.split(" | ")[1:4] == ["50.0 ± 0.0", "27.3 ± 0.0", f"{wanted:.1f} ± 0.0"]


def test_gains_are_paired_by_seed(four, tmp_path):
    # Another seed that only one of them has does not count.
    four["B"].append(finished(tmp_path / "b2", 2, 0.1))
    ((name, gains),) = analysis_table.gains(rows_of(four)).items()
    assert name == "B − A"
    assert [found.mean for found in gains[:9]] == pytest.approx([0.021] * 9)
    assert gains[9].mean == pytest.approx(0.0105)
    assert all(found.seeds == 2 for found in gains)
    assert gains[0].seen
    text = analysis_table.render_text(rows_of(four))
    # Student's interval of 2.0 and 2.2, which is wider than any bootstrap of two.
    assert "decile 1   +2.1 [0.8, 3.4]" in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_is_undefined_is_a_dash(tmp_path):
    nothing = measures(2, diversity=None, set_share_by_decile=[None] * 10)
    folder = finished(tmp_path / "one", records=[measures(1), nothing])
    rows = rows_of({"A": [folder]})
    row = analysis_table.render_markdown(rows).splitlines()[-1].split(" | ")
    assert row[4] == "–"
    assert row[7] == "–"
    panels = analysis_table.bias_panels(rows)
    assert panels["images of the segment"]["A 2"] == []
    lengths = {len(panels["held by the pool"][name]) for name in ("A 1", "A 2")}
    assert lengths == {10}


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
    assert to_csv(rows) == (one / "rows.csv").read_bytes()


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
    assert text.count("| A 1 |") == 1
    names = {path.name for path in (tmp_path / "analysis").iterdir()}
    pictures = {f"digits_{name}.png" for name in ("bias", "diversity", "gains")}
    assert names == {"digits_rows.csv", *pictures}
    for name in names:
        assert f"(analysis/{name})" in text


def test_true_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
    made = small_config(network__depth=1, measure__networks=1, evaluate__networks=1)
    run.run(from_config(made), str(tmp_path / "made"))
    start(tmp_path / "shown", analyse__runs=(f"DASM: {tmp_path / 'made'}",))
    summary = json.loads((tmp_path / "made" / "summary.json").read_text())
    rows = read_csv(tmp_path / "shown" / "rows.csv")
    found = {row.segment: row.values for row in rows if row.quantity == "diversity"}
    for record in summary["measures"]:
        assert found[record["segment"]] == pytest.approx((record["diversity"],))


# --- refusals -------------------------------------------------------------------------


def refused(workdir, *parts, **changes):
    with pytest.raises(UserError) as caught:
        start(workdir, **changes)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((), "config.analyse.runs is empty"),
        (("runs/a",), "must be a name, a colon"),
        ((": runs/a",), "must be a name, a colon"),
        (("A: , ",), "must be a name, a colon"),
        (("A: x", "A : y"), "two lines for 'A'"),
        (("A: nowhere",), "nowhere is no workdir of a finished run"),
    ],
)
def test_lines_that_name_no_runs(tmp_path, lines, says):
    refused(tmp_path / "x", says, analyse__runs=lines)
    assert not (tmp_path / "x" / "rows.csv").exists()


def test_runs_that_cannot_stand_together(four, tmp_path):
    def refuses(folder, *parts):
        lines = lines_of({"A": [*four["A"], folder]})
        refused(tmp_path / "x", *parts, analyse__runs=lines)

    refuses(finished(tmp_path / "twice", 1), "'A' with seed 1")
    steps = finished(tmp_path / "steps", 2, config={"evaluate.steps": 7})
    refuses(steps, "differ in evaluate.steps")
    images = finished(tmp_path / "images", 2, data_hash="other")
    refuses(images, "differ in data_hash")
    curve = finished(tmp_path / "curve", 2, config={"experiment": "curve"})
    refuses(curve, "has measured nothing", "config.measure.networks")
    odd = finished(
        tmp_path / "odd", 2, records=[measures(1, diversity=[1, 2]), measures(2)]
    )
    refuses(odd, "summary.json cannot be read")
    torn = finished(tmp_path / "torn", 2)
    (torn / "manifest.json").write_text("{")
    refuses(torn, "manifest.json cannot be read")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (",1,2,diversity,3,", ",1,2,diversity,3 4,"),
        (",1,2,diversity,3,", ",1,2,diversity,x,"),
        (",1,2,diversity,3,", ",1,diversity,3,"),
        (",1,2,diversity,3,", ",one,2,diversity,3,"),
        ("digits; ", "digits "),
        ("setup,run", "run,setup"),
    ],
)
def test_a_damaged_file_of_rows(four, tmp_path, old, new):
    text = to_csv(rows_of(four)).decode()
    assert old in text
    path = tmp_path / "rows.csv"
    path.write_text(text.replace(old, new, 1))
    says = "first line" if old.startswith("setup") else "is damaged"
    refused(tmp_path / "x", says, str(path), analyse__rows=str(path))


def test_no_file_of_rows(tmp_path):
    path = tmp_path / "rows.csv"
    refused(tmp_path / "x", "cannot read", analyse__rows=str(path))
    path.write_bytes(to_csv([]))
    refused(tmp_path / "x", "holds no rows", analyse__rows=str(path))
