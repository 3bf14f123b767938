"""How good a set is: fresh networks trained on it, tested on real images."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dasm_jax import coreset, sampling, training
from dasm_jax.errors import UserError
from dasm_jax.keys import Use, key_for
from dasm_jax.problem import Problem
from dasm_jax.recipes import recipe_from
from dasm_jax.sampling import IndexTable
from dasm_jax.training import SoftLabels
from dasm_jax.types import Array, ArrayDataset, Params


class Accuracy(NamedTuple):
    """Test accuracies in [0, 1] of networks that differ in their seed only."""

    networks: tuple[float, ...]  # at the last step, never the best one
    # f32[N_test], share of the networks that are right on each test image
    correct: np.ndarray | None = None

    @property
    def mean(self) -> float:
        """Mean over the networks."""
        return float(np.mean(self.networks))

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the networks; None for a single one."""
        return float(np.std(self.networks, ddof=1)) if len(self.networks) > 1 else None


Evaluator = Callable[[ArrayDataset, IndexTable], Accuracy]


def accuracy(
    predict: Callable[[Params, Array], Array], params: Params, data: ArrayDataset
) -> float:
    """Share of images that are predicted correctly; NaN where a logit is not finite."""
    return float(correctness(predict, params, data).mean())


def correctness(
    predict: Callable[[Params, Array], Array], params: Params, data: ArrayDataset
) -> Array:
    """f32[N], 1 where an image is predicted correctly; NaN if a logit is not finite."""
    logits = predict(params, jax.device_put(data.images))
    correct = (jnp.argmax(logits, axis=1) == data.labels).astype(jnp.float32)
    return jnp.where(jnp.isfinite(logits).all(), correct, jnp.nan)


def make_evaluator(
    problem: Problem, *, soft_labels: SoftLabels | None = None
) -> Evaluator:
    """Compile the evaluation recipe once, for every set of a table.

    Args:
      problem: dataset, network and recipe.
      soft_labels: soft labels for every augmented view, instead of the set's own.

    Returns:
      ``evaluate(data, table) -> Accuracy``: trains ``evaluate.networks`` networks for
      ``evaluate.steps`` steps each on the images that the table names. Network n starts
      from the same weights whatever the set, and from nothing the synthesis saw. It
      raises a ``UserError`` when a network diverges.
    """
    s = problem.settings.evaluate
    root = jax.random.key(s.seed)
    train = training.make_trainer(
        problem.network,
        recipe_from(s.recipe, s.steps),
        problem.statistics,
        problem.loop,
        soft_labels=soft_labels,
    )
    predict = training.make_predictor(problem.network.apply, problem.statistics)
    test = jax.device_put(problem.dataset.test)

    def evaluate(data: ArrayDataset, table: IndexTable) -> Accuracy:
        accuracies, correct = [], []
        for network in range(s.networks):
            key = key_for(root, Use.EVALUATION_NETWORK, network)
            params = train(key, data, table)[-1]
            correct.append(correctness(predict, params, test))
            accuracies.append(float(correct[-1].mean()))
            if np.isnan(accuracies[-1]):
                raise UserError(
                    f"evaluation network {network + 1} diverged; lower "
                    f"config.evaluate.recipe.lr={s.recipe.lr:g}"
                )
        return Accuracy(tuple(accuracies), np.mean(correct, axis=0))

    return evaluate


def random_set(
    problem: Problem, ipc: int, total: int
) -> tuple[ArrayDataset, IndexTable]:
    """``ipc`` real images per class, full size: as many stored bytes as a set of ipc.

    Smaller draws of one seed are part of the larger ones. ``total`` is the length of
    the buffer they are put in.
    """
    root = jax.random.key(problem.settings.seed)
    index = coreset.random_indices(problem, root, ipc).reshape(-1)
    train = problem.dataset.train
    images = np.zeros((total, *problem.dataset.image_shape), np.float32)
    labels = np.zeros(total, np.int32)
    images[: len(index)] = train.images[index] / np.float32(255)
    labels[: len(index)] = train.labels[index]
    data = jax.device_put(ArrayDataset(images, labels))
    return data, sampling.prefix_table(len(index), total)


def full_set(problem: Problem) -> tuple[ArrayDataset, IndexTable]:
    """Every real training image."""
    count = len(problem.dataset.train.labels)
    return problem.real, sampling.prefix_table(count, count)
