"""How good a set is: fresh networks trained on it, tested on real images."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dasm_jax import coreset, hosts, sampling, trainers
from dasm_jax import mesh as meshes
from dasm_jax.errors import SameForAll
from dasm_jax.keys import Use, key_for
from dasm_jax.nets import Network
from dasm_jax.problem import Problem
from dasm_jax.recipes import recipe_from
from dasm_jax.sampling import IndexTable
from dasm_jax.schema import EvaluateSettings
from dasm_jax.training import Recipe, SoftLabels
from dasm_jax.types import Array, ArrayDataset, Params


class Accuracy(NamedTuple):
    """Test accuracies in [0, 1] of networks that differ in their seed only."""

    networks: tuple[float, ...]  # at the last step, never the best one
    # Of all looks that were taken, for comparison with publications that report it:
    # chosen on the test split, so not a result.
    best: tuple[float, ...] = ()
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
    return float(np.asarray(correctness(predict, params, data)).mean())


def correctness(
    predict: Callable[[Params, Array], Array], params: Params, data: ArrayDataset
) -> Array:
    """f32[N], 1 where an image is predicted correctly; NaN if a logit is not finite."""
    logits = predict(params, jnp.asarray(data.images))
    correct = (jnp.argmax(logits, axis=1) == data.labels).astype(jnp.float32)
    return jnp.where(jnp.isfinite(logits).all(), correct, jnp.nan)


def make_evaluator(
    problem: Problem,
    *,
    network: Network | None = None,
    recipe: Recipe | None = None,
    looks: int = 1,
    soft_labels: SoftLabels | None = None,
) -> Evaluator:
    """Compile an evaluation once, for every set of a table.

    Args:
      problem: dataset, and what evaluates where nothing else is named.
      network: by default that of the problem.
      recipe: with ``decay_steps`` as the length of a training; by default that of the
        settings.
      looks: evenly spaced moments at which a network is tested; the last is the result.
      soft_labels: soft labels for every augmented view, instead of the set's own.

    Returns:
      ``evaluate(data, table) -> Accuracy``: trains ``evaluate.networks`` networks on
      the images that the table names, ``evaluate.at_once`` at a time and half as many
      whenever the device is out of memory. Network n starts from the same weights
      whatever the set and its company, and from nothing the synthesis saw. It raises a
      ``UserError`` when a network diverges, or one alone is too large for the device.
    """
    s = problem.settings.evaluate
    root = jax.random.key(s.seed)
    if network is None:
        network = problem.network
    if recipe is None:
        recipe = recipe_from(s.recipe, s.steps)
    train = trainers.make_trainer(
        network, recipe, problem.statistics, problem.loop, soft_labels=soft_labels
    )
    mesh = problem.loop.mesh
    predict = trainers.make_predictor(network.apply, problem.statistics, mesh)
    test = meshes.place(mesh, problem.dataset.test)
    at_once = networks_at_once(s, jax.default_backend(), meshes.count(mesh))

    def train_chunk(
        chunk: range, data: ArrayDataset, table: IndexTable
    ) -> list[list[np.ndarray]]:
        """Correctness f32[N_test] of [look][network]."""
        keys = [key_for(root, Use.EVALUATION_NETWORK, number) for number in chunk]
        # One alone is not mapped over: its numbers do not depend on ``at_once``.
        alone = len(chunk) == 1

        def see(params: Params) -> list[np.ndarray]:
            each = [params] if alone else trainers.unstack(params, len(chunk))
            return [np.asarray(correctness(predict, one, test)) for one in each]

        return train(keys[0] if alone else jnp.stack(keys), data, table, looks, see)

    def evaluate(data: ArrayDataset, table: IndexTable) -> Accuracy:
        nonlocal at_once
        last: list[np.ndarray] = []
        best: list[float] = []
        while len(last) < s.networks:
            chunk = range(len(last), min(len(last) + at_once, s.networks))
            seen = _unless_out_of_memory(lambda c=chunk: train_chunk(c, data, table))
            if hosts.agree(int(seen is None)) or seen is None:
                if len(chunk) == 1:
                    raise SameForAll(
                        "the device is out of memory with a single evaluation network; "
                        f"lower config.evaluate.recipe.batch={recipe.batch}"
                    )
                at_once = len(chunk) // 2
                continue
            for number, correct in zip(chunk, seen[-1]):
                if np.isnan(correct).any():
                    raise SameForAll(
                        f"evaluation network {number + 1} diverged; lower "
                        f"config.evaluate.recipe.lr={recipe.learning_rate:g}"
                    )
            last += seen[-1]
            for looks_at_one in zip(*seen):
                accuracies = [float(correct.mean()) for correct in looks_at_one]
                best.append(float(np.nanmax(accuracies)))
        accuracies = tuple(float(correct.mean()) for correct in last)
        return Accuracy(accuracies, tuple(best), np.mean(last, axis=0))

    return evaluate


def networks_at_once(
    settings: EvaluateSettings, platform: str, devices: int = 1
) -> int:
    """Networks that are trained together.

    By default one per device on CPU, where convolutions whose kernels differ from
    network to network become slow grouped ones, and all elsewhere.
    """
    at_once = settings.at_once or (devices if platform == "cpu" else settings.networks)
    return min(at_once, settings.networks)


def _unless_out_of_memory(work: Callable[[], Any]) -> Any | None:
    try:
        return work()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
    # The error is gone, and with it what its frames held on the device.
    return None


def random_set(
    problem: Problem, ipc: int | Sequence[int], total: int
) -> tuple[ArrayDataset, IndexTable]:
    """Real images, full size: as many stored bytes as a set of ``ipc`` per class.

    Smaller draws of one seed are part of the larger ones.

    Args:
      problem: the fixed pieces.
      ipc: images of every class, or of each class.
      total: length of the buffer they are put in; what is drawn, and what a network
        learns from it, do not depend on it.
    """
    root = jax.random.key(problem.settings.seed)
    counts = [ipc] * problem.dataset.n_classes if isinstance(ipc, int) else ipc
    index = np.concatenate(coreset.random_indices(problem, root, counts))
    train = problem.dataset.train
    images = train.images[index] / np.float32(255)
    return in_buffer(ArrayDataset(images, train.labels[index]), total)


def in_buffer(data: ArrayDataset, total: int) -> tuple[ArrayDataset, IndexTable]:
    """A set on the device, in a buffer with room for ``total`` images.

    Sets in buffers of one length are trained on by one compiled program.
    """
    count = len(data.labels)
    images = np.zeros((total, *data.images.shape[1:]), np.float32)
    labels = np.zeros(total, np.int32)
    images[:count], labels[:count] = data.images, data.labels
    table = sampling.prefix_table(count, total)
    return jax.device_put(ArrayDataset(images, labels)), table


def full_set(problem: Problem) -> tuple[ArrayDataset, IndexTable]:
    """Every real training image."""
    count = len(problem.dataset.train.labels)
    return problem.real, sampling.prefix_table(count, count)
