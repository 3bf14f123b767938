"""Configs: all that ship are valid, every mistake is one line that names the remedy."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from dasm_jax import (
    budget,
    data,
    matching,
    methods,
    nets,
    run,
    schedule,
    scoring,
    settings,
)
from dasm_jax.checkpoint import differences
from dasm_jax.errors import UserError
from dasm_jax.image_optimizer import SCHEDULES
from dasm_jax.initial import INITS
from dasm_jax.parameterization import make_parameterization
from dasm_jax.settings import check_against_data, check_key, from_config, to_dict

CONFIGS = sorted(
    path.stem
    for path in (Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem != "matchers"  # a part of default.py
)


def config_with(**changes):
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
    return from_config(config_with(**changes))


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


DEFAULT = from_config(default.get_config())
LEAVES = dict(leaves(DEFAULT))
GROUPS = dict(groups_of(DEFAULT))
INTS, FLOATS, BOOLS = of_type(int), of_type(float), of_type(bool)
TEXTS, TUPLES = of_type(str), of_type(tuple)
FREE_TEXTS = [
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
BATCH_MATCHERS = ("idc", "idc_i", "dc", "dsa", "dm", "cafe")
MATCHERS = (*BATCH_MATCHERS, "mtt")


def dotted(name):
    return name.replace("__", ".")


def key(name):
    return f"config.{dotted(name)}"


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_valid_and_says_how_to_run_it(name):
    module = importlib.import_module(f"configs.{name}")
    from_config(module.get_config())
    assert name == "default" or f"--config=configs/{name}.py" in module.__doc__


def test_every_shipped_config_is_valid_with_every_matcher():
    for name in CONFIGS:
        for matcher in MATCHERS:
            config = importlib.import_module(f"configs.{name}").get_config()
            config.matcher.name = matcher
            s = from_config(config)
            assert s.matcher.active is getattr(s.matcher, matcher)


def test_no_kind_of_field_goes_untested():
    assert sorted([*INTS, *FLOATS, *BOOLS, *TEXTS, *TUPLES]) == sorted(LEAVES)
    turns = (f"matcher__{name}__image__class_turns" for name in MATCHERS)
    switches = {"data__zca", "evaluate__baselines", "evaluate__prefixes", *turns}
    assert set(BOOLS) == {*switches, "evaluate__same_compute", "study__prefixes"}
    assert TUPLES == [
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
    assert ending(*ends) == {*SHARES}
    assert ending("momentum") == {*MOMENTA}


@pytest.mark.parametrize(
    ("names", "value"),
    [
        (FROM_ZERO, 0),
        # A set has as many images as segments; a coreset looks early and at the end.
        (set(COUNTS) - {"ipc", "coreset__looks"}, 1),
        (("coreset__looks",), 2),
        (set(FLOATS) - {"dasm__high", "recover__temperature"}, 0.0),
        (set(SHARES) - {"dasm__rho"}, 1.0),
        (MOMENTA, 0.999),
        (set(FLOATS) - {*SHARES, *MOMENTA, *PERTURBATIONS}, 1e30),
        (("seed", "evaluate__seed"), 2**31 - 1),
        (("network__width",), 4096),
        (("data__size",), 1024),
        (("recover__temperature",), 0.01),
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


# --- fields that must agree -----------------------------------------------------------


def test_fields_that_must_agree():
    refuses("config.ipc=4", "segments=5", ipc=4, dasm__segments=5)
    for rho in (0.95, 0.97):  # an empty window is no window
        refuses("reversed", "config.dasm.high=0.95", dasm__rho=rho)
    for mean, std in [
        ((0.5,), ()),
        ((0.5,), (0.0,)),
        ((0.5, 0.5), (1.0,)),
        ((float("nan"),), (1.0,)),
        ((0.5,), (float("inf"),)),
    ]:
        refuses("config.data.mean", data__mean=mean, data__std=std)


def test_test_images_are_others_than_those_of_the_synthesis():
    refuses("config.data.test_split='train'", data__test_split="train")
    settings_with(data__source="digits", data__test_split="train")


@pytest.mark.parametrize("name", MATCHERS)
def test_batch_norm_is_matched_by_nobody(name):
    refuses(
        "config.network.norm='batch'",
        "running statistics are not part of a gradient",
        "use 'instance'",
        network__norm="batch",
        matcher__name=name,
    )


def test_width_is_the_published_one_unless_set():
    for name, width in nets.PUBLISHED_WIDTHS.items():
        s = settings_with(network__name=name, matcher__name="dm")
        assert s.network.width == s.network.architecture.width == width
    assert settings_with(network__name="lenet").network.width == 0
    s = settings_with(network__name="resnet10", network__width=16)
    assert s.network.architecture == nets.Architecture("resnet10", 16)
    s = settings.changed(s, {"network.name": "vgg11", "network.width": 0})
    assert s.network.width == 64


def test_gradients_of_convolutions_need_some():
    message = "config.matcher.idc.layers='conv' matches nothing"
    refuses(message, "'mlp' has no convolution", network__name="mlp")
    settings_with(network__name="mlp", matcher__idc__layers="kernels")
    settings_with(network__name="mlp", matcher__name="dm")


def test_batch_norm_may_be_evaluated_on():
    names = ("convnet/batch", "resnet18/batch", "densenet", "vgg11/instance/16")
    s = settings_with(evaluate__architectures=names)
    assert s.evaluate.architectures == names
    assert settings_with(evaluate__architectures=()).evaluate.architectures == ()


@pytest.mark.parametrize(
    ("architectures", "parts"),
    [
        (("resnet19",), ("unknown network 'resnet19'", *sorted(nets.NETS))),
        (("",), ("unknown network ''",)),
        (("vgg11", "resnet18/bach"), ("unknown norm 'bach'", *nets.NORMS)),
        (("mlp/batch",), ("mlp has no norm to choose",)),
        (("lenet/32",), ("lenet comes in one size",)),
        (("vgg11", "vgg11"), ("twice",)),
        (("convnet/batch/3/4",), ("'name/norm/width'",)),
    ],
)
def test_architectures_that_do_not_exist(architectures, parts):
    refuses(
        "config.evaluate.architectures", *parts, evaluate__architectures=architectures
    )


@pytest.mark.parametrize("name", MATCHERS)
def test_class_turns_belong_to_the_rule_of_idc(name):
    image = f"matcher__{name}__image"
    turns = {f"{image}__class_turns": True, "matcher__name": name}
    refuses(
        f"{key(image)}.class_turns",
        f"{key(image)}.rule='idc'",
        **turns,
        **{f"{image}__rule": "inputs"},
    )
    settings_with(**turns, **{f"{image}__rule": "idc"})
    # The groups of the others are not read.
    other = "dm" if name == "idc" else "idc"
    settings_with(**turns | {"matcher__name": other}, **{f"{image}__rule": "inputs"})


def test_experts_are_trained_as_long_as_the_window():
    short = {
        "matcher__mtt__max_start": 15,
        "matcher__mtt__expert_epochs": 2,
        "matcher__mtt__epochs": 16,
    }
    refuses(
        "too few expert epochs",
        "config.matcher.mtt.epochs=16",
        "config.matcher.mtt.max_start=15",
        "config.matcher.mtt.expert_epochs=2",
        matcher__name="mtt",
        **short,
    )
    settings_with(matcher__name="mtt", **short | {"matcher__mtt__epochs": 17})
    settings_with(matcher__name="dm", **short)


def test_experts_know_one_pool_of_a_segment():
    refuses(
        "config.dasm.rescore_every must be 0",
        "trajectory matching",
        matcher__name="mtt",
        dasm__rescore_every=1,
    )
    for name in BATCH_MATCHERS:
        settings_with(matcher__name=name, dasm__rescore_every=1)


def test_what_would_do_nothing_is_refused():
    perturbed = {"matcher__idc__trajectory__perturb": 0.1}
    refuses("trajectory.perturb=0.1", "trajectory.bank=0", **perturbed)
    settings_with(matcher__idc__trajectory__bank=2, **perturbed)
    clusters = {"matcher__idc__batches": "kmeans", "dasm__target": "class"}
    refuses("batches='kmeans'", "config.dasm.target='class'", **clusters)


def test_experts_belong_to_segments_and_not_to_a_polish():
    mtt = {"matcher__name": "mtt", "dasm__polish": 0.1}
    refuses("config.dasm.polish must be 0", "trajectory matching", **mtt)
    settings_with(**mtt, dasm__segments=1)  # nothing to polish
    for name in BATCH_MATCHERS:
        settings_with(**mtt | {"matcher__name": name})


@pytest.mark.parametrize("name", BATCH_MATCHERS)
def test_networks_start_in_one_place(name):
    trajectory = f"matcher__{name}__trajectory"
    bank = {"matcher__name": name, f"{trajectory}__bank": 3}
    segments = {f"{trajectory}__start": "segments"}
    refuses(
        f"{key(trajectory)}.bank=3", f"{key(trajectory)}.start='seg", **bank, **segments
    )
    settings_with(**bank)
    settings_with(**segments)


# --- settings that are there already --------------------------------------------------


def test_changed_settings():
    changes = {
        "seed": 3,
        "dasm.segments": 2,
        "matcher.name": "mtt",
        "matcher.mtt.recipe.lr": 0.5,
        "evaluate.recipe.augment": "flip",
    }
    expected = settings_with(**{k.replace(".", "__"): v for k, v in changes.items()})
    before = settings_with()
    assert settings.changed(before, changes) == expected
    assert before == settings_with() != expected
    assert settings.changed(before, {}) == before


def test_changed_settings_are_checked_once_all_are_changed():
    for changes in ({"ipc": 2, "dasm.segments": 2}, {"dasm.segments": 2, "ipc": 2}):
        s = settings.changed(DEFAULT, changes)
        assert (s.ipc, s.dasm.segments) == (2, 2)
    for changes, message in [
        ({"ipc": 2}, "config.ipc=2"),
        ({"dasm.rho": 0.96}, "reversed"),
        ({"network.norm": "batch"}, "cannot be matched on"),
        ({"matcher.name": "mtt", "matcher.mtt.epochs": 3}, "too few expert epochs"),
    ]:
        fails(lambda changes=changes: settings.changed(DEFAULT, changes), message)


@pytest.mark.parametrize("name", ["sead", "matcher.idx.image.lr", "dasm.segmens"])
def test_changing_what_does_not_exist_is_a_mistake_of_the_program(name):
    with pytest.raises((TypeError, AttributeError)):
        settings.changed(DEFAULT, {name: 1})


def test_differences():
    ours, theirs = (to_dict(settings_with(ipc=n)) for n in (10, 20))
    assert differences(ours, ours) == []
    theirs["dasm"]["rho"] = 0.1
    theirs["evaluate"]["recipe"]["lr"] = 0.5
    theirs["matcher"]["dm"]["image"]["lr"] = 0.5
    expected = ["dasm.rho", "evaluate.recipe.lr", "ipc", "matcher.dm.image.lr"]
    assert differences(ours, theirs) == differences(theirs, ours) == expected
    del theirs["log"], theirs["dasm"]["rho"]
    assert differences(ours, theirs) == sorted([*expected, "log"])


def test_settings_are_frozen_and_hashable():
    s = settings_with()
    assert hash(s) == hash(settings_with())
    assert s != settings_with(matcher__mtt__recipe__lr=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.seed = 1


def test_settings_are_plain_json():
    as_json = json.loads(json.dumps(to_dict(DEFAULT)))
    assert as_json["matcher"]["mtt"]["recipe"]["lr"] == 0.01
    assert as_json["compare"]["matchers"] == [m for m in MATCHERS if m != "idc_i"]


@pytest.mark.parametrize("name", MATCHERS)
def test_only_the_matcher_in_use_is_active(name):
    s = settings_with(matcher__name=name)
    assert s.matcher.active is getattr(s.matcher, name)
    assert not s.matcher.active.needs_segment_networks
    if name != "mtt":
        start = {f"matcher__{name}__trajectory__start": "segments"}
        s = settings_with(matcher__name=name, **start)
        assert s.matcher.active.needs_segment_networks


# --- data -----------------------------------------------------------------------------


def test_settings_against_data():
    s = settings_with(ipc=10, synthetic__factor=3)
    check_against_data(s, [10, 50], (10, 12, 3))  # tiles of 4 px
    fails(lambda: check_against_data(s, [50, 9], (32, 32, 3)), "ipc=10", "(9 images)")
    fails(lambda: check_against_data(s, [50], (32, 9, 3)), "factor=3", "3 px", "32x9")
    s = settings_with(data__mean=(0.5,), data__std=(0.2,))
    check_against_data(s, [50], (28, 28, 1))
    fails(lambda: check_against_data(s, [50], (28, 28, 3)), "1 values", "3 channels")


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
        for kind in accepted("dasm__budget")
    }
    assert steps == {"flops": 4, "steps": 2, "per_segment": 8}
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


# --- what the matcher decides ---------------------------------------------------------


@pytest.mark.parametrize("name", MATCHERS)
def test_factor_is_that_of_the_publication_unless_set(name):
    published = 2 if name == "idc" else 1
    assert settings_with(matcher__name=name).factor == published
    assert settings_with(matcher__name=name, synthetic__factor=3).factor == 3


def test_images_too_large_to_whiten():
    s = settings_with(data__zca=True)
    check_against_data(s, [50], (32, 32, 3))
    fails(
        lambda: check_against_data(s, [50], (64, 64, 3)),
        "config.data.zca",
        "config.data.downsample",
    )


def test_experts_that_stand_still():
    refuses(
        "config.matcher.mtt.recipe.lr",
        matcher__name="mtt",
        matcher__mtt__recipe__lr=0.0,
    )


def test_recovery_has_no_segments():
    assert settings_with(experiment="recover", ipc=1).ipc == 1
