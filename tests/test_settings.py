"""Settings as a whole: the configs that ship, changes, differences, JSON."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from configs import paper
from dasm_jax import settings
from dasm_jax.checkpoint import differences
from dasm_jax.settings import from_config, to_dict
from tests.settings_cases import DEFAULT, MATCHERS, fails, settings_with

CONFIGS = sorted(
    path.stem
    for path in (Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem != "matchers"  # a part of default.py
)


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


def test_the_papers_reading_is_there_for_every_dataset():
    assert {*paper.DATASETS} == {*CONFIGS} - {"paper"}
    for name in paper.DATASETS:
        own = from_config(importlib.import_module(f"configs.{name}").get_config())
        read = from_config(paper.get_config(name))
        groups = {
            path.split(".")[0] for path in differences(to_dict(own), to_dict(read))
        }
        assert groups == {"dasm", "synthetic"}
        dasm = read.dasm
        assert (dasm.pool, dasm.scored_by) == ("window", "segments")
        assert (dasm.schedule, dasm.rho, dasm.high) == ("linear", 0.3, 0.95)
        assert (dasm.random_share, dasm.networks, dasm.polish) == (0.2, 2, 0.0)
        assert (dasm.budget, dasm.context, dasm.ceiling) == ("flops", "active", "fixed")
    with pytest.raises(ValueError, match=r"needs a dataset: paper\.py:default, "):
        paper.get_config("cifar")


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
