"""Settings that must agree: with each other, and with the data."""

import pytest

from dasm_jax import nets, settings
from dasm_jax.settings import check_against_data
from tests.settings_cases import (
    BATCH_MATCHERS,
    MATCHERS,
    fails,
    key,
    refuses,
    settings_with,
)

# --- fields that must agree -----------------------------------------------------------


def test_fields_that_must_agree():
    refuses("config.ipc=4", "segments=5", "lower", ipc=4, dasm__segments=5)
    for experiment in ("coreset", "compare", "curve", "study"):
        settings_with(ipc=4, dasm__segments=5, experiment=experiment)
    for rho in (0.95, 0.97):  # an empty window is no window
        refuses("reversed", "config.dasm.high=0.95", dasm__rho=rho)
        static = {"dasm__schedule": "coverage", "dasm__pool": "static_window"}
        refuses("reversed", dasm__rho=rho, **static)
        settings_with(dasm__rho=rho, dasm__schedule="coverage")  # which looks at none
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
    pool = {"matcher__idc__trajectory__data": "pool", "dasm__target": "class"}
    refuses("trajectory.data='pool'", "config.dasm.target='class'", **pool)
    again = {"dasm__rescore_every": 2, "dasm__target": "class"}
    refuses("config.dasm.rescore_every must be 0", "target='class'", **again)
    for fixed in (
        {"dasm__pool": "full"},
        {"dasm__pool": "static_window"},
        {"dasm__pool": "disjoint", "dasm__scored_by": "real"},
    ):
        fixed = {"dasm__rescore_every": 2, **fixed}
        refuses("config.dasm.rescore_every must be 0", "no segment changes", **fixed)
        settings_with(**fixed, matcher__idc__trajectory__start="segments")
    settings_with(dasm__rescore_every=2, dasm__pool="disjoint")
    tapered = {"dasm__budget": "prefix", "dasm__taper": 0.5}
    refuses("config.dasm.taper=0.5", "budget to 'flops'", **tapered)
    settings_with(**tapered, ipc=1, dasm__segments=1)
    polished = {"dasm__budget": "prefix", "dasm__polish": 0.5}
    refuses("config.dasm.polish=", "budget to 'flops'", **polished)
    settings_with(**polished, ipc=1, dasm__segments=1)


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


# --- data -----------------------------------------------------------------------------


def test_settings_against_data():
    s = settings_with(ipc=10, synthetic__factor=3)
    check_against_data(s, [10, 50], (10, 12, 3))  # tiles of 4 px
    fails(lambda: check_against_data(s, [50, 9], (32, 32, 3)), "ipc=10", "(9 images)")
    fails(lambda: check_against_data(s, [50], (32, 9, 3)), "factor=3", "3 px", "32x9")
    s = settings_with(data__mean=(0.5,), data__std=(0.2,))
    check_against_data(s, [50], (28, 28, 1))
    fails(lambda: check_against_data(s, [50], (28, 28, 3)), "1 values", "3 channels")


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
