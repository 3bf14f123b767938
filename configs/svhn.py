"""SVHN (cropped digits), 32×32, ConvNet-3 of width 128, IPC 10.

    python main.py --config=configs/svhn.py --workdir=runs/svhn

Published IDC at IPC 1/10/50: 68.5 / 87.5 / 90.1. This program: not yet run (meant for a
GPU; SVHN has to be prepared for TFDS first, the error says how).
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.name = "svhn_cropped"
    for m in (config.matcher.idc, config.matcher.idc_i):
        m.trajectory.n_data = 500
    config.evaluate.recipe.augment = "color_crop_scale_rotate"  # digits do not flip
    return config
