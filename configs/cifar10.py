"""CIFAR-10, 32×32, ConvNet-3 of width 128, IPC 10.

    python main.py --config=configs/cifar10.py --workdir=runs/cifar10

Published IDC at IPC 1/10/50 (1,000 epochs of evaluation): 50.6 / 67.5 / 74.5. This
program: not yet run (meant for a GPU).
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.name = "cifar10"
    # The constants of the public IDC; the standard deviation of the pixels themselves
    # is 0.247, 0.244, 0.262.
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2023, 0.1994, 0.2010)
    return config
