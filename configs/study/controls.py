r"""The controls without which no result counts, against IDC and DASM.

    python main.py --config=configs/study/controls.py:digits \
        --workdir=runs/controls_digits

Datasets: digits, fashion_mnist_small, fashion_mnist_narrow, cifar10_small,
fashion_mnist, cifar10.
"""

from configs.study import base


def get_config(dataset=""):
    arms = base.with_prefixes(base.CONTROLS, dataset, "dasm20:")
    config = base.table("controls", dataset, arms, "idc, dasm")
    config.study.prefixes = True
    return config
