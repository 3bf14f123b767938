"""CIFAR-100, 32×32, ConvNet-3 of width 128, IPC 10.

    python main.py --config=configs/cifar100.py --workdir=runs/cifar100

Published IDC at IPC 10/20: 45.1 / 49.0. This program: not yet run (meant for a GPU;
CIFAR-100 has to be prepared for TFDS first, the error says how).
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.name = "cifar100"
    return config
