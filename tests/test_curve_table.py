"""What a curve prints: entries over seeds, text and Markdown."""

import numpy as np
import pytest

from dasm_jax.experiments import sets
from dasm_jax.experiments.cells import FULL, Cell
from dasm_jax.experiments.curve_table import entries_of, render_markdown, render_text
from dasm_jax.settings import from_config
from tests.small import small_config


def settings_with(**changes):
    return from_config(small_config(experiment="curve", curve__ipcs=(4, 2), **changes))


def cell(method, ipc, mean, seed=0):
    return {
        **Cell(method, ipc, seed, ipc)._asdict(),
        "mean": mean,
        "std": 0.01,
        "matching_flops": 2e9 if method in sets.DISTILLED else 0.0,
        "seconds_making": 3.0,
        "commit": "abc1234",
        "date": "2026-01-02",
        "device": "2 cores, cpu: cpu",
    }


def test_entries_are_over_seeds():
    results = [cell("idc", 2, 0.5), cell("idc", 2, 0.7, 1), cell("idc", 4, 0.9)]
    results.append({**Cell("dasm", 2, 0, 2)._asdict(), "failure": "it failed"})
    two, four = entries_of(results)
    assert (two.method, two.ipc, two.means) == ("idc", 2, (0.5, 0.7))
    assert two.mean == pytest.approx(0.6)
    assert two.std == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert four.std == 0.01  # one seed: over networks


def test_a_seed_that_failed_is_counted():
    s = settings_with(curve__seeds=(0, 1), curve__methods=("idc",))
    text = render_text(s, entries_of([cell("idc", 2, 0.5)]), ["idc_ipc2_seed1: gone"])
    assert "50.0 ± 1.0 (1)" in text
    assert "idc_ipc2_seed1: gone" in text


def test_the_markdown_table():
    s = settings_with(curve__methods=("random", "dasm"))
    results = [
        cell("random", 2, 0.5),
        cell("random", 4, 0.625),
        cell("dasm", 2, 0.75),
        cell("dasm", 4, 0.875),
        cell(FULL, 0, 0.95),
    ]
    text = render_markdown(s, entries_of(results), results, ["x: failed"])
    assert "| method | IPC 2 | IPC 4 |\n|---|---|---|\n" in text
    assert "| Random | 50.0 ± 1.0 | 62.5 ± 1.0 |" in text
    assert "| DASM | 75.0 ± 1.0 | 87.5 ± 1.0 |" in text
    assert "| Full | 95.0 ± 1.0 |" in text
    flat = " ".join(text.split())
    assert "2026-01-02, 2 cores, cpu: cpu, commit abc1234." in flat
    assert "DASM 3 s (2e+09 matching FLOPs)" in flat
    assert text.endswith("- x: failed\n")
    assert all(len(line) <= 80 for line in text.splitlines())
