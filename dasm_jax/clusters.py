"""The pool of a class in clusters, each of which gives one image of every batch.

DREAM (Liu et al., "DREAM: Efficient Dataset Distillation by Representative Matching",
ICCV 2023); docs/method.md says what is done otherwise.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dasm_jax import coreset, selection, training
from dasm_jax.keys import Use, key_for
from dasm_jax.problem import Problem
from dasm_jax.schema import BatchMethodSettings, Settings
from dasm_jax.types import Params

# (segment, pool round, members i64[P_c] per class, network) -> clusters i32[P_c]
Clusterer = Callable[[int, int, list[np.ndarray], Params | None], list[np.ndarray]]


def by_clusters(settings: Settings) -> bool:
    """Whether real batches hold an image of each cluster of the pool."""
    m = settings.matcher.active
    return isinstance(m, BatchMethodSettings) and m.batches == "kmeans"


def make_clusterer(problem: Problem, root: jax.Array) -> Clusterer:
    """Compile k-means of a class's pool, once for all segments.

    Returns:
      ``cluster(segment, pool_round, members, network)``: as many clusters as a real
      batch has images, of the embeddings by ``network``, or of pixels where that is
      ``None``. Where a class has fewer images, or less different ones, some are empty.
    """
    train = problem.dataset.train.images
    widest = max(len(indices) for indices in problem.class_indices)
    embed = coreset.make_embedder(problem)
    assign = jax.jit(partial(selection.clusters, count=problem.method.real_batch))

    def cluster(
        segment: int, pool_round: int, members: list[np.ndarray], network: Params | None
    ) -> list[np.ndarray]:
        embedded = None
        if network is not None:
            embedded = np.asarray(embed(network, problem.real.images))
        found = []
        for label, own in enumerate(members):
            if embedded is None:
                rows = np.asarray(training.to_unit(jnp.asarray(train[own])))
                rows = rows.reshape(len(own), -1)
            else:
                rows = embedded[own]
            key = key_for(root, Use.REAL_CLUSTERS, segment, pool_round, label)
            evidence = selection.evidence_of(key, rows, widest)
            found.append(np.asarray(assign(evidence))[: len(own)].astype(np.int32))
        return found

    return cluster
