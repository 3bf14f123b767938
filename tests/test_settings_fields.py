"""Every field of a config: each mistake is one line that names the remedy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from dasm_jax import budget, data, matching, methods, nets, run, schedule, scoring
from dasm_jax.image_optimizer import SCHEDULES
from dasm_jax.initial import INITS
from dasm_jax.parameterization import make_parameterization
from dasm_jax.settings import check_key, from_config
from tests.settings_cases import (
    BATCH_MATCHERS,
    DEFAULT,
    LEAVES,
    MATCHERS,
    dotted,
    fails,
    key,
    leaves,
    refuses,
    settings_with,
)


def groups_of(group, prefix=""):
    """Every group of the default settings as (name with ``__``, its field names)."""
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            name = f"{prefix}{field.name}"
            yield name, {f.name for f in dataclasses.fields(value)}
            yield from groups_of(value, f"{name}__")


def of_type(kind):
    return sorted(name for name, value in LEAVES.items() if type(value) is kind)


GROUPS = dict(groups_of(DEFAULT))
INTS, FLOATS, BOOLS = of_type(int), of_type(float), of_type(bool)
TEXTS, TUPLES = of_type(str), of_type(tuple)
FREE_TEXTS = [
    "analyse__document",
    "analyse__name",
    "analyse__rows",
    "compare__document",
    "curve__document",
    "study__baseline",
    "study__document",
    "study__name",
    "study__rows",
    "evaluate__synthetic",
    "data__data_dir",
    "data__name",
    "data__test_split",
    "data__train_split",
    "matcher__mtt__folder",
]


def test_no_kind_of_field_goes_untested():
    assert sorted([*INTS, *FLOATS, *BOOLS, *TEXTS, *TUPLES]) == sorted(LEAVES)
    turns = (f"matcher__{name}__image__class_turns" for name in MATCHERS)
    switches = {"data__zca", "evaluate__baselines", "evaluate__prefixes", *turns}
    assert set(BOOLS) == {*switches, "evaluate__same_compute", "study__prefixes"}
    assert TUPLES == [
        "analyse__runs",
        "compare__ipcs",
        "compare__matchers",
        "compare__seeds",
        "coreset__methods",
        "curve__ipcs",
        "curve__methods",
        "curve__seeds",
        "data__mean",
        "data__std",
        "evaluate__architectures",
        "evaluate__augmentations",
        "study__arms",
        "study__ipcs",
        "study__seeds",
    ]


# --- names and types ------------------------------------------------------------------


def test_unknown_key():
    refuses("'dasm.segmens'", "did you mean 'segments'?", dasm__segmens=3)
    refuses("'sead'", "did you mean 'seed'?", "ipc", sead=1)


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_unknown_key_lists_the_known(group):
    message = refuses(f"'{dotted(group)}.qq'", **{f"{group}__qq": 3})
    assert set(message.split("known: ")[1].split(", ")) == GROUPS[group]


def test_unknown_matcher():
    message = refuses("'matcher.idx'", "did you mean 'idc'?", matcher__idx=3)
    assert set(message.split("known: ")[1].split(", ")) == {"name", *MATCHERS}
    refuses("config.matcher.name='idx'", "did you mean 'idc'?", matcher__name="idx")


@pytest.mark.parametrize(
    "name",
    [
        "dm__metric",
        "cafe__layers",
        "idc__discrimination",
        "mtt__real_batch",
        "mtt__trajectory",
    ],
)
def test_no_matcher_takes_the_fields_of_another(name):
    refuses(f"unknown config key 'matcher.{dotted(name)}'", **{f"matcher__{name}": 1})


@pytest.mark.parametrize("name", [*sorted(LEAVES), *sorted(GROUPS)])
def test_missing_key(name):
    config = default.get_config()
    *groups, field = name.split("__")
    group = config
    for part in groups:
        group = group[part]
    del group[field]
    message = fails(lambda: from_config(config), "missing", "configs/default.py")
    assert f"'{dotted(name)}'" in message


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_wrong_type(name):
    value = LEAVES[name]
    wrong = [None, [object()], 1 if isinstance(value, str) else "1"]
    wrong += [0, 1, 1.0, "True"] if isinstance(value, bool) else [True, False]
    if type(value) is int:
        wrong += [1.5, 1.0]
    if isinstance(value, tuple):
        wrong += [1, 1.0]
    for bad in wrong:
        refuses(key(name), **{name: bad})


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_group_that_is_a_number(group):
    refuses(f"{key(group)} must be a group", **{group: 3})


def test_whole_numbers_are_taken_for_floats():
    lr = settings_with(matcher__idc__image__lr=1).matcher.idc.image.lr
    assert (type(lr), lr) == (float, 1.0)
    mean = settings_with(data__mean=[0, 1], data__std=(1, 0.5)).data.mean
    assert mean == (0.0, 1.0)
    assert [type(value) for value in mean] == [float, float]


def test_lists_are_taken_for_tuples():
    compare = settings_with(
        compare__matchers=["dm", "idc"], compare__ipcs=[3], compare__seeds=[4, 5]
    ).compare
    assert (compare.matchers, compare.ipcs, compare.seeds) == (
        ("dm", "idc"),
        (3,),
        (4, 5),
    )


@pytest.mark.parametrize("name", BOOLS)
def test_switches_go_both_ways(name):
    for value in (True, False):
        changes = {name: value}
        if value and name.endswith("class_turns"):
            changes[name.replace("class_turns", "rule")] = "idc"
        assert dict(leaves(settings_with(**changes)))[name] is value


@pytest.mark.parametrize("name", sorted(set(TEXTS) - set(FREE_TEXTS)))
def test_unknown_choice_lists_the_known(name):
    message = refuses(key(name), "known: ", **{name: "windw"})
    assert LEAVES[name].split("_")[0] in message.split("known: ")[1]


def test_close_name():
    refuses("did you mean 'window'?", dasm__pool="windw")


@pytest.mark.parametrize("name", FREE_TEXTS)
def test_free_texts_may_say_anything(name):
    assert dict(leaves(settings_with(**{name: "any thing"})))[name] == "any thing"


def test_names_on_the_command_line():
    for path in ("config", "config.ipc", "config.matcher.mtt.recipe.lr"):
        check_key(path)

    def refused(path, *parts):
        return fails(lambda: check_key(path), *parts)

    message = refused("config.matcher.idx.image.lr", "'config.matcher.idx'", "'idc'?")
    assert set(message.split("known: ")[1].split(", ")) == {"name", *MATCHERS}
    refused("config.matcher.dm.metric", "'config.matcher.dm.metric'", "synthetic_batch")
    for path in ("config.ipc", "config.compare.ipcs", "config.matcher.dm.image.lr"):
        refused(f"{path}.deeper", f"{path} is a single value", "'deeper'")


# --- ranges ---------------------------------------------------------------------------

RECIPES = (
    *(f"matcher__{name}__trajectory__recipe" for name in BATCH_MATCHERS),
    "matcher__mtt__recipe",
    "evaluate__recipe",
)
SHARES = (
    *(f"{name}__cutmix" for name in RECIPES),
    "data__test_share",
    "data__validation",
    "dasm__rho",
    "dasm__high",
    "dasm__random_share",
    "dasm__easiest_share",
    "dasm__coverage",
    "dasm__polish",
    "dasm__polish_nested",
)
MOMENTA = (
    *(f"{name}__momentum" for name in RECIPES),
    *(f"matcher__{name}__image__momentum" for name in MATCHERS),
)
# Every other whole number counts something, so there must be one.
FROM_ZERO = (
    "devices",
    "data__size",
    "network__width",
    "synthetic__factor",
    "seed",
    "evaluate__seed",
    "dasm__rescore_every",
    "evaluate__at_once",
    "evaluate__epochs",
    "measure__networks",
    *(f"matcher__{name}__loop__inner" for name in MATCHERS),
    *(f"matcher__{name}__trajectory__epochs" for name in BATCH_MATCHERS),
    *(f"matcher__{name}__trajectory__bank" for name in BATCH_MATCHERS),
    "matcher__mtt__max_start",
    "matcher__mtt__at_once",
)
# Of a bank of networks, which there is none of at first.
PERTURBATIONS = [f"matcher__{name}__trajectory__perturb" for name in BATCH_MATCHERS]
COUNTS = sorted({*INTS} - {*FROM_ZERO})


def outside(name):
    """Values that no field like this one may have."""
    values = [-1]  # no number may be negative
    if name in FLOATS:
        values += [-1e-9, float("nan"), float("inf")]
    if name in COUNTS:
        values.append(0)
    if name == "coreset__looks":  # an early look, and one at the end
        values.append(1)
    if name in SHARES:
        values.append(1.01)
    if name in MOMENTA:
        values.append(1.0)
    if name == "dasm__taper":
        values += [0.09, 10.1]
    more = {"seed": 2**31, "evaluate__seed": 2**31, "network__width": 4097}
    more["recover__temperature"] = 0.009
    more["data__size"] = 1025
    return [*values, *([more[name]] if name in more else [])]


@pytest.mark.parametrize("name", [*INTS, *FLOATS])
def test_out_of_range(name):
    for value in outside(name):
        refuses(key(name), f"got {value}", **{name: value})


def test_no_share_or_momentum_is_forgotten():
    def ending(*ends):
        return {name for name in FLOATS if name.endswith(ends)}

    ends = ("share", "cutmix", "rho", "high", "coverage", "validation", "polish")
    assert ending(*ends, "nested") == {*SHARES}
    assert ending("momentum") == {*MOMENTA}


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (FROM_ZERO, 0),
        # A set has as many images as segments; a coreset looks early and at the end.
        (set(COUNTS) - {"ipc", "coreset__looks"}, 1),
        (("coreset__looks",), 2),
        (set(FLOATS) - {"dasm__high", "dasm__taper", "recover__temperature"}, 0.0),
        (set(SHARES) - {"dasm__rho"}, 1.0),
        (MOMENTA, 0.999),
        (set(FLOATS) - {*SHARES, *MOMENTA, *PERTURBATIONS, "dasm__taper"}, 1e30),
        (("seed", "evaluate__seed"), 2**31 - 1),
        (("network__width",), 4096),
        (("data__size",), 1024),
        (("recover__temperature",), 0.01),
        (("dasm__taper",), 0.1),
        (("dasm__taper",), 10.0),
    ],
)
def test_borders_are_allowed(names, value):
    for name in names:
        if (name, value) != ("network__width", 0):  # stands for the published one
            assert dict(leaves(settings_with(**{name: value})))[name] == value


def test_smallest_and_largest_together():
    settings_with(
        dasm__segments=1, ipc=1, dasm__rho=0.0, dasm__high=1.0, dasm__random_share=1.0
    )
    settings_with(dasm__rho=0.0, dasm__high=1e-6)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("matchers", (), "must not be empty"),
        ("ipcs", (), "must not be empty"),
        ("seeds", (), "must not be empty"),
        ("matchers", ("dm", "idx"), "did you mean 'idc'? known: cafe, dc, dm, dsa, "),
        ("ipcs", (10, 0), "at least 1, got 0"),
        ("seeds", (0, -1), "got -1"),
        ("seeds", (0, 1, 0), "must not hold a value twice"),
        ("seeds", (2**31, 0), f"got {2**31}"),
        ("matchers", (1,), "of type str, got 1"),
        ("ipcs", (1, True), "of type int, got True"),
        ("ipcs", (1.5,), "of type int, got 1.5"),
        ("seeds", ("0",), "of type int, got '0'"),
        ("matchers", "idc", "tuple of str, got 'idc'"),
        ("ipcs", 10, "tuple of int, got 10"),
    ],
)
def test_cells_of_a_comparison_that_do_not_exist(name, values, message):
    refuses(f"config.compare.{name}", message, **{f"compare__{name}": values})


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
        ("network__norm", nets.NORMS),
        ("network__activation", nets.ACTIVATIONS),
        ("network__pooling", nets.POOLINGS),
        ("synthetic__init", INITS),
        ("matcher__name", methods.METHODS),
        *((f"matcher__{name}__metric", matching.METRICS) for name in MATCHERS[:4]),
        *((f"matcher__{name}__layers", matching.LAYERS) for name in MATCHERS[:4]),
        ("dasm__pool", schedule.POOLS),
        ("dasm__schedule", schedule.SCHEDULES),
        ("dasm__score", scoring.SCORES),
        ("dasm__ceiling", schedule.CEILINGS),
        *((f"matcher__{name}__image__schedule", SCHEDULES) for name in MATCHERS),
    ],
)
def test_choices_are_those_of_the_module(name, implemented):
    assert accepted(name) == set(implemented)


def test_choices_without_a_table_work():
    for kind in accepted("synthetic__formation"):
        assert len(make_parameterization(kind, 2, (8, 8)).tiles(1).sources) >= 1
    steps = {
        kind: budget.steps_of_segment(kind, 8, 4, 6.0, 3.0)
        for kind in accepted("dasm__budget") - {"prefix"}
    }
    assert steps == {"flops": 4, "steps": 2, "per_segment": 8}
    assert budget.flops_of_prefixes(3.0, 9.0, 4) == [3.0, 2.0, 2.0, 2.0]
    assert budget.flops_of_prefixes(3.0, 3.0, 1) == [3.0]
    assert budget.flops_of_prefixes(8.0, 8.0, 3) == [4.0, 2.0, 2.0]
    for name in MATCHERS:
        rates = {
            rule: budget.image_rate(rule, 2.0, 5, 16, 8)
            for rule in accepted(f"matcher__{name}__image__rule")
        }
        assert rates == {"idc": 4.0, "inputs": 2.0}
    labels = jnp.zeros(2, jnp.int32)
    for name in accepted("dasm__score"):
        score = scoring.make_scorer(name, lambda p, x: p, lambda p, x, y: p[:, 0])
        nets_ = [[jnp.eye(2)] * scoring.snapshots_for(name)]
        assert np.isfinite(score(nets_, jnp.zeros((2, 1, 1, 1)), labels).scores).all()
