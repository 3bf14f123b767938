"""Coresets of the real images, ``ipc`` of every class, by networks trained on them."""

from collections.abc import Callable, Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from dasm_jax import sampling, scoring, selection, trainers
from dasm_jax.errors import SameForAll
from dasm_jax.keys import Use, key_for
from dasm_jax.problem import Problem
from dasm_jax.recipes import recipe_from
from dasm_jax.selection import ClassEvidence
from dasm_jax.types import Array, Params

# (method, images per class) -> positions i64[C, ipc] in the train split
Select = Callable[[str, int], np.ndarray]


def random_indices(
    problem: Problem, root: jax.Array, counts: Sequence[int]
) -> list[np.ndarray]:
    """Positions i64[n_c] per class; smaller draws are part of larger ones."""
    chosen = []
    for label, (indices, count) in enumerate(zip(problem.class_indices, counts)):
        key = key_for(root, Use.RANDOM_SET, label)
        order = np.asarray(jax.random.permutation(key, len(indices)))
        chosen.append(indices[order[:count]])
    return chosen


def make_selector(problem: Problem, root: jax.Array) -> Select:
    """Selection at random or by any of ``selection.RULES``, class by class.

    For the rules ``coreset.networks`` networks are trained on all real images, once for
    all methods, and looked at
    ``coreset.looks`` times on their way. Embeddings are those of the first one, at the
    end; forgetting events are counted over all looks (Toneva et al. 2019); EL2N and
    GraNd are taken at the first, early one (Paul et al. 2021). Scores are means over
    the networks.

    Returns:
      ``select(method, ipc)``. It raises a ``UserError`` when a network diverges.
    """
    s = problem.settings
    count = len(problem.dataset.train.labels)
    widest = max(len(indices) for indices in problem.class_indices)
    places = sampling.make_table(problem.class_indices, widest)
    draws = jax.random.uniform(key_for(root, Use.SELECTION, 0, 0), (count,))
    predict = trainers.make_predictor(
        problem.network.apply, problem.statistics, problem.loop.mesh
    )

    @cache
    def trajectories() -> list[list[Params]]:
        train = trainers.make_trainer(
            problem.network,
            recipe_from(s.evaluate.recipe, s.coreset.steps),
            problem.statistics,
            problem.loop,
        )
        table = sampling.prefix_table(count, count)
        keys = [key_for(root, Use.SELECTION, n + 1) for n in range(s.coreset.networks)]
        mesh, looks = problem.loop.mesh, s.coreset.looks
        each = trainers.train_each(train, mesh, keys, problem.real, table, looks)
        if not trainers.all_finite(each):
            raise SameForAll(
                "a network that selects images diverged; lower "
                f"config.evaluate.recipe.lr={s.evaluate.recipe.lr:g}"
            )
        return each

    @cache
    def embeddings() -> Array:
        return embed(problem, trajectories()[0][-1])

    @cache
    def scores(method: str) -> Array:
        each = []
        for networks in trajectories():
            images, labels = problem.real.images, jnp.asarray(problem.real.labels)
            if method == "grand":
                norm = scoring.make_gradient_norm(
                    problem.network.apply, problem.statistics
                )
                each.append(norm(networks[0], images, labels))
            elif method == "el2n":
                each.append(scoring.el2n(predict(networks[0], images), labels))
            else:
                looks = [jnp.argmax(predict(p, images), axis=1) for p in networks]
                correct = jnp.stack(looks) == labels[None, :]
                each.append(scoring.forgetting_events(correct))
        return sum(each) / len(each)

    @cache
    def program(method: str, ipc: int) -> Callable[[ClassEvidence], Array]:
        rule = selection.RULES[method]
        return jax.jit(jax.vmap(lambda evidence: rule(evidence, ipc)))

    def select(method: str, ipc: int) -> np.ndarray:
        if method == "random":
            counts = [ipc] * len(problem.class_indices)
            return np.stack(random_indices(problem, root, counts))
        nothing = jnp.zeros((count, 1))
        rows = embeddings() if method in selection.EMBEDDED else nothing
        ranks = scores(method) if method in selection.SCORED else nothing[:, 0]
        key = key_for(root, Use.SELECTION, 0, 1)
        evidence = ClassEvidence(
            key=jax.random.split(key, len(places.counts)),
            embeddings=rows[places.indices],
            scores=ranks[places.indices],
            draws=draws[places.indices],
            valid=jnp.arange(widest)[None, :] < places.counts[:, None],
        )
        chosen = np.asarray(program(method, ipc)(evidence))
        return np.take_along_axis(places.indices, chosen, axis=1).astype(np.int64)

    return select


def embed(problem: Problem, params: Params) -> Array:
    """Embeddings f32[N, D] of the train split."""
    return make_embedder(problem)(params, problem.real.images)


def make_embedder(problem: Problem) -> Callable[[Params, Array], Array]:
    """Compile ``embed(params, images) -> f32[N, D]``: what the classifier sees, flat.

    Images are u8 or f32 in [0, 1], [N, H, W, C].
    """

    def last_layer(params: Params, inputs: Array) -> Array:
        last = problem.network.layers(params, inputs)[-1]
        return last.reshape(len(last), -1)

    return trainers.make_predictor(last_layer, problem.statistics, problem.loop.mesh)
