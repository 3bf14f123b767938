"""Accuracy over images per class, cell by cell."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from dasm_jax import run
from dasm_jax.errors import NonFiniteError, UserError
from dasm_jax.experiments import cells, common, sets
from dasm_jax.experiments.curve import sources_of
from dasm_jax.experiments.rollback import Rollback
from dasm_jax.run_log import LogPosition
from dasm_jax.settings import from_config
from tests.small import small_config, small_dataset
from tests.stopped import Killed


@pytest.fixture(autouse=True)
def _small_data(monkeypatch):
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))


METHODS = ("random", "k_center", "idc", "dasm")
# Twelve whole cells are made here: of what compiles fastest.
QUICK = {
    "network__depth": 1,
    "matcher__name": "dm",
    "matcher__dm__augment": "none",
    "matcher__idc__augment": "none",
    "matcher__idc__trajectory__recipe__augment": "none",
    "evaluate__recipe__augment": "none",
}


def settings_with(**changes):
    given = {
        "experiment": "curve",
        "curve__methods": METHODS,
        "curve__ipcs": (4, 2),
        **QUICK,
        **changes,
    }
    return from_config(small_config(**given))


def start(workdir, **changes):
    return run.run(settings_with(**changes), str(workdir))


def test_cells_and_their_files():
    s = settings_with(curve__ipcs=(4, 1, 2), curve__seeds=(3, 1))
    cells = [cell for source in sources_of(s) for cell in source.cells]
    assert [c.name for c in cells if c.seed == 3] == [
        *(f"{m}_ipc{n}_seed3" for m in METHODS[:3] for n in (1, 2, 4)),
        "dasm_ipc1_seed3",
        "dasm_ipc2of4_seed3",
        "dasm_ipc4_seed3",
        "full_seed3",
    ]
    assert [c.seed for c in cells] == [3] * 13 + [1] * 13
    assert len({c.name for c in cells}) == 26


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "load_dataset", lambda *a, **k: small_dataset(2))
        workdir = tmp_path_factory.mktemp("curve")
        return workdir, start(workdir, curve__seeds=(0, 1))


def test_every_cell_is_made_and_shown(finished):
    workdir, text = finished
    assert all(len(line) <= 80 for line in text.splitlines() if "/" not in line)
    rows = list(csv.DictReader((workdir / "cells.csv").read_text().splitlines()))
    assert len(rows) == 2 * 9
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["failures"] == []
    for row in summary["table"]:
        of_row = [
            float(cell["mean"])
            for cell in rows
            if sets.LABELS.get(cell["method"], "Full") == row["set"]
            and int(cell["ipc"]) == row["ipc"]
        ]
        assert row["seeds"] == pytest.approx(of_row)
        assert row["mean"] == pytest.approx(np.mean(of_row))
        assert row["std"] == pytest.approx(np.std(of_row, ddof=1))
        assert f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f}" in text
        assert f"{100 * row['mean']:.1f} ±" in (workdir / "table.md").read_text()
    with Image.open(workdir / "curve.png") as image:
        assert image.size[0] > 600


def test_a_prefix_is_the_beginning_of_the_run(finished):
    workdir, _ = finished
    with (
        np.load(workdir / "sets" / "dasm_ipc2of4_seed0.npz") as small,
        np.load(workdir / "sets" / "dasm_ipc4_seed0.npz") as large,
    ):
        count = len(small["images"])
        np.testing.assert_array_equal(small["images"], large["images"][:count])
        assert set(small["segments"]) == {1}
        assert set(large["segments"]) == {1, 2}


def test_the_prefix_costs_what_its_segments_cost(finished):
    workdir, _ = finished
    whole, part = (
        json.loads((workdir / "cells" / f"dasm_ipc{n}_seed0.json").read_text())
        for n in ("4", "2of4")
    )
    assert part["matching_flops"] == pytest.approx(whole["matching_flops"] / 2)
    assert 0 < part["seconds_making"] < whole["seconds_making"]


def test_a_size_that_is_asked_for_later_is_cut_from_the_set_that_is_there(
    finished, tmp_path, monkeypatch
):
    direct, _ = finished
    only = {"curve__methods": ("dasm",), "curve__seeds": (0,)}
    start(tmp_path, curve__ipcs=(4,), **only)
    whole = tmp_path / "sets" / "dasm_ipc4_seed0.npz"
    facts = whole.with_suffix(".json")
    before = whole.read_bytes(), facts.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(sets, "distil", lambda *args: pytest.fail("made again"))
        start(tmp_path, curve__ipcs=(2, 4), **only)
    name = "sets/dasm_ipc2of4_seed0.npz"
    assert (tmp_path / name).read_bytes() == (direct / name).read_bytes()
    assert (whole.read_bytes(), facts.read_bytes()) == before
    content = json.loads(facts.read_text())
    cut = json.loads((tmp_path / name).with_suffix(".json").read_text())
    for cost in ("matching_flops", "seconds_making"):
        assert cut[cost] == content[f"{cost}_of_segments"][0]
        assert content[cost] == pytest.approx(sum(content[f"{cost}_of_segments"]))


@pytest.mark.parametrize("costs", [None, [], [1.0], "two", [1.0, -1.0]])
def test_one_that_cannot_be_cut_is_made_again(tmp_path, monkeypatch, costs):
    made = []

    def distil(settings, *args):
        made.append(settings.ipc)
        part = sets.Part(np.zeros((2, 2, 8, 8, 1), np.float32), 2.0, len(made))
        return [part, part], []

    monkeypatch.setattr(sets, "distil", distil)
    only = {"curve__methods": ("dasm",), "curve__seeds": (0,)}
    start(tmp_path, curve__ipcs=(4,), **only)
    facts = tmp_path / "sets" / "dasm_ipc4_seed0.json"
    content = json.loads(facts.read_text())
    content["matching_flops_of_segments"] = costs
    facts.write_text(json.dumps(content))
    start(tmp_path, curve__ipcs=(2, 4), **only)
    assert made == [4, 4]
    # The accuracy of the first one is gone with it.
    cell = json.loads((tmp_path / "cells" / "dasm_ipc4_seed0.json").read_text())
    assert cell["seconds_making"] == 2 * len(made)


@pytest.mark.parametrize(
    "damage",
    [
        {"stored_segments": np.array([1, 2] * 4)},
        {"stored_labels": np.zeros(8, np.int32)},
        {"stored_pixels": np.zeros((7, 8, 8, 1), np.float32)},
    ],
)
def test_only_segments_as_they_were_saved_are_cut(tmp_path, damage):
    path = tmp_path / "set.npz"
    labels = np.array([0, 0, 1, 1] * 2, np.int32)
    pixels = np.arange(8, dtype=np.float32).repeat(64).reshape(8, 8, 8, 1)
    whole = {
        "stored_pixels": pixels,
        "stored_labels": labels,
        "stored_segments": np.array([1] * 4 + [2] * 4, np.int32),
    }
    costs = [(3.0, 1.0), (4.0, 2.0)]
    np.savez(path, **whole)
    first, second = sets.load_parts(path, (2, 2), 2, costs)
    assert first.pixels[:, :, 0, 0, 0].tolist() == [[0, 1], [2, 3]]
    assert second.pixels[:, :, 0, 0, 0].tolist() == [[4, 5], [6, 7]]
    assert (second.flops, second.seconds) == (4.0, 2.0)
    assert sets.load_parts(path, (2, 2), 2, costs[:1]) is None
    assert sets.load_parts(path, (1, 3), 2, costs) is None
    np.savez(path, **{**whole, **damage})
    assert sets.load_parts(path, (2, 2), 2, costs) is None
    path.write_bytes(path.read_bytes()[:-50])
    assert sets.load_parts(path, (2, 2), 2, costs) is None


def test_there_is_room_for_the_programs_of_every_cell_that_is_made(
    tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(cells, "make_room_for_programs", lambda: calls.append(None))
    for _ in range(2):
        start(tmp_path, curve__methods=("random",), curve__ipcs=(1, 2))
    assert len(calls) == 3  # two of Random and Full


def test_it_goes_on_where_it_stopped(finished, monkeypatch):
    workdir, text = finished
    gone = workdir / "cells" / "k_center_ipc2_seed0.json"
    content = json.loads(gone.read_text())
    gone.unlink()
    made = []
    monkeypatch.setattr(cells._Bench, "_make", lambda *a: made.append(a))
    # Of a kill after the last set was kept.
    (left,) = (workdir / "runs").glob("dasm_ipc4_seed0_*")
    (left / "checkpoints" / "000009").mkdir(parents=True)
    again = start(workdir, curve__seeds=(0, 1))
    assert again == text
    assert not (left / "checkpoints").exists()
    assert made == []  # the set is there: it is only evaluated
    renewed = json.loads(gone.read_text())
    assert renewed["networks"] == content["networks"]


@pytest.mark.parametrize("networks", ["abc", 5, [], [None], ["x"]])
def test_a_cell_without_accuracies_is_made_again(finished, networks):
    workdir, text = finished
    cell = workdir / "cells" / "random_ipc2_seed1.json"
    cell.write_text(json.dumps({**json.loads(cell.read_text()), "networks": networks}))
    assert start(workdir, curve__seeds=(0, 1)) == text
    assert json.loads(cell.read_text())["networks"] != networks


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"mean": 0.5}'])
def test_a_damaged_cell_is_made_again(finished, damage):
    workdir, text = finished
    (workdir / "cells" / "random_ipc2_seed1.json").write_text(damage)
    (workdir / "sets" / "random_ipc2_seed1.json").write_text(damage)
    assert start(workdir, curve__seeds=(0, 1)) == text
    assert "random_ipc2_seed1.json is damaged" in (workdir / "log.txt").read_text()


def test_a_damaged_set_is_made_again(finished):
    workdir, text = finished
    (workdir / "cells" / "k_center_ipc4_seed0.json").unlink()
    npz = workdir / "sets" / "k_center_ipc4_seed0.npz"
    npz.write_bytes(npz.read_bytes()[:600])
    assert start(workdir, curve__seeds=(0, 1)) == text


def test_cells_of_other_images_are_refused(finished, monkeypatch):
    workdir, _ = finished
    other = small_dataset(2)._replace(content_hash="other")
    monkeypatch.setattr(common, "load_dataset", lambda *a, **k: other)
    with pytest.raises(UserError, match="is of other images than"):
        start(workdir, curve__seeds=(0, 1))


def test_what_every_cell_sets_itself_may_change(finished):
    workdir, text = finished
    assert start(workdir, curve__seeds=(0, 1), ipc=8, seed=3, evaluate__seed=4) == text


def test_segments_are_measured(finished):
    workdir, _ = finished
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    measured = [(r["cell"], r["segment"]) for r in records if r["kind"] == "measures"]
    assert ("dasm_ipc4_seed0", 2) in measured
    assert ("idc_ipc2_seed1", 1) in measured


def test_a_curve_of_failures_is_an_error(tmp_path):
    with pytest.raises(UserError, match="every cell of the curve failed"):
        start(tmp_path, curve__methods=("random",), evaluate__recipe__lr=1e30)


def test_a_set_without_its_facts_is_cut_again(finished):
    workdir, text = finished
    for folder in ("cells", "sets"):
        (workdir / folder / "dasm_ipc2of4_seed1.json").unlink()
    before = (workdir / "sets" / "dasm_ipc4_seed1.npz").read_bytes()
    assert start(workdir, curve__seeds=(0, 1)) == text
    assert (workdir / "sets" / "dasm_ipc4_seed1.npz").read_bytes() == before


@pytest.mark.slow
def test_more_sizes_are_added(finished, monkeypatch):
    workdir, _ = finished
    made = []
    real = cells._Bench._make

    def spy(self, source):
        made.append(source.whole.name)
        return real(self, source)

    monkeypatch.setattr(cells._Bench, "_make", spy)
    start(workdir, curve__ipcs=(2, 4, 6), curve__methods=("random", "dasm"))
    # DASM of 6 has other prefixes than DASM of 4: 2 ends inside the first segment.
    # The whole set of 4 is there from before.
    assert made == ["random_ipc6_seed0", "dasm_ipc2_seed0", "dasm_ipc6_seed0"]


def test_another_config_is_refused(finished):
    workdir, _ = finished
    with pytest.raises(UserError, match=r"differs in .*evaluate\.steps"):
        start(workdir, evaluate__steps=7)


def test_a_failed_cell_is_said_and_tried_again(tmp_path, monkeypatch):
    def fail(*args):
        raise NonFiniteError("a pixel is not finite", None)

    with monkeypatch.context() as patch:
        patch.setattr(sets, "distil", fail)
        text = start(tmp_path, curve__methods=("random", "idc"), curve__ipcs=(2,))
    assert "idc_ipc2_seed0: a pixel is not finite" in text
    assert "failed" in next(x for x in text.splitlines() if x.startswith("IDC"))
    text = start(tmp_path, curve__methods=("random", "idc"), curve__ipcs=(2,))
    assert "a pixel" not in text
    assert "failed" not in next(x for x in text.splitlines() if x.startswith("IDC"))


def test_a_kill_leaves_no_line_of_the_metrics_twice(tmp_path, monkeypatch):
    part = sets.Part(np.zeros((2, 2, 8, 8, 1), np.float32), 0.0, 0.0)

    def distil(settings, dataset, folder, say, on_rollback):
        # As after a kill ahead of the checkpoint: it diverges every time.
        on_rollback(Rollback("a pixel is NaN", "the start", 1, LogPosition()))
        return [part], [{"segment": 1}]

    def die(path, content):
        raise Killed

    monkeypatch.setattr(sets, "distil", distil)
    given = {"curve__methods": ("idc",), "curve__ipcs": (2,)}
    with monkeypatch.context() as patch:
        patch.setattr(cells, "write_json", die)
        with pytest.raises(Killed):
            start(tmp_path, **given)
    start(tmp_path, **given)
    (tmp_path / "cells" / "full_seed0.json").write_text("{")
    start(tmp_path, **given)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [(r["kind"], r["cell"]) for r in map(json.loads, lines)] == [
        ("rollback", "idc_ipc2_seed0"),
        ("measures", "idc_ipc2_seed0"),
        ("cell", "idc_ipc2_seed0"),
        ("cell", "full_seed0"),
    ]


def test_what_is_wrong_is_said_before_the_first_cell(tmp_path):
    with pytest.raises(UserError, match=r"config\.ipc=41 is larger than the smallest"):
        start(tmp_path, curve__ipcs=(2, 41))
    assert not (tmp_path / "config.json").exists()
    with pytest.raises(UserError, match=r"config\.curve\.document: cannot write"):
        start(tmp_path, curve__document=str(tmp_path / "nowhere" / "x.md"))
    assert not (tmp_path / "config.json").exists()


def test_a_document_gets_table_and_figure(tmp_path):
    document = tmp_path / "results.md"
    document.write_text("# Results\n")
    given = {"curve__methods": ("random",), "curve__ipcs": (2,)}
    start(tmp_path / "run", curve__document=str(document), **given)
    text = document.read_text()
    assert text.startswith("# Results\n\n<!-- curve: digits -->\n![digits")
    assert "](curve_digits.png)" in text
    assert (tmp_path / "curve_digits.png").read_bytes()[:4] == b"\x89PNG"


# --- experiment=coreset ---------------------------------------------------------------


def test_the_curve_and_the_coresets_agree(finished, tmp_path):
    workdir, _ = finished
    given = {"experiment": "coreset", "coreset__methods": ("k_center",)}
    start(tmp_path, **given)
    row = json.loads((tmp_path / "summary.json").read_text())["table"][0]
    of_curve = json.loads((workdir / "cells" / "k_center_ipc4_seed0.json").read_text())
    assert row["networks"] == of_curve["networks"]
