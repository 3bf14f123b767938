"""A tiny real dataset and settings that run in seconds: a few digits, 8×8."""

from functools import cache

import numpy as np

from configs import default
from dasm_jax.data import load_dataset
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
    """Default config made small; ``changes`` are dotted keys with ``__`` for dots."""
    config = default.get_config()
    config.ipc = 4
    config.data.source = config.data.name = "digits"
    config.network.width, config.network.depth = 4, 2
    config.synthetic.factor = 1
    config.matcher.real_batch = 8
    config.image.lr, config.image.base_size = 0.5, 8
    config.loop.niter, config.loop.inner = 4, 2
    config.trajectory.n_data, config.trajectory.recipe.batch = 16, 16
    config.dasm.segments, config.dasm.budget = 2, "steps"
    config.dasm.networks, config.dasm.score_steps = 2, 8
    config.evaluate.networks, config.evaluate.steps = 2, 6
    config.evaluate.recipe.batch = 16
    config.evaluate.recipe.augment = "color_crop"
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config


def small_problem(**changes):
    return make_problem(from_config(small_config(**changes)), small_dataset(2))
