"""A study: its arms, equal budgets, cells that notice a change, tables from rows."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dasm_jax import plan, run
from dasm_jax.errors import NonFiniteError, UserError
from dasm_jax.experiments import arms, cells, common, sets, study
from dasm_jax.experiments.study_rows import Row, from_csv, read, to_csv
from dasm_jax.experiments.study_table import (
    entries_of,
    prefix_notes,
    render_markdown,
    render_text,
    summary_of,
    tables_of,
)
from dasm_jax.problem import make_problem
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


# --- arms -----------------------------------------------------------------------------


def arms_with(*lines, baseline="dasm"):
    return arms.arms_of(settings_with(study__arms=lines, study__baseline=baseline))


def test_arms_are_read_with_the_types_of_their_fields():
    found = arms_with(
        "dasm",
        "random",
        "a_b-1: dasm.rho=1 dasm.segments=2  synthetic.init=noise",
        "turns: matcher.idc.image.class_turns=true",
        "idc: matcher.idc.image.lr=1e-2",
        "as_is:",
    )
    assert [arm.changes for arm in found.values()] == [
        {},
        None,
        {"dasm.rho": 1.0, "dasm.segments": 2, "synthetic.init": "noise"},
        {"matcher.idc.image.class_turns": True},
        {"matcher.name": "idc", "dasm.segments": 1, "matcher.idc.image.lr": 0.01},
        {},
    ]
    assert type(found["a_b-1"].changes["dasm.rho"]) is float
    assert found["a_b-1"].text == "dasm.rho=1.0 dasm.segments=2 synthetic.init=noise"


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("x: dasm.rho=2", ("arm 'x'", "config.dasm.rho", "[0, 1]")),
        ("x: dasm.rho=low", ("arm 'x'", "config.dasm.rho", "float", "'low'")),
        ("x: dasm.segments=2.0", ("arm 'x'", "config.dasm.segments", "int")),
        ("x: dasm.rh=0.2", ("arm 'x'", "'config.dasm.rh'", "did you mean 'rho'")),
        ("x: dasm.pool=windw", ("arm 'x'", "dasm.pool", "did you mean 'window'")),
        ("x: dasm=2", ("arm 'x'", "config.dasm is a group")),
        ("x: matcher.idc.image.class_turns=2", ("arm 'x'", "class_turns", "bool")),
        ("x: evaluate.steps=9", ("arm 'x'", "evaluate.steps", "the same for all")),
        ("x: dasm.rho 0.2", ("arm 'x'", "field=value")),
        ("x: dasm.rho=0.2 dasm.rho=0.3", ("arm 'x'", "dasm.rho is there twice")),
        ("herding: dasm.rho=0.2", ("arm 'herding'", "selects real images")),
        ("herdin", ("arm 'herdin'", "did you mean 'herding'")),
        ("a/b: dasm.rho=0.2", ("'a/b: dasm.rho=0.2'", "name")),
        ("Full:", ("'full'", "name")),
        ("x: dasm.segments=__import__('os')", ("arm 'x'", "int")),
    ],
)
def test_a_mistake_in_an_arm_names_it_and_the_field(line, parts):
    with pytest.raises(UserError) as caught:
        arms_with("dasm", line)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_arms_and_baseline_go_together():
    for lines, baseline, message in [
        (("dasm", "x: dasm.rho=0.1", "x: dasm.rho=0.2"), "dasm", "two arms named 'x'"),
        (("dasm",), "das", "did you mean 'dasm'"),
        (("dasm", "random"), "random", "name an arm that is matched"),
    ]:
        with pytest.raises(UserError, match=message):
            arms_with(*lines, baseline=baseline)


def test_what_does_not_hold_together_names_the_arm(tmp_path):
    with pytest.raises(UserError, match=r"arm 'x' .*quantile window is reversed"):
        start(tmp_path, study__arms=(*ARMS, "x: dasm.rho=0.96"))
    with pytest.raises(UserError, match="leaves tiles of 2 px"):
        start(tmp_path, study__arms=(*ARMS, "x: synthetic.factor=4"))
    assert not (tmp_path / "config.json").exists()


# --- budgets --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "dasm.segments=2",
        pytest.param("matcher.name=idc", marks=pytest.mark.slow),
        pytest.param("dasm.segments=4", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_as_long_as_the_baseline_costs(text):
    s = settings_with()
    one, other = arms.parse("one: dasm.segments=1"), arms.parse(f"x: {text}")
    base = make_problem(arms.settings_of(one, s, 4, 0), small_dataset(2))
    target = 5 * plan.total_flops(plan.plan_segments(base))
    own = arms.settings_of(other, s, 4, 0)
    problem = make_problem(own, small_dataset(2))
    niter, flops = plan.fitting_niter(problem, target)

    def total(n):
        longer = study.changed(own, {f"matcher.{own.matcher.name}.loop.niter": n})
        return plan.total_flops(plan.plan_segments(problem._replace(settings=longer)))

    assert total(niter) == flops
    others = [total(n) for n in range(1, 3 * niter)]
    assert abs(flops - target) == min(abs(each - target) for each in others)


def test_fitting_a_run_of_nothing_is_one_iteration():
    problem = make_problem(settings_with(ipc=4), small_dataset(2))
    assert plan.fitting_niter(problem, 0.0)[0] == 1


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

    def spy(self, source, origin):
        names.append(source.whole.name)
        real(self, source, origin)

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
        start(tmp_path, study__ipcs=(2,), evaluate__recipe__lr=1e30)
    assert len(rows_in(tmp_path)) == 5


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


def test_a_document_gets_section_figures_and_rows(finished, tmp_path):
    workdir, _ = finished
    document = tmp_path / "study.md"
    document.write_text("# Study\n")
    given = {
        "study__rows": str(workdir / "cells.csv"),
        "study__document": str(document),
        "study__name": "con trols",
    }
    start(tmp_path / "a", **given)
    start(tmp_path / "b", **given)
    text = document.read_text()
    assert text.count("<!-- study: con trols, digits 8px -->") == 1
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
    (table,) = tables_of(ROWS, "base")
    said = {line.entry.arm: line.text for line in table.lines}
    assert said["base"] == "baseline"
    assert said["better"].startswith("+2.3 [2.")
    assert said["same"] == "no difference seen"
    assert said["full"].startswith("+39.5 [")


def test_pairs_need_the_same_seed_and_network():
    rows = [r for r in ROWS if not (r.arm == "better" and r.seed == 1)]
    (table,) = tables_of(rows, "base")
    found = next(line for line in table.lines if line.entry.arm == "better")
    assert found.against.seeds == 2
    assert found.against.mean == pytest.approx(0.025)
    one = [r for r in ROWS if r.seed == 0]
    (table,) = tables_of(one, "base")
    found = next(line for line in table.lines if line.entry.arm == "better")
    assert found.text == "+2.5 (one seed)"


def test_the_markdown_holds_all():
    text = render_markdown(ROWS, "base")
    flat = " ".join(text.split())
    assert "| IPC 2 | accuracy | against base | FLOPs | seconds |" in text
    assert "| base | 50.5 ± 10.0 | baseline | 1.000 | 0 |" in text
    assert "| same | 50.3 ± 9.5 | no difference seen |" in text
    assert "Test accuracy in %, mean ± std over seeds (0, 1, 2)" in flat
    assert "bad, IPC 2, seed 0 failed: it &#124; failed" in flat
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "+2.3 [2." in render_text(ROWS, "base")


def test_means_and_spread_are_over_seeds():
    entry = entries_of(ROWS)[0]
    assert entry.mean == pytest.approx(np.mean(BASE))
    assert entry.std == pytest.approx(np.std(np.mean(BASE, axis=1), ddof=1))
    assert entries_of(ROWS[:2])[0].std == pytest.approx(np.std(BASE[0], ddof=1))


def test_prefixes_stand_beside_runs_made_for_their_size():
    prefix = arm_rows("base", np.subtract(BASE, 0.05).tolist(), made_as=4)
    (note,) = prefix_notes([*ROWS, *prefix])
    assert note == "base, first 2 of 4, against base made for it: -5.0 [-5.0, -5.0]"
    (table,) = tables_of([*ROWS, *prefix], "base")
    labels = [line.entry.label for line in table.lines]
    assert "base, first 2 of 4" in labels
    summary = summary_of([*ROWS, *prefix], "base")
    line = next(x for x in summary["table"] if x["set"] == "base, first 2 of 4")
    assert line["difference"] == pytest.approx(-0.05)


def test_the_baseline_must_be_there(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_bytes(to_csv(ROWS))
    with pytest.raises(UserError, match=r"study\.baseline='one' is no arm of"):
        start(tmp_path / "x", study__rows=str(path))


# --- the configs ----------------------------------------------------------------------

TABLES = ("controls", "choices", "levers", "final")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    "dataset", ["digits", "fashion_mnist_small", "fashion_mnist", "cifar10"]
)
def test_every_table_is_valid_on_every_dataset(name, dataset):
    module = importlib.import_module(f"configs.study.{name}")
    s = from_config(module.get_config(dataset))
    assert (s.experiment, s.study.name) == ("study", name)
    assert f"--config=configs/study/{name}.py:digits" in module.__doc__
    assert (s.data.validation == 0) == (name == "final")
    assert len(s.study.seeds) >= 3
    assert s.evaluate.networks >= 3
    for arm in arms.arms_of(s).values():
        for ipc in s.study.ipcs:
            if not arm.selected:
                arms.settings_of(arm, s, ipc, 0)


def test_choices_are_made_with_other_seeds_than_the_final_table():
    chosen, final = (
        set(
            importlib.import_module(f"configs.study.{n}")
            .get_config("digits")
            .study.seeds
        )
        for n in ("choices", "final")
    )
    assert not chosen & final


def test_a_table_without_a_dataset_says_which_there_are():
    for dataset in ("", "mnist"):
        with pytest.raises(ValueError, match=r"controls\.py:digits, controls\.py:fash"):
            importlib.import_module("configs.study.controls").get_config(dataset)


def test_the_files_of_the_tables_are_short():
    for path in (Path(__file__).parents[1] / "configs" / "study").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 350
        assert path.stem in (*TABLES, "base")
