"""experiment=evaluate: steps, shared baselines, and what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dasm_jax.errors import UserError
from dasm_jax.experiments.evaluate import images_of, steps_for
from dasm_jax.synthetic_files import SyntheticFile
from dasm_jax.types import ArrayDataset
from tests.small import small_problem
from tests.test_evaluate_sets import (  # noqa: F401  (fixtures)
    _small_data,
    counter,
    made,
    start,
)

ROOT = Path(__file__).parent.parent


# --- steps and baselines --------------------------------------------------------------


def set_of(decoded, counts=(3, 3), factor=1):
    images = np.zeros((decoded, 8, 8, 1), np.float32)
    labels = np.arange(decoded, dtype=np.int32) % 2
    total = sum(counts)
    return SyntheticFile(
        Path("x"), ArrayDataset(images, labels), counts, total, factor, "hash"
    )


@pytest.mark.parametrize(
    ("epochs", "same_compute", "decoded", "factor", "steps"),
    [
        (0, False, 100, 2, 6),  # as the config says
        (10, False, 100, 2, 60),  # 6 whole batches of 16
        (10, False, 7, 1, 10),  # less than a batch goes round
        (10, True, 100, 2, 15),
        (3, True, 100, 3, 2),
        (1, True, 16, 3, 1),  # never none
    ],
)
def test_epochs_are_passes_of_the_sampler(epochs, same_compute, decoded, factor, steps):
    p = small_problem(evaluate__epochs=epochs, evaluate__same_compute=same_compute)
    s = p.settings.evaluate
    assert steps_for(s, set_of(decoded, factor=factor)) == steps


def test_sets_share_baselines_of_equal_size_and_steps():
    p = small_problem(evaluate__epochs=2)
    sets = [set_of(16), set_of(16), set_of(16, (5, 1)), set_of(32)]
    found = [(i.kind, i.sets, i.steps, i.counts) for i in images_of(p, sets)]
    assert found == [
        ("set", (1,), 2, ()),
        ("set", (2,), 2, ()),
        ("set", (3,), 2, ()),
        ("set", (4,), 4, ()),
        ("Random", (1, 2), 2, (3, 3)),
        ("Random", (3,), 2, (5, 1)),
        ("Random", (4,), 4, (3, 3)),
        ("Full", (1, 2, 3), 2, ()),
        ("Full", (4,), 4, ()),
    ]
    alone = small_problem(evaluate__baselines=False)
    assert [i.kind for i in images_of(alone, sets)] == ["set"] * 4
    with pytest.raises(UserError, match="stores 41 images of class '1'"):
        images_of(p, [set_of(16, (0, 41))])


# --- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate__synthetic": ""}, r"config\.evaluate\.synthetic is empty"),
        ({"evaluate__synthetic": " , "}, r"config\.evaluate\.synthetic is empty"),
        ({"evaluate__same_compute": True}, r"same_compute .* epochs"),
        ({"evaluate__architectures": ("convnet", "convnet")}, "twice"),
        ({"evaluate__architectures": ("convnet", "resnet99")}, "unknown network"),
        (
            {"evaluate__architectures": ("convnet", "mlp", "convnet/4")},
            r"config\.evaluate\.architectures: 'convnet' and 'convnet/4' are one",
        ),
        ({"evaluate__architectures": ("mlp/128", "mlp")}, "'mlp/128' and 'mlp' are"),
        ({"evaluate__augmentations": ("dsa", "cutout")}, "dsa_cutmix"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, made, counter, changes, message):  # noqa: F811
    with pytest.raises(UserError, match=message) as caught:
        start(tmp_path / "run", made, **changes)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run" / "config.json").exists()
    assert counter.calls == []


def test_only_what_is_read_is_checked(tmp_path, made, counter):  # noqa: F811
    # Of a synthesis that is not run.
    start(tmp_path / "run", made, ipc=500, synthetic__factor=3, network__norm="batch")
    assert len(counter.calls) == 3


def test_a_workdir_minds_only_what_an_evaluation_reads(tmp_path, made, counter):  # noqa: F811
    start(tmp_path / "run", made)
    start(
        tmp_path / "run",
        made,
        ipc=6,
        dasm__segments=1,
        matcher__name="dm",
        curve__seeds=(7,),
        coreset__steps=3,
        measure__steps=3,
        recover__steps=3,
    )
    with pytest.raises(UserError, match=r"differs in evaluate\.recipe\.lr"):
        start(tmp_path / "run", made, evaluate__recipe__lr=0.5)


@pytest.mark.parametrize("value", ["", "nothing.npz"])
def test_the_command_line(tmp_path, value):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "main.py"),
            "--config=configs/digits.py",
            f"--workdir={tmp_path}/run",
            "--config.experiment=evaluate",
            f"--config.evaluate.synthetic={value}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "evaluate.synthetic" in lines[0]
    assert "Traceback" not in done.stderr
