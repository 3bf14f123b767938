"""The sets that experiments hold side by side, made by the name of their method."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dasm_jax import coreset, export, measures
from dasm_jax.dasm import synthetic_set
from dasm_jax.errors import CannotRead, UserError
from dasm_jax.experiments.keeper import Keeper
from dasm_jax.experiments.rollback import Rollback
from dasm_jax.files import cannot_read, may_be_whole
from dasm_jax.npz import DAMAGE, open_npz
from dasm_jax.parameterization import Parameterization, make_parameterization
from dasm_jax.plan import plan_segments
from dasm_jax.problem import Problem, make_problem
from dasm_jax.schedule import segment_sizes
from dasm_jax.schema import Settings
from dasm_jax.settings import changed
from dasm_jax.synthetic_files import load_set
from dasm_jax.types import ArrayDataset, Dataset

# What is asked of segments and would reach a single one: a baseline stays what it is
# when the method changes its settings. They go without saying.
ONE_SEGMENT = {
    "dasm.ceiling": "fixed",
    "dasm.target": "pool",
    "dasm.context": "active",
    "dasm.rescore_every": 0,
}
UNSAID = {
    "static_filter": ONE_SEGMENT,
    # Before the first segment nothing is scored, so this window is the whole class.
    "idc": {**ONE_SEGMENT, "dasm.pool": "window"},
}
# What a distilled set changes in the settings. Anything else is selected.
DISTILLED = {
    # The paper's failing baseline: filter the easy images first, then distil.
    "static_filter": {
        **UNSAID["static_filter"],
        "dasm.segments": 1,
        "dasm.pool": "static_filter",
    },
    "idc": {**UNSAID["idc"], "matcher.name": "idc", "dasm.segments": 1},
    "dasm": {},
}
LABELS = {
    "random": "Random",
    "herding": "Herding",
    "k_center": "k-center",
    "k_means": "k-means",
    "forgetting": "Forgetting",
    "el2n": "EL2N",
    "grand": "GraNd",
    "static_filter": "static filter",
    "idc": "IDC",
    "dasm": "DASM",
}


class Part(NamedTuple):
    """A segment of a set, or the whole of one that has none."""

    pixels: np.ndarray  # f32[C, n, H, W, ch], stored
    flops: float  # counted, of matching
    seconds: float  # of making it, scoring included, compiling left out


class Run(NamedTuple):
    """One synthesis, and the set sizes that its prefixes give."""

    ipc: int
    prefixes: tuple[int, ...]


def segment_ends(ipc: int, segments: int) -> list[int]:
    """The sizes at which a segment of a set of ``ipc`` images per class ends."""
    return np.cumsum(segment_sizes(ipc, min(segments, ipc))).tolist()


def runs_for(
    method: str, ipcs: tuple[int, ...], segments: int, *, polished: bool
) -> list[Run]:
    """The runs that give sets of all ``ipcs``.

    DASM needs one for all sizes at which a segment of the largest set ends; where the
    set is smaller than a segment, or ends inside one, it is made on its own. So it is
    where segments are polished together: prefixes are worth less than runs of the
    same settings, or with ``polish_nested`` than runs without it.
    """
    if method != "dasm" or polished:
        return [Run(ipc, (ipc,)) for ipc in sorted(ipcs)]
    largest = max(ipcs)
    ends = segment_ends(largest, segments)
    shared = tuple(sorted(ipc for ipc in ipcs if ipc in ends))
    own = [Run(ipc, (ipc,)) for ipc in sorted(ipcs) if ipc not in ends]
    return [*own, Run(largest, shared)]


def settings_for(settings: Settings, method: str, ipc: int, seed: int) -> Settings:
    """Settings of the run that makes the set of a method (``settings_with``)."""
    return settings_with(settings, DISTILLED.get(method, {}), ipc, seed)


def settings_with(
    settings: Settings, changes: dict[str, Any], ipc: int, seed: int
) -> Settings:
    """Settings of the run that makes a set; evaluation differs in the seed only.

    Raises:
      UserError: they do not hold together.
    """
    segments = changes.get("dasm.segments", settings.dasm.segments)
    return changed(
        settings,
        {
            **changes,
            "experiment": "distill",
            "ipc": ipc,
            "seed": seed,
            "evaluate.seed": seed,
            "dasm.segments": min(segments, ipc),
        },
    )


def distil(
    settings: Settings,
    dataset: Dataset,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    on_rollback: Callable[[Rollback], None] = lambda rollback: None,
) -> tuple[list[Part], list[dict[str, Any]]]:
    """Run the matcher of ``settings``, and measure its segments as every run does.

    Args:
      settings: of the run.
      dataset: the real images.
      folder: for checkpoints, to be discarded once the set is kept, and for experts
        where the matcher needs some.
      say: told of what else there is to know.
      on_rollback: called before it goes on from an earlier moment.

    Raises:
      Interrupted: by a signal.
      NonFiniteError: it diverged.
      UserError: checkpoints are of something else, or cannot be written.
    """
    problem = make_problem(settings, dataset)
    with Keeper(problem, plan_segments(problem), folder) as keeper:
        if keeper.moved:
            say(keeper.moved)
        results = keeper.distil(
            experts_folder=folder,
            on_rollback=on_rollback,
            on_need=lambda need: say(str(need)),
        )
    parts = [
        Part(
            result.pixels,
            result.plan.flops,
            result.seconds.matching + result.seconds.scoring + result.seconds.experts,
        )
        for result in results
    ]
    reference = measures.reference_for(problem, say)
    if reference is None:
        return parts, []
    return parts, list(measures.measure_segments(problem, reference, results))


def make_selection(problem: Problem) -> Callable[[str, int], list[Part]]:
    """``select(method, ipc) -> [Part]`` of real images; networks are trained once."""
    select = coreset.make_selector(problem, jax.random.key(problem.settings.seed))

    def selected(method: str, ipc: int) -> list[Part]:
        began = time.perf_counter()
        index = select(method, ipc)
        pixels = problem.dataset.train.images[index] / np.float32(255)
        return [Part(pixels, 0.0, time.perf_counter() - began)]

    return selected


def formation_for(problem: Problem, method: str) -> Parameterization:
    """How the stored images of a method are decoded; real ones are what they are."""
    if method in DISTILLED:
        return problem.parameterization
    return make_parameterization("single", 1, problem.dataset.image_shape[:2])


def save(
    path: Path, problem: Problem, parts: list[Part], formation: Parameterization
) -> None:
    """Write ``parts`` as a synthetic set that is decoded by ``formation``.

    Raises:
      UserError: it cannot be written.
    """
    export.save_synthetic(
        path,
        synthetic_set([part.pixels for part in parts]),
        parameterization=formation,
        statistics=problem.statistics,
        class_names=problem.dataset.class_names,
    )


def load_decoded(path: Path, problem: Problem, most: int) -> ArrayDataset | None:
    """Images f32[M, H, W, C] and labels i32[M] of a set that ``save`` wrote.

    None where there is no such file, a damaged one, or one of more than ``most``
    images: the set can be made again.

    Raises:
      CannotRead: it may be whole, and cannot be read now or does not fit in memory.
    """
    try:
        found = load_set(path, problem.dataset, problem.statistics)
    except CannotRead:
        raise
    except UserError:
        return None
    return found.decoded if len(found.decoded.labels) <= most else None


def load_parts(
    path: Path, sizes: tuple[int, ...], n_classes: int, costs: list[tuple[float, float]]
) -> list[Part] | None:
    """The segments of a set that ``save`` wrote.

    Args:
      path: of the set.
      sizes: stored images per class of each segment.
      n_classes: of the dataset.
      costs: counted FLOPs and seconds of each segment.

    Returns:
      None where the file is damaged, or holds other segments.

    Raises:
      CannotRead: it may be whole, and cannot be read now.
    """
    try:
        with open_npz(path) as reader:
            pixels = reader.array("stored_pixels")
            labels = reader.array("stored_labels")
            segments = reader.array("stored_segments")
    except DAMAGE as error:
        if may_be_whole(error):
            raise cannot_read(path, error) from error
        return None
    wanted = [np.repeat(np.arange(n_classes), size) for size in sizes]
    numbers = np.repeat(np.arange(len(sizes)) + 1, [len(each) for each in wanted])
    as_saved = np.array_equal(segments, numbers) and np.array_equal(
        labels, np.concatenate(wanted)
    )
    if not as_saved or len(pixels) != len(labels) or len(costs) != len(sizes):
        return None
    ends = np.cumsum([len(each) for each in wanted])[:-1]
    return [
        Part(of_segment.reshape(n_classes, -1, *pixels.shape[1:]), *cost)
        for of_segment, cost in zip(np.split(pixels, ends), costs, strict=True)
    ]


def prefix(parts: list[Part], ipc: int) -> list[Part]:
    """The segments that together hold ``ipc`` stored images per class."""
    ends = np.cumsum([part.pixels.shape[1] for part in parts]).tolist()
    return parts[: ends.index(ipc) + 1]
