"""Where a segment starts that is to hold what the finished ones do not.

k-means of every class, with the images of the finished segments as centres that stay
where they are, in the eyes of a network trained on them. What is near to one of them is
stood for already; the new centres go to the rest of the pool, and the segment starts
from the real images nearest to them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dasm_jax import coreset, schedule, selection
from dasm_jax.keys import Use, key_for
from dasm_jax.problem import Problem, decode_segments, decoded_count
from dasm_jax.schema import Settings
from dasm_jax.selection import Covered
from dasm_jax.types import Params

# (segment, members i64[P_c] per class, finished f32[C, n_k, H, W, ch], network)
#   -> members i64[n·f²] per class
Coverer = Callable[[int, list[np.ndarray], list[np.ndarray], Params], list[np.ndarray]]


def by_covering(settings: Settings) -> bool:
    """Whether segments start from what the finished ones leave uncovered."""
    return settings.synthetic.init == "uncovered"


def make_coverer(problem: Problem, root: jax.Array) -> Coverer:
    """Compile k-means beside finished images, once for all segments.

    Returns:
      ``cover(segment, members, finished, network)``: of each class's pool as many
      images as the segment has tiles, by the embeddings of ``network``. A pool that is
      too small is gone round again.
    """
    s = problem.settings
    sizes = schedule.segment_sizes(s.ipc, s.dasm.segments)
    widest = max(len(indices) for indices in problem.class_indices)
    room = decoded_count(problem, sizes)
    embed = coreset.make_embedder(problem)
    choose = jax.jit(selection.cover, static_argnames=("count",))

    def cover(
        segment: int,
        members: list[np.ndarray],
        finished: list[np.ndarray],
        network: Params,
    ) -> list[np.ndarray]:
        wanted = sizes[segment - 1] * s.factor**2
        data, table = decode_segments(problem, finished, room)
        count = int(table.counts[0])
        held = np.asarray(embed(network, data.images))[:count]
        held_labels = np.asarray(data.labels)[:count]
        embedded = np.asarray(embed(network, problem.real.images))
        chosen = []
        for label, own in enumerate(members):
            covered = held[held_labels == label]
            spare = room // len(members) - len(covered)
            key = key_for(root, Use.COVER, segment, label)
            places = choose(
                selection.evidence_of(key, embedded[own], widest),
                count=min(wanted, len(own)),
                covered=Covered(
                    jnp.asarray(np.pad(covered, ((0, spare), (0, 0)))),
                    jnp.asarray(np.arange(len(covered) + spare) < len(covered)),
                ),
            )
            chosen.append(np.resize(own[np.asarray(places)], wanted))
        return chosen

    return cover
