"""Expert trajectories: networks trained on real images, kept after every epoch.

What trajectory matching follows (Cazenavette et al., "Dataset Distillation by Matching
Training Trajectories", CVPR 2022, section 3.1). Buffers lie in the memory of the host.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from dasm_jax import checkpoint, sampling, trainers, training
from dasm_jax import mesh as meshes
from dasm_jax.errors import CannotWrite, SameForAll, UserError
from dasm_jax.files import locked, make_folder
from dasm_jax.host_memory import physical_memory
from dasm_jax.keys import Use, key_for
from dasm_jax.loops import Loop
from dasm_jax.matching import Span
from dasm_jax.nets import Network
from dasm_jax.sampling import IndexTable
from dasm_jax.stored_tree import Damaged, room
from dasm_jax.training import Recipe, TrainState
from dasm_jax.types import ArrayDataset, Normalization, Params

_log = logging.getLogger(__name__)

STEP_BY_STEP = Loop(rolled=False, steps_per_call=1)


class ExpertPlan(NamedTuple):
    """How many experts there are, and how they are trained."""

    experts: int
    epochs: int
    # Networks that are trained together. On CPU one on each device is fastest: under
    # vmap convolutions that differ from network to network become grouped ones.
    at_once: int
    recipe: Recipe
    rate: str = "config.matcher.mtt.recipe.lr"  # where its learning rate is set
    size: str = "config.matcher.mtt.experts or config.matcher.mtt.epochs"


# (root, segment, numbers of n experts, data, table) -> NumPy arrays [n, epochs + 1, …]
ExpertTrainer = Callable[[Array, int, Sequence[int], ArrayDataset, IndexTable], Params]


def make_expert_trainer(
    network: Network,
    plan: ExpertPlan,
    statistics: Normalization,
    loop: Loop = STEP_BY_STEP,
) -> ExpertTrainer:
    """Compile a trainer of one expert, or of several at once.

    An epoch is as many whole batches as ``table`` (one group: which images of ``data``
    are in use) holds; where it holds less than one, all of it is the batch. An expert
    is the same, up to rounding, whichever others are trained beside it.

    Returns:
      ``train(root, segment, experts, data, table) -> buffer``: NumPy arrays
      [n, epochs + 1, …] for the n experts of these numbers, the parameters that they
      start from first. It raises a ``UserError`` when an expert diverges.
    """

    mesh = loop.mesh

    def start(key: Key[Array, ""], table: IndexTable) -> TrainState:
        params = network.init(key_for(key, Use.NETWORK_INIT))
        return training.start_training(
            params, plan.recipe, sampling.start_sampler(table)
        )

    @cache
    def compile_for(batch: int, several: bool) -> tuple[Callable, Callable]:
        recipe = plan.recipe._replace(batch=batch)
        begin = start
        if several:
            axes = trainers.TOGETHER
            begin = jax.vmap(begin, in_axes=(0, None), out_axes=axes)
        return begin, trainers.make_advance(
            network, recipe, statistics, loop, several=several
        )

    def train(
        root: Key[Array, ""],
        segment: int,
        experts: Sequence[int],
        data: ArrayDataset,
        table: IndexTable,
    ) -> Params:
        count, several = int(table.counts[0]), len(experts) > 1
        batch = min(plan.recipe.batch, count)
        begin, advance = compile_for(batch, several)
        keys = [key_for(root, Use.EXPERT, segment, expert) for expert in experts]
        key = meshes.pad(mesh, jnp.stack(keys)) if several else keys[0]
        put = meshes.spread if several else meshes.place
        data, table = put(mesh, (data, table))
        state = trainers.share_out(mesh, begin(key, table), several=several)
        key = (meshes.share_out if several else meshes.place)(mesh, key)
        seen = partial(trainers.gather, mesh, count=len(keys) if several else None)
        buffer = _make_buffer(network, len(experts), plan.epochs)
        _fill(buffer, np.s_[:, 0], seen(state.params))
        steps = count // batch
        for epoch in range(1, plan.epochs + 1):
            for done in range(0, steps, loop.steps_per_call):
                size = min(loop.steps_per_call, steps - done)
                with jax.transfer_guard("disallow"):
                    state = advance(key, state, data, table, size)
            _fill(buffer, np.s_[:, epoch], seen(state.params))
            if not all(np.isfinite(x[:, epoch]).all() for x in jax.tree.leaves(buffer)):
                raise SameForAll(
                    f"an expert of {_whose(segment)} diverged in epoch {epoch}; lower "
                    f"{plan.rate}={plan.recipe.learning_rate:g}"
                )
        return buffer

    return train


def expert_trajectories(
    train: ExpertTrainer,
    network: Network,
    plan: ExpertPlan,
    *,
    root: Key[Array, ""],
    segment: int,
    data: ArrayDataset,
    table: IndexTable,
    folder: Path | None,
    identity: dict[str, Any],
    on_chunk: Callable[[int], None] = lambda done: None,
) -> Params:
    """The buffer of a segment: trained, or read where it was stored.

    Args:
      train: from ``make_expert_trainer``.
      network: what it trains.
      plan: how many, for how long, and how.
      root: key made from the seed.
      segment: counted from 1; 0: of a bank, for all segments.
      data: images and labels.
      table: one group, the images in use.
      folder: where experts are stored as soon as they are finished; None: nowhere.
      identity: plain JSON that tells apart experts that must not be mixed.
      on_chunk: called with the number of experts that are ready.

    Returns:
      NumPy arrays [experts, epochs + 1, …]. After an interruption they are the same as
      without it, bit for bit on one machine.

    Damaged experts are trained again, which is said in one line each; so are those of
    another pool, for a run that goes back, or on elsewhere, may come to choose another.

    Raises:
      UserError: an expert diverges, there is no room for all, the folder holds experts
        of another identity or is being written by another run, or it cannot be read or
        written.
    """
    identity = json.loads(json.dumps({**identity, "epochs": plan.epochs}))
    _check_memory(network, plan)
    with _locked(folder) as ours:
        stored = _find_stored(folder, segment, plan, identity) if folder else set()
        buffer = _make_buffer(network, plan.experts, plan.epochs)
        for first in range(0, plan.experts, plan.at_once):
            chunk = range(first, min(first + plan.at_once, plan.experts))
            places = {_name(segment, expert): _one(buffer, expert) for expert in chunk}
            # Trained as a whole even where a part is stored: with other neighbours
            # under vmap an expert would differ in its last bits.
            if not (folder and stored >= {*chunk} and _read(folder, places)):
                if not ours:
                    raise UserError(
                        f"another run trains experts into {folder}; wait for it, or "
                        "use another folder"
                    )
                trained = train(root, segment, chunk, data, table)
                _fill(buffer, np.s_[first : chunk.stop], trained)
                if folder is not None:
                    for name, place in places.items():
                        checkpoint.save(folder, name, place, identity)
            on_chunk(chunk.stop)
    return buffer


@contextmanager
def _locked(folder: Path | None) -> Iterator[bool]:
    """Whether experts may be trained into a folder: of several runs, one may.

    Where it cannot be written, saving them says so; whoever only reads needs no lock.
    """
    with ExitStack() as stack:
        ours = True
        if folder is not None and jax.process_index() == 0:
            with suppress(CannotWrite):
                make_folder(folder)
                ours = stack.enter_context(locked(folder / checkpoint.LOCK))
        yield ours


def draw_spans(
    key: Key[Array, ""],
    buffer: Params,
    *,
    count: int,
    first: int,
    last: int,
    length: int,
) -> Span:
    """Draw experts and start epochs, and gather the spans that begin there.

    Args:
      key: consumed.
      buffer: NumPy arrays [experts, epochs + 1, …].
      count: spans to draw, with replacement.
      first: earliest start epoch.
      last: latest start epoch, inclusive.
      length: epochs from start to end.

    Raises:
      UserError: the experts end before the last span does.
    """
    experts, moments = jax.tree.leaves(buffer)[0].shape[:2]
    if last + length >= moments:
        raise UserError(
            f"too few expert epochs for the window: spans of {length} epochs start as "
            f"late as epoch {last}; raise config.matcher.mtt.epochs={moments - 1} to "
            f"{last + length}"
        )
    expert_key, start_key = jax.random.split(key)
    expert = np.asarray(jax.random.randint(expert_key, (count,), 0, experts))
    start = np.asarray(jax.random.randint(start_key, (count,), first, last + 1))
    return Span(
        start=jax.tree.map(lambda leaf: leaf[expert, start], buffer),
        end=jax.tree.map(lambda leaf: leaf[expert, start + length], buffer),
    )


def epoch_window(segment: int, segments: int, max_start: int) -> tuple[int, int]:
    """First and last start epoch of a segment: window k of K equal ones up to the end.

    A single segment gets [0, max_start], the window of trajectory matching.
    """
    return (
        round(max_start * (segment - 1) / segments),
        round(max_start * segment / segments),
    )


def _make_buffer(network: Network, experts: int, epochs: int) -> Params:
    params = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: np.empty((experts, epochs + 1, *leaf.shape), leaf.dtype), params
    )


def _check_memory(network: Network, plan: ExpertPlan) -> None:
    """Refuse what Linux would promise and not keep."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    size = plan.experts * (plan.epochs + 1) * room(params)
    if size > physical_memory():
        raise UserError(
            f"{plan.experts} networks of {plan.epochs} epochs take {size:,} bytes, "
            f"more than this machine's memory; lower {plan.size}"
        )


def _fill(arrays: Params, where: Any, values: Params) -> None:
    for array, value in zip(jax.tree.leaves(arrays), jax.tree.leaves(values)):
        array[where] = value


def _one(buffer: Params, expert: int) -> Params:
    """Views, so that filling them fills the buffer."""
    return jax.tree.map(lambda leaf: leaf[expert], buffer)


def _read(folder: Path, places: dict[str, Params]) -> bool:
    """Fill arrays with stored experts; False where one of them is damaged."""
    for name, place in places.items():
        try:
            _fill(place, ..., checkpoint.load(folder, name, place))
        except Damaged:
            _say_damaged(folder / name)
            return False
    return True


def _say_damaged(path: Path) -> None:
    _log.warning("%s is damaged; it is trained again", path)


def _whose(segment: int) -> str:
    return f"segment {segment}" if segment else "the bank"


def _name(segment: int, expert: int) -> str:
    return f"segment{segment}_expert{expert}"


def _find_stored(
    folder: Path, segment: int, plan: ExpertPlan, identity: dict[str, Any]
) -> set[int]:
    """Experts that need no training; raises where they are not ours."""
    stored = set()
    for expert in range(plan.experts):
        try:
            theirs = checkpoint.read_metadata(folder, _name(segment, expert))
        except Damaged:
            _say_damaged(folder / _name(segment, expert))
            continue
        if theirs is None:
            continue
        names = checkpoint.differences(identity, theirs)
        if names == ["pool"]:
            path = folder / _name(segment, expert)
            _log.warning("%s is of another pool; it is trained again", path)
            continue
        if names:
            raise UserError(
                f"{folder} holds experts of another run; they differ in "
                f"{', '.join(names)}; use another folder or remove that one"
            )
        stored.add(expert)
    return stored
