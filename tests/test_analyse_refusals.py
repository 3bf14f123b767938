"""What an analysis refuses: in one line that names the field, the file or the run."""

import json

import pytest

from dasm_jax.experiments.analysis_rows import rows_of, to_csv
from tests.analysis_cases import finished, lines_of, measures, refused, two_of_each


@pytest.fixture
def four(tmp_path):
    return two_of_each(tmp_path)


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

    def other(name, **changes):
        return finished(tmp_path / name, 2, **changes)

    refuses(finished(tmp_path / "twice", 1), "'A' with seed 1", "leave one of them out")
    refuses(other("steps", config={"evaluate.steps": 7}), "differ in evaluate.steps")
    refuses(other("images", data_hash="other"), "differ in data_hash")
    rho = other("rho", config={"dasm.rho": 0.1})
    refuses(rho, "differ in dasm.rho", "'A', differ in their seed alone")
    curve = other("curve", config={"experiment": "curve"})
    refuses(curve, "has measured nothing", "config.measure.networks")
    refuses(other("diverged", records=[]), "has measured nothing", "diverged")
    # What changes no number may differ.
    same = other("same", config={"evaluate.prefixes": False, "data.data_dir": "x"})
    rows_of({"A": [*four["A"], same]})


def test_seeds_that_are_judged_alike(four, tmp_path):
    four["A"].append(finished(tmp_path / "c", 2, config={"evaluate.seed": 1}))
    says = "config.evaluate.seed=1", "must differ with the seed"
    refused(tmp_path / "x", *says, analyse__runs=lines_of(four))


def test_runs_of_one_seed_are_judged_by_one_ruler(four, tmp_path):
    four["C"] = [finished(tmp_path / "c", 0, config={"evaluate.seed": 7})]
    refused(
        tmp_path / "x", "config.evaluate.seed=7 and 0", analyse__runs=lines_of(four)
    )


ODD = [
    ({"diversity": [1, 2]}, "summary.json is missing"),
    ({"diversity": [0.1] * 10}, "summary.json is missing"),
    ({"diversity": "1"}, "summary.json is missing"),
    ({"diversity": True}, "summary.json is missing"),
    ({"diversity": 10**400}, "summary.json is missing"),
    ({"diversity": float("inf")}, "summary.json is missing"),
    ({"set_share_by_decile": 0.5}, "summary.json is missing"),
    ({"segment": 1.5}, "summary.json is missing"),
    ({"segment": 2}, "summary.json is missing"),
    ({"gradient_norm_share_by_decile": 3}, "summary.json is missing"),
]


@pytest.mark.parametrize(("change", "says"), ODD)
def test_a_summary_that_holds_something_else(tmp_path, change, says):
    records = [measures(1) | change, measures(2)]
    odd = finished(tmp_path / "odd", records=records)
    refused(tmp_path / "x", says, str(odd), analyse__runs=(f"A: {odd}",))


def test_files_that_hold_something_else(tmp_path):
    def refuses(folder, *parts):
        refused(tmp_path / "x", *parts, analyse__runs=(f"A: {folder}",))

    torn = finished(tmp_path / "torn")
    (torn / "manifest.json").write_text("{")
    refuses(torn, "manifest.json is missing")
    many = finished(tmp_path / "many", config={"dasm.segments": 10**10})
    refuses(many, "summary.json is missing")
    refuses(
        finished(tmp_path / "seed", config={"seed": [0]}),
        "config.json is missing or damaged",
    )
    sure = finished(tmp_path / "sure")
    summary = json.loads((sure / "summary.json").read_text())
    for field, value in (("split", []), ("split", 3)):
        (sure / "summary.json").write_text(json.dumps(summary | {field: value}))
        refuses(sure, "summary.json is missing")
    summary["table"][0]["mean"] = None
    (sure / "summary.json").write_text(json.dumps(summary))
    refuses(sure, "summary.json is missing")
    refuses(
        finished(tmp_path / "device", devices=[3]),
        "manifest.json is missing or damaged",
    )
    text = finished(tmp_path / "text")
    summary = (text / "summary.json").read_text()
    (text / "summary.json").write_text(summary.replace('"test"', '"\\ud800"'))
    refuses(text, "summary.json is missing")


def test_a_run_of_an_earlier_version(tmp_path):
    records = [measures(1), measures(2)]
    del records[1]["set_share_by_decile"]
    old = finished(tmp_path / "old", records=records)
    refused(
        tmp_path / "x",
        "'A' with seed 0 has no set_share_by_decile in segment 2",
        "run it again",
        analyse__runs=(f"A: {old}",),
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (",1,2,diversity,3,", ",1,2,diversity,3 4,"),
        (",1,2,diversity,3,", ",1,2,diversity,x,"),
        (",1,2,diversity,3,", ",1,diversity,3,"),
        (",1,2,diversity,3,", ",one,2,diversity,3,"),
        ("digits,", "other,"),
        ("set_difficulty_mean", "diversity"),
        ("dataset,network", "network,dataset"),
    ],
)
def test_a_damaged_file_of_rows(four, tmp_path, old, new):
    text = to_csv(rows_of(four))
    assert old in text
    path = tmp_path / "rows.csv"
    path.write_text(text.replace(old, new, 1))
    says = {"dataset,network": "first line", "digits,": "several setups"}.get(
        old, "has no" if old.startswith("set_") else "is damaged"
    )
    refused(tmp_path / "x", says, str(path), analyse__rows=str(path))


def test_rows_that_are_missing_or_there_twice(four, tmp_path):
    lines = to_csv(rows_of(four)).splitlines(keepends=True)
    path = tmp_path / "rows.csv"

    def refuses(kept, says):
        path.write_text("".join(kept))
        refused(tmp_path / "x", says, "'A' with seed 0", analyse__rows=str(path))

    refuses([*lines, lines[1]], "segment 1 twice")
    without = [line for line in lines if "A,0,1," not in line]
    refuses(without, "lacks segments")
    refuses([line for line in lines if "A,0,0," not in line], "lacks segments, or")


def test_an_analysis_needs_a_name(tmp_path):
    refused(tmp_path / "x", "config.analyse.name is empty", analyse__name=" ")


def test_no_file_of_rows(tmp_path):
    path = tmp_path / "rows.csv"
    refused(tmp_path / "x", "cannot read", analyse__rows=str(path))
    path.write_text(to_csv([]))
    refused(tmp_path / "x", "there are no rows", analyse__rows=str(path))
