"""What is measured: sizes, their settings, and random images of these sizes."""

import argparse
import importlib.util
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import timing
from configs import default, paper
from dasm_jax.problem import Problem, make_problem
from dasm_jax.settings import from_config
from dasm_jax.types import ArrayDataset, Dataset

# As CIFAR-100 has; batches are gathered from a set that no cache holds.
IMAGES_PER_CLASS = 500


class Case(NamedTuple):
    """IDC on a ConvNet-3 and images of one size."""

    name: str
    side: int = 32  # px
    channels: int = 3
    width: int = 128  # of the network
    n_classes: int = 10
    stored: int = 32  # stored images per class
    factor: int = 2  # tiles per side of a stored image
    real_batch: int = 64  # real images per class and step
    synthetic_batch: int = 128  # decoded images per class and step, at most
    n_data: int = 2000  # real images that networks see per inner step
    metric: str = "mse"
    per_class: int = IMAGES_PER_CLASS  # real images in the data set


CASES = {
    case.name: case
    for case in (
        # The network and images of configs/fashion_mnist.py, a quarter as wide.
        Case(
            name="small",
            side=28,
            channels=1,
            width=32,
            stored=10,
            n_data=500,
            metric="l1",
        ),
        Case(name="paper"),
        Case(name="classes100", n_classes=100, stored=10),
    )
}


def quick(case: Case) -> Case:
    """The same kind of case in a size for tests."""
    return case._replace(
        width=4,
        n_classes=2,
        stored=2,
        real_batch=4,
        n_data=10,
        per_class=12,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the benchmarks that have cases and a PyTorch side."""
    parser.add_argument(
        "--cases", default="small,paper", help=f"of {','.join(CASES)}, commas between"
    )
    parser.add_argument("--classes", type=timing.positive, help="instead of the case's")
    parser.add_argument("--no-torch", action="store_true", help="measure ours only")
    timing.add_options(parser, repeats=5)


def parse(
    parser: argparse.ArgumentParser, argv: list[str] | None
) -> argparse.Namespace:
    """Parse these options, and turn the names of cases into cases.

    What is wrong ends the program, with one line.
    """
    options = parser.parse_args(argv)
    names = options.cases.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; known: {', '.join(CASES)}")
    options.cases = [CASES[name] for name in names]
    if options.quick:
        options.cases = [quick(case) for case in options.cases]
    if options.classes:
        classes = {"n_classes": options.classes}
        options.cases = [case._replace(**classes) for case in options.cases]
    timing.check_devices(parser, options)
    if options.no_torch:
        return options
    if importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed; --no-torch measures ours alone")
    if jax.default_backend() != "cpu":
        # Two devices beside each other would look like two programs.
        parser.error(
            f"PyTorch runs on the CPU here, JAX on {jax.default_backend()}: "
            "--no-torch measures ours alone, JAX_PLATFORMS=cpu both on the CPU"
        )
    return options


def random_dataset(case: Case, seed: int = 0) -> Dataset:
    """Noise in the shapes of a data set; what is measured depends on shapes alone."""
    rng = np.random.default_rng(seed)
    shape = (case.side, case.side, case.channels)

    def split(per_class: int) -> ArrayDataset:
        labels = np.repeat(np.arange(case.n_classes, dtype=np.int32), per_class)
        images = rng.integers(0, 256, (len(labels), *shape), np.uint8)
        return ArrayDataset(images, labels)

    return Dataset(
        name="noise",
        train=split(case.per_class),
        test=split(1),
        class_names=tuple(str(label) for label in range(case.n_classes)),
        content_hash="noise",
    )


def problem_for(case: Case, devices: int | None, **changes: object) -> Problem:
    """Settings and data of a case, for so many devices, or all.

    ``changes`` are dotted keys with ``__`` for dots.
    """
    config: Any = paper.as_read(default.get_config())
    config.devices = devices or 0
    config.ipc = case.stored
    config.network.width = case.width
    config.synthetic.factor = case.factor
    config.dasm.segments = 1
    idc = config.matcher.idc
    idc.metric = case.metric
    idc.real_batch = case.real_batch
    idc.synthetic_batch = case.synthetic_batch
    idc.trajectory.n_data = case.n_data
    idc.image.base_size = case.side
    if case.metric == "l1":
        idc.image.lr = 1e-4
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return make_problem(from_config(config), random_dataset(case))
