r"""DASM as the paper is read, while the defaults are tuned on evidence.

    python main.py --config=configs/paper.py:cifar10 --workdir=runs/cifar10_paper

Any dataset's own config may stand after the colon; the rest of it holds. A segment does
not see the finished ones and gets an equal share of the FLOPs, the low end of its pool
rises by a fixed share, the hardest 5 % are left out whatever they are, and a fifth is
drawn at random. docs/study.md says what each of that is worth.
"""

from importlib import import_module

DATASETS = (
    "default",
    "digits",
    "mnist",
    "fashion_mnist",
    "fashion_mnist_small",
    "fashion_mnist_narrow",
    "svhn",
    "cifar10",
    "cifar10_small",
    "cifar100",
    "tiny_imagenet",
    "imagenet10",
)


def get_config(dataset="default"):
    if dataset not in DATASETS:
        known = ", ".join(f"paper.py:{each}" for each in DATASETS)
        raise ValueError(f"the paper's reading needs a dataset: {known}")
    return as_read(import_module(f"configs.{dataset}").get_config())


def as_read(config):
    """The config with the paper's segments and pools; all else is left as it is."""
    dasm = config.dasm
    dasm.budget, dasm.context = "flops", "active"
    dasm.schedule, dasm.rho = "linear", 0.3
    dasm.high, dasm.ceiling, dasm.random_share = 0.95, "fixed", 0.2
    dasm.polish, dasm.polish_rate, dasm.polish_target = 0.0, 0.1, "class"
    dasm.polish_schedule, dasm.polish_nested = "matcher", 0.0
    config.synthetic.init = "mix"
    return config
