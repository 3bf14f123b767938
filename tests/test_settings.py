"""Configs: all that ship are valid, every mistake is one line that names the remedy."""

import dataclasses
import importlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from dasm_jax import budget, data, matching, nets, run, schedule, scoring, settings
from dasm_jax.errors import UserError
from dasm_jax.initial import INITS
from dasm_jax.parameterization import make_parameterization
from dasm_jax.settings import check_against_data, differences, from_config, to_dict

CONFIGS = sorted(p.stem for p in (Path(__file__).parents[1] / "configs").glob("*.py"))


def changed(**changes):
    """The default config with some fields changed, ``__`` for dots, of any type."""
    config = default.get_config()
    for name, value in changes.items():
        *groups, field = name.split("__")
        group = config
        for key in groups:
            group = group[key]
        with group.unlocked():
            if field in group:
                del group[field]  # or ml_collections converts the new value
            group[field] = value
    return config


def settings_with(**changes):
    return from_config(changed(**changes))


def fails(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def refuses(*parts, **changes):
    return fails(lambda: settings_with(**changes), *parts)


def leaves(group, prefix=""):
    """Every field of the default settings as (name with ``__``, value)."""
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}__")
        else:
            yield f"{prefix}{field.name}", value


LEAVES = dict(leaves(from_config(default.get_config())))
NUMBERS = sorted(n for n, v in LEAVES.items() if isinstance(v, int | float))
FLOATS = sorted(n for n, v in LEAVES.items() if isinstance(v, float))
TEXTS = sorted(n for n, v in LEAVES.items() if isinstance(v, str))
FREE_TEXTS = ["data__data_dir", "data__name", "data__test_split", "data__train_split"]


def dotted(name):
    return f"config.{name.replace('__', '.')}"


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_valid_and_says_how_to_run_it(name):
    module = importlib.import_module(f"configs.{name}")
    from_config(module.get_config())
    assert name == "default" or f"--config=configs/{name}.py" in module.__doc__


# --- names and types ------------------------------------------------------------------


def test_unknown_key():
    message = refuses("'dasm.segmens'", "did you mean 'segments'?", dasm__segmens=3)
    known = message.split("known: ")[1].split(", ")
    fields = {f.name for f in dataclasses.fields(settings.DasmSettings)}
    assert set(known) == fields
    refuses("'sead'", "did you mean 'seed'?", "ipc", sead=1)


@pytest.mark.parametrize("name", ["seed", "dasm.rho", "evaluate.recipe.lr", "dasm"])
def test_missing_key(name):
    config = default.get_config()
    *groups, field = name.split(".")
    group = config
    for key in groups:
        group = group[key]
    del group[field]
    fails(lambda: from_config(config), f"'{name}'", "missing", "configs/default.py")


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_wrong_type(name):
    value = LEAVES[name]
    wrong = [None, True, [object()], 1 if isinstance(value, str) else "1"]
    if isinstance(value, int):
        wrong.append(1.5)
    for bad in wrong:
        refuses(dotted(name), **{name: bad})


def test_group_that_is_a_number():
    refuses("config.dasm", "group", dasm=3)


def test_whole_numbers_are_taken_for_floats():
    lr = settings_with(image__lr=1).image.lr
    assert (type(lr), lr) == (float, 1.0)
    assert settings_with(data__mean=[0, 1], data__std=(1, 0.5)).data.mean == (0.0, 1.0)


@pytest.mark.parametrize("name", sorted(set(TEXTS) - set(FREE_TEXTS)))
def test_unknown_choice_lists_the_known(name):
    message = refuses(dotted(name), "known: ", **{name: "windw"})
    assert LEAVES[name].split("_")[0] in message.split("known: ")[1]


def test_close_name():
    refuses("did you mean 'window'?", dasm__pool="windw")


# --- ranges ---------------------------------------------------------------------------

SHARES = (
    "data__test_share",
    "trajectory__recipe__cutmix",
    "evaluate__recipe__cutmix",
    "dasm__rho",
    "dasm__high",
    "dasm__random_share",
    "dasm__easiest_share",
    "dasm__coverage",
)
MOMENTA = ("image", "trajectory__recipe", "evaluate__recipe")
# Every other whole number counts something, so there must be one.
FROM_ZERO = {"seed", "evaluate__seed", "dasm__rescore_every"}
COUNTS = sorted(set(NUMBERS) - set(FLOATS) - FROM_ZERO)
OUTSIDE = [
    *((name, -1) for name in NUMBERS),  # no number may be negative
    *((name, 0) for name in COUNTS),
    *((name, 1.01) for name in SHARES),
    *((f"{name}__momentum", 1.0) for name in MOMENTA),
    *((name, float("nan")) for name in FLOATS),
    ("seed", 2**31),
    ("evaluate__seed", 2**31),
]


@pytest.mark.parametrize(("name", "value"), OUTSIDE)
def test_out_of_range(name, value):
    refuses(dotted(name), f"got {value}", **{name: value})


def test_borders_are_allowed():
    settings_with(
        dasm__segments=1, ipc=1, dasm__rho=0.0, dasm__high=1.0, dasm__random_share=1.0
    )
    settings_with(dasm__random_share=0.0, dasm__gamma=0.0, dasm__rescore_every=3)
    settings_with(image__momentum=0.0, evaluate__recipe__cutmix=0.0, seed=2**31 - 1)


def test_fields_that_must_agree():
    refuses("config.ipc=4", "segments=5", ipc=4, dasm__segments=5)
    for rho in (0.95, 0.97):  # an empty window is no window
        refuses("reversed", "config.dasm.high=0.95", dasm__rho=rho)
    for mean, std in [((0.5,), ()), ((0.5,), (0.0,)), ((0.5, 0.5), (1.0,))]:
        refuses("config.data.mean", data__mean=mean, data__std=std)


# --- data -----------------------------------------------------------------------------


def test_settings_against_data():
    s = settings_with(ipc=10, synthetic__factor=3)
    check_against_data(s, [10, 50], (10, 12, 3))  # tiles of 4 px
    fails(lambda: check_against_data(s, [50, 9], (32, 32, 3)), "ipc=10", "(9 images)")
    fails(lambda: check_against_data(s, [50], (32, 9, 3)), "factor=3", "3 px", "32x9")
    s = settings_with(data__mean=(0.5,), data__std=(0.2,))
    check_against_data(s, [50], (28, 28, 1))
    fails(lambda: check_against_data(s, [50], (28, 28, 3)), "1 values", "3 channels")


def test_differences():
    ours, theirs = (to_dict(settings_with(ipc=n)) for n in (10, 20))
    assert differences(ours, ours) == []
    theirs["dasm"]["rho"] = 0.1
    theirs["evaluate"]["recipe"]["lr"] = 0.5
    expected = ["dasm.rho", "evaluate.recipe.lr", "ipc"]
    assert differences(ours, theirs) == differences(theirs, ours) == expected
    del theirs["log"], theirs["dasm"]["rho"]
    assert differences(ours, theirs) == [*expected, "log"]


def test_settings_are_frozen_and_hashable():
    s = settings_with()
    assert hash(s) == hash(settings_with())
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.seed = 1


# --- what is accepted exists ----------------------------------------------------------


def accepted(name):
    """Names that a field's error message lists."""
    return set(refuses("known: ", **{name: "?"}).split("known: ")[1].split(", "))


@pytest.mark.parametrize(
    ("name", "implemented"),
    [
        ("experiment", run.EXPERIMENTS),
        ("data__source", data.SOURCES),
        ("network__name", nets.NETS),
        ("synthetic__init", INITS),
        ("matcher__metric", matching.METRICS),
        ("matcher__layers", matching.LAYERS),
        ("dasm__pool", schedule.POOLS),
        ("dasm__schedule", schedule.SCHEDULES),
        ("dasm__score", scoring.SCORES),
    ],
)
def test_choices_are_those_of_the_module(name, implemented):
    assert accepted(name) == set(implemented)


def test_choices_without_a_table_work():
    for kind in accepted("synthetic__formation"):
        assert len(make_parameterization(kind, 2, (8, 8)).tiles(1).sources) >= 1
    iterations = {
        kind: budget.outer_iterations(kind, 8, 4, 6.0, 3.0)
        for kind in accepted("dasm__budget")
    }
    assert iterations == {"flops": 4, "steps": 2, "per_segment": 8}
    labels = jnp.zeros(2, jnp.int32)
    for name in accepted("dasm__score"):
        score = scoring.make_scorer(name, lambda p, x: p, lambda p, x, y: p[:, 0])
        nets_ = [[jnp.eye(2)] * scoring.snapshots_for(name)]
        assert np.isfinite(score(nets_, jnp.zeros((2, 1, 1, 1)), labels).scores).all()
