"""How the evaluation of sets is scored and printed."""

import numpy as np
import pytest

from dasm_jax import ranking
from dasm_jax.experiments.evaluate_table import add_scores, markdown, render


def row(images, networks, augmentation="recipe", sets=(1,), **more):
    return {
        "architecture": "convnet",
        "augmentation": augmentation,
        "images": images,
        "sets": list(sets),
        "networks": networks,
        **more,
    }


def test_scores_are_taken_network_by_network():
    rows = [
        row("set", [0.6, 0.7]),
        row("set", [0.1, 0.1], sets=(2,)),
        row("Random", [0.9, 0.9], sets=(2,)),
        row("Random", [0.5, 0.4]),
        row("Full", [0.9, 0.8], sets=(1, 2)),
        row("set", [0.5, 0.5], "none"),
        row("Random", [0.4, 0.2], "none"),
        row("Full", [0.9, 0.9], "none"),
    ]
    add_scores(rows)
    assert rows[0]["hlr"] == pytest.approx([0.2, 0.2**0.5 * 0.1 * 10**0.5])
    assert rows[0]["ior"] == pytest.approx([0.2, 0.1 * 2**0.5])
    lrs = [ranking.label_robust_score(*pair) for pair in ((0.3, 0.1), (0.1, 0.3))]
    assert rows[0]["lrs"][0] == pytest.approx(np.mean(lrs))
    ars = [
        ranking.augmentation_robust_score(*pair) for pair in ((0.1, 0.1), (0.3, 0.3))
    ]
    assert rows[0]["ars"][0] == pytest.approx(np.mean(ars))
    assert rows[1]["ior"][0] == pytest.approx(-0.8)
    assert "ars" not in rows[1]  # not evaluated without augmentation
    assert "ars" not in rows[5]
    assert "hlr" not in rows[3]


SIZE = {"steps": 10, "stored_bytes": 640}


@pytest.fixture
def summary():
    def shown(images, mean, **more):
        numbers = {"mean": mean, "std": 0.01, "best_mean": 0.99, "best_std": 0.0}
        cost = {"wall_seconds": 3.0, "peak_bytes": 5e8, "reused": False}
        return row(
            images, [mean], steps=10, stored_bytes=640, **numbers, **cost, **more
        )

    def described(path):
        return {
            "path": path,
            "stored_images": 20,
            "stored_bytes": 1280,
            "decoded_images": 80,
            "factor": 2,
            "steps": 10,
        }

    recipe = {"augment": "color_crop", "cutmix": 0.5, "batch": 64, "lr": 0.01}
    return {
        "dataset": "digits",
        "evaluation_networks": 2,
        "looks": 5,
        "sets": [
            described("/runs/a|b/synthetic.npz"),
            described("/sets/idc_ipc50.npz"),
        ],
        "recipes": {"recipe": recipe},
        "table": [
            shown("set", 0.5),
            shown("set", 0.625, sets=(2,)),
            shown("Random", 0.25, sets=(1, 2)),
            row(
                "Full", [], sets=(1, 2), steps=10, stored_bytes=640, failure="too large"
            ),
        ],
    }


def test_the_document_names_the_files(summary):
    text = markdown(summary)
    assert "| images | convnet |\n|---|---|\n" in text
    assert "| set 1, a&#124;b | 50.0 ± 1.0 |" in text  # the workdir of a run
    assert "| set 2, idc_ipc50 | 62.5 ± 1.0 |" in text
    assert "| Random | 25.0 ± 1.0 |" in text
    assert "| Full | failed |" in text
    assert "- failed: convnet, recipe, Full: too large" in text


def test_the_best_look_stands_apart_from_the_results(summary):
    text = render(summary)
    table, best = text.split("best of 5 looks: best on the test split, not a result")
    assert "99.0" not in table
    assert "set 1 99.0 ± 0.0" in best


def test_a_terminal_has_80_columns(summary):
    assert all(len(line) <= 80 for line in render(summary).splitlines())


def test_a_terminal_has_80_columns_for_many_sets(summary):
    found, _, random, _ = summary["table"]
    summary["sets"] *= 6
    costs = {"wall_seconds": 123456.5, "peak_bytes": 80e9, "reused": True}
    scores = {"hlr": [-0.25], "ior": [-0.25], "lrs": [0.5], "ars": [0.5]}
    groups = ([1, 2, 3, 4, 5, 6], [7, 9, 11], [8, 10, 12], list(range(1, 12)))
    summary["table"] = [
        *({**found, **scores, **costs, "sets": [n + 1]} for n in range(12)),
        *({**random, **costs, "sets": numbers} for numbers in groups),
        {**random, "images": "Full", **costs, "sets": list(range(1, 13))},
    ]
    lines = render(summary).splitlines()
    assert all(len(line) <= 80 for line in lines)
    labels = [line[:18].strip() for line in lines if line.startswith("  Random")]
    assert labels == [
        "Random for 1-6",
        "Random for 7,9,…",
        "Random for 8,10…",
        "Random for 1-11",
    ]
    # In full where there is room.
    assert "Random for 8,10,12 99.0" in " ".join(" ".join(lines).split())
    assert "| Random for 7,9,11 |" in markdown(summary)
