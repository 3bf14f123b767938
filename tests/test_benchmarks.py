"""The benchmarks run, and compare programs that do the same work."""

import json
from functools import cache

import numpy as np
import pytest

from benchmarks import cases, ours, scaling, timing, update_step
from benchmarks.cases import CASES, problem_for, quick

# Stored pixels, their momentum and their gradient: what grows with images per class.
COPIES_OF_PIXELS = 4.0


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    monkeypatch.setattr(timing, "PEAK_SIDE", 64)


@cache
def problem():
    return problem_for(quick(CASES["small"]), 1)


@pytest.fixture
def parity(monkeypatch):
    """The comparison, with our side compiled once for all tests."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks import parity

    monkeypatch.setattr(ours, "match_once", lambda p, count: matched(p.settings, count))
    return parity


MATCH_ONCE = ours.match_once


@cache
def matched(settings, count):
    of_problem = problem()
    assert settings.ipc == of_problem.settings.ipc
    if settings != of_problem.settings:
        of_problem = cases.make_problem(settings, of_problem.dataset)
    return MATCH_ONCE(of_problem, count)


def lines_of(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def check_table(text):
    table = [line for line in text.splitlines() if not line.startswith("{")]
    assert table
    assert max(map(len, table)) <= timing.WIDTH


def test_both_programs_agree(parity):
    assert parity.check(problem()) < 1e-4


def test_both_programs_agree_where_there_are_kinks(parity):
    # On so few values none lies next to a kink of ReLU or l1.
    assert max(parity.errors(problem())) < 1e-4


def flipped_kernel(parity, monkeypatch):
    convert = parity.convert_kernel
    monkeypatch.setattr(parity, "convert_kernel", lambda k: convert(k[::-1]))


def decayed_pixels(parity, monkeypatch):
    match = parity.match_in_torch

    def with_decay(problem, matched):
        distances, gradients = match(problem, matched)
        decay = 0.01 * np.abs(gradients).max() * matched.pixels
        return distances, gradients + decay

    monkeypatch.setattr(parity, "match_in_torch", with_decay)


def other_draw(parity, monkeypatch):
    convert = parity.convert_draw
    monkeypatch.setattr(
        parity,
        "convert_draw",
        lambda draw: convert({**draw, "crop": draw["crop"] + 1}),
    )


def other_class(parity, monkeypatch):
    match = parity.eager.match_class

    def match_class(net, real, synthetic, label, metric):
        return match(net, real, synthetic, 0, metric)

    monkeypatch.setattr(parity.eager, "match_class", match_class)


@pytest.mark.parametrize(
    "perturb", [flipped_kernel, decayed_pixels, other_draw, other_class]
)
def test_a_difference_is_seen(parity, monkeypatch, perturb, capsys):
    perturb(parity, monkeypatch)
    assert update_step.main(["--quick", "--devices", "1", "--cases", "small"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "differ by" in line
    assert "case small" in line


def test_update_step(parity, tmp_path, capsys):
    file = tmp_path / "lines.jsonl"
    arguments = ["--quick", "--cases", "small", "--repeats", "1", "--json", str(file)]
    arguments += ["--devices", "1"]
    assert update_step.main(arguments) == 0
    out = capsys.readouterr().out
    check_table(out)
    (line,) = lines_of(file.read_text())
    assert [line] == lines_of(out)
    assert line["case"] == "small"
    # 2 classes of 4 real and 2 · 2² synthetic images, and one batch of 64.
    assert line["images_per_step"] == 2 * (4 + 8) + 64
    assert line["ours"]["memory_bytes"]["total"] > 0
    assert line["torch"]["memory_bytes"] is None
    for side in ("ours", "torch"):
        low, high = (line[side]["step_ms"][name] for name in ("min", "max"))
        assert 0 < low <= line[side]["step_ms"]["median"] <= high
    assert line["matching_flops"] > 0
    assert line["network_flops"] > 0
    assert set(line["ratio"]) == {"step", "matching", "network"}


@pytest.mark.parametrize(
    "arguments", [["--cases", "large"], ["--repeats", "0"], ["--devices", "99"]]
)
def test_wrong_options(arguments, capsys):
    with pytest.raises(SystemExit):
        update_step.main(arguments)
    assert arguments[1] in capsys.readouterr().err


def test_training(capsys):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks import training

    arguments = ["--quick", "--cases", "small", "--networks", "1", "--devices", "1"]
    assert training.main([*arguments, "--steps", "2", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    check_table(out)
    (line,) = lines_of(out)
    for side in ("ours", "experts", "torch"):
        assert line[f"{side} 1"]["steps_per_second"] > 0


def bytes_of(stored, synthetic_batch):
    """Bytes of the matching program, and of stored pixels; one class, one block."""
    case = scaling.BASE._replace(
        side=8,
        width=4,
        n_classes=1,
        stored=stored,
        real_batch=4,
        synthetic_batch=synthetic_batch,
        n_data=4,
        per_class=8,
    )
    problem = problem_for(case, 1, network__depth=1)
    memory = ours.matching_memory(problem)
    assert memory is not None
    return memory["total"], scaling.pixel_bytes(problem)


@pytest.mark.slow
def test_memory_grows_by_stored_pixels_alone():
    # 4 stored images are 16 decoded ones: past the cap of 8.
    few, few_pixels = bytes_of(4, synthetic_batch=8)
    many, many_pixels = bytes_of(20, synthetic_batch=8)
    room = COPIES_OF_PIXELS * (many_pixels - few_pixels)
    assert many - few <= room
    # The measure would see decoded images: without a cap they are most of the memory.
    without_cap, _ = bytes_of(20, synthetic_batch=1000)
    assert without_cap - many > 4 * room


@pytest.mark.slow
def test_scaling(capsys):
    assert scaling.main(["--quick", "--repeats", "1", "--devices", "1"]) == 0
    out = capsys.readouterr().out
    check_table(out)
    swept = [(line["sweep"], line[line["sweep"]]) for line in lines_of(out)]
    assert swept == [
        *(("ipc", n) for n in (1, 10, 20)),
        *(("classes", n) for n in (1, 2)),
        *(("segments", n) for n in (1, 2)),
    ]
