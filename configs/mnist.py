"""MNIST, 28×28, ConvNet-3 of width 128, IPC 10.

    python main.py --config=configs/mnist.py --workdir=runs/mnist

Published IDC at IPC 1/10/50: 94.2 / 98.4 / 99.1. This program: not yet run (meant for a
GPU; MNIST has to be prepared for TFDS first, the error says how).
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.name = "mnist"
    for m in (config.matcher.idc, config.matcher.idc_i):
        m.metric = "l1"
        m.augment = "color_crop"
        m.image.lr = 1e-4
        m.image.base_size = 28
        m.trajectory.n_data = 500
        m.trajectory.recipe.cutmix = 0.0
    config.evaluate.recipe.augment = "color_crop_scale_rotate"  # digits do not flip
    config.evaluate.recipe.cutmix = 0.0
    return config
