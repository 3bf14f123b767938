"""The code that the README shows runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

BLOCKS = re.findall(
    r"```python\n(.*?)```",
    (Path(__file__).parent.parent / "README.md").read_text(),
    re.S,
)


def test_the_readme_shows_three_pieces_of_code():
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("code", BLOCKS, ids=["pytorch", "jax", "matcher"])
def test_block(code, tmp_path, monkeypatch):
    if "torch" in code:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.chdir(tmp_path)
    np.savez(
        "synthetic.npz",
        images=np.ones((6, 8, 8, 1), np.float32),
        labels=np.zeros(6, np.int32),
        segments=np.repeat(np.arange(1, 4, dtype=np.int32), 2),
        mean=np.array([0.5], np.float32),
        std=np.array([0.25], np.float32),
    )
    found = {}
    exec(code, found)
    if "loader" in found:
        images, labels = next(iter(found["loader"]))
        assert images.shape == (6, 1, 8, 8)
        assert labels.shape == (6,)
    elif "small" in found:
        assert found["small"].sum() == 4
        np.testing.assert_allclose(found["images"], 2.0)
    else:
        assert found["gradient"].shape == (2, 8, 8, 1)
        assert np.abs(found["gradient"]).max() > 0
