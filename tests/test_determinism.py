"""The report on which outputs have the same bits."""

import numpy as np
import pytest

from tests import determinism
from tests.determinism import Run, compare, report

ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (ONES, "same bits"),
        (ONES + np.float32([0, 0, 0.25]), "2.5e-01"),
        (ONES.astype(np.float64), "others"),
        (ONES[:2], "others"),
        (-ONES * 0, "1.0e+00"),
    ],
)
def test_what_is_said_of_two_arrays(other, said):
    assert compare(ONES, other) == said


def test_bits_are_compared_not_values():
    assert compare(np.float32([0.0]), np.float32([-0.0])) == "0.0e+00"
    assert compare(np.array(["ab"]), np.array(["ac"])) == "others"


@pytest.mark.parametrize("same", [True, False])
def test_the_second_run_decides(same, monkeypatch, tmp_path):
    results = {
        "first": {"pixels": ONES},
        "again": {"pixels": ONES if same else 2 * ONES},
        "4 devices": {"pixels": 3 * ONES},
    }
    monkeypatch.setattr(
        determinism, "run", lambda folder, which, options: results[which.title]
    )
    runs = [Run(title, "python", 1) for title in results]
    table, found = report(runs, tmp_path)
    assert found == same
    again = "same bits" if same else "1.0e+00"
    assert table.splitlines()[0] == "| compared with one device | again | 4 devices |"
    assert table.splitlines()[2] == f"| pixels | {again} | 2.0e+00 |"
