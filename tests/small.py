"""A tiny real dataset and settings that run in seconds: a few digits, 8×8."""

from functools import cache

import numpy as np
import pytest

from configs import default, paper
from dasm_jax.dasm import run_dasm
from dasm_jax.data import load_dataset
from dasm_jax.nets import Network
from dasm_jax.problem import make_problem
from dasm_jax.settings import from_config
from dasm_jax.types import ArrayDataset, Dataset


@cache
def small_dataset(n_classes=3, train_per_class=40, test_per_class=20):
    digits = load_dataset("digits", "digits")

    def take(split, count):
        index = np.concatenate(
            [np.flatnonzero(split.labels == c)[:count] for c in range(n_classes)]
        )
        return ArrayDataset(split.images[index], split.labels[index])

    return Dataset(
        name="digits",
        train=take(digits.train, train_per_class),
        test=take(digits.test, test_per_class),
        class_names=digits.class_names[:n_classes],
        content_hash="small",
    )


def small_config(**changes):
    """Default config made small, segments and pools of the paper's reading.

    ``changes`` are dotted keys with ``__`` for dots.
    """
    config = paper.as_read(default.get_config())
    config.devices = 1  # of the eight that tests pretend to have
    config.ipc = 4
    config.data.source = config.data.name = "digits"
    config.network.width, config.network.depth = 4, 2
    config.synthetic.factor = 1
    for idc in (config.matcher.idc, config.matcher.idc_i):
        idc.real_batch = 8
        idc.image.lr, idc.image.base_size = 0.5, 8
        idc.loop.niter, idc.loop.inner = 4, 2
        idc.trajectory.n_data, idc.trajectory.recipe.batch = 16, 16
    for matcher in (config.matcher.dc, config.matcher.dsa, config.matcher.cafe):
        matcher.real_batch, matcher.loop.niter = 8, 2
        matcher.loop.inner, matcher.trajectory.epochs = 2, 2
    config.matcher.dm.real_batch = 8
    config.matcher.dm.loop.niter, config.matcher.dm.loop.inner = 2, 2
    mtt = config.matcher.mtt
    mtt.loop.niter, mtt.loop.inner, mtt.steps = 2, 2, 2
    mtt.experts, mtt.epochs, mtt.max_start, mtt.expert_epochs = 2, 3, 1, 1
    mtt.image.lr, mtt.recipe.batch = 10.0, 16
    config.dasm.segments, config.dasm.budget = 2, "steps"
    config.dasm.networks, config.dasm.score_steps = 2, 8
    config.evaluate.networks, config.evaluate.steps = 2, 6
    config.evaluate.recipe.batch = 16
    config.coreset.networks, config.coreset.steps, config.coreset.looks = 1, 8, 2
    config.curve.ipcs, config.curve.seeds = (1, 4), (0,)
    config.study.ipcs, config.study.seeds = (4,), (0,)
    config.measure.steps, config.measure.images = 8, 12
    config.evaluate.recipe.augment = "color_crop"
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config


def changes_to_defaults():
    """What takes ``small_config`` back to the segments and pools of the defaults."""
    shipped, read = default.get_config(), paper.get_config()
    dasm = {k: v for k, v in shipped.dasm.items() if v != read.dasm[k]}
    changes = {f"dasm__{name}": value for name, value in dasm.items()}
    return changes | {"synthetic__init": shipped.synthetic.init}


def slow_but(values, *quick):
    """Parameters of a test of which all but ``quick`` are left to `make test-all`."""
    marks = pytest.mark.slow
    return [v if v in quick else pytest.param(v, marks=marks) for v in values]


@cache
def small_problem(**changes):
    return make_problem(from_config(small_config(**changes)), small_dataset(2))


@cache
def small_results(**changes):
    """Segments of ``small_problem``, for tests that only read them."""
    results = run_dasm(small_problem(**changes))
    for result in results:
        result.pixels.flags.writeable = False
    return results


def bare_network(init, apply):
    """A network of two functions, without running statistics or layers to look at."""
    return Network(
        init,
        apply,
        layers=lambda params, images: (),
        train=lambda params, images: (apply(params, images), ()),
        with_statistics=lambda params, statistics: params,
        moments=lambda params, images: (apply(params, images), ()),
    )
