"""What the tests of settings share: a config of any values, and its refusal."""

import dataclasses

import pytest

from configs import default, paper
from dasm_jax.errors import UserError
from dasm_jax.settings import from_config


def config_with(**changes):
    """The paper's reading with some fields changed, ``__`` for dots, of any type."""
    config = paper.as_read(default.get_config())
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
    """Every field of the settings as (name with ``__``, value)."""
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}__")
        else:
            yield f"{prefix}{field.name}", value


DEFAULT = settings_with()
LEAVES = dict(leaves(DEFAULT))
BATCH_MATCHERS = ("idc", "idc_i", "dc", "dsa", "dm", "cafe")
MATCHERS = (*BATCH_MATCHERS, "mtt")


def dotted(name):
    return name.replace("__", ".")


def key(name):
    return f"config.{dotted(name)}"
