"""Workdirs of finished runs with numbers to be sure of, for analyses."""

import json

import pytest

from dasm_jax import run
from dasm_jax.errors import UserError
from dasm_jax.settings import from_config, to_dict
from tests.small import small_config

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
    records = [measures(1), measures(2)] if records is None else records
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


def two_of_each(tmp_path):
    """Two seeds of two ways of making a set; the second way is two points better."""
    return {
        "A": [
            finished(tmp_path / f"a{seed}", seed, 0.8 - 0.1 * seed) for seed in (0, 1)
        ],
        "B": [
            finished(tmp_path / f"b{seed}", seed, 0.82 - 0.098 * seed)
            for seed in (0, 1)
        ],
    }


def lines_of(folders):
    return tuple(f"{name}: {', '.join(map(str, f))}" for name, f in folders.items())


def start(workdir, **changes):
    config = small_config(experiment="analyse", **changes)
    return run.run(from_config(config), str(workdir))


def refused(workdir, *parts, **changes):
    with pytest.raises(UserError) as caught:
        start(workdir, **changes)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
