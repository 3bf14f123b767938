r"""What the tables of the study have in common; docs/study.md is their protocol.

Each of them is one file beside this one, and takes the dataset after a colon:

    python main.py --config=configs/study/controls.py:digits \
        --workdir=runs/controls_digits
"""

from configs import (
    cifar10,
    cifar10_small,
    digits,
    fashion_mnist,
    fashion_mnist_narrow,
    fashion_mnist_small,
    paper,
)

DATASETS = {
    "digits": (digits, (10, 50)),  # about 115 images per class are left to select from
    "fashion_mnist_small": (fashion_mnist_small, (10, 50, 100, 200)),
    "fashion_mnist_narrow": (fashion_mnist_narrow, (10, 50, 100, 200)),
    "cifar10_small": (cifar10_small, (10, 50, 100, 200)),
    "fashion_mnist": (fashion_mnist, (10, 50, 100, 200)),
    "cifar10": (cifar10, (10, 50, 100, 200)),
}
# Each beside Full.
CONTROLS = (
    "idc",  # one segment
    "dasm",
    "full_pool: dasm.pool=full",
    "random_pool: dasm.pool=random",
    "reverse: dasm.pool=reverse",
    "static_filter",
    "random",
    "herding",
    "k_means",
)

# Without what is hardest in the eyes of networks trained on the real images: every
# segment, the first too.
EASY = "dasm.pool=static_window dasm.rho=0 dasm.high=0.7"
# What the set so far has not learned, and the real images teach.
LEARNABLE = "dasm.schedule=coverage dasm.high=1.0 dasm.ceiling=learnable"
# Five segments that are little more than where the whole set starts.
TOGETHER = "dasm.polish=0.8 dasm.polish_rate=1.0 dasm.polish_target=pool"
UNCOVERED = "synthetic.init=uncovered"
# Segments that are frozen and see the finished ones, so that a prefix is about the set
# that would be made for its size; in its pools nothing of what is learned.
SEEN = "dasm.context=cumulative"
BY_PREFIX = "dasm.budget=prefix"
STRICT = "dasm.random_share=0.0"
# The defaults of configs/default.py; the tables start from the paper's reading.
GROWING = f"{LEARNABLE} {UNCOVERED} {SEEN} {BY_PREFIX} {STRICT}"
GROW_STRICT = f"grow_strict: {GROWING}"
# The defaults before that.
LEARN5 = f"learn5: {LEARNABLE} {TOGETHER} {UNCOVERED}"

# Five segments of the largest set end at no other IPC but on digits; twenty do.
TWENTY = "dasm.segments=20"


def with_prefixes(arms, dataset, longer):
    """The arms, with one whose largest run has a prefix of every IPC of the dataset.

    ``longer`` is its name and changes, to which it takes twenty segments.
    """
    largest = max(DATASETS.get(dataset, ("", (0,)))[1])
    return (*arms, f"{longer} {TWENTY}") if largest == 200 else arms


def table(name, dataset, arms, baseline):
    """The config of a table on a dataset: its own, with the paper's segments and pools.

    So the arm ``dasm`` is the paper's reading, and others say what they change in it.
    """
    if dataset not in DATASETS:
        known = ", ".join(f"{name}.py:{each}" for each in DATASETS)
        raise ValueError(f"a table of the study needs a dataset: {known}")
    module, ipcs = DATASETS[dataset]
    config = paper.as_read(module.get_config())
    config.experiment = "study"
    config.data.validation = 0.2
    config.measure.networks = 0  # what a set is like is another question
    study = config.study
    study.name, study.arms, study.baseline = name, arms, baseline
    study.ipcs, study.seeds = ipcs, (0, 1, 2)
    return config


def image_rate(dataset):
    """lr of the images of IDC on this dataset."""
    return DATASETS[dataset][0].get_config().matcher.idc.image.lr
