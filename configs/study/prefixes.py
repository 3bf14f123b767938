r"""What a growing set is worth before it is whole, beside runs made for those sizes.

    python main.py --config=configs/study/prefixes.py:digits \
        --workdir=runs/prefixes_digits

Datasets: digits, fashion_mnist_small, fashion_mnist_narrow, cifar10_small,
fashion_mnist, cifar10.
"""

from configs.study import base


def get_config(dataset=""):
    arms = ("idc", base.GROW_STRICT)
    config = base.table("prefixes", dataset, arms, "idc, grow_strict")
    config.study.ipcs = (10, 20, 30, 40, 50)  # where five segments of 50 end
    config.study.prefixes = True
    return config
