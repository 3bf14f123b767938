"""Tiny ImageNet, 64×64, 200 classes, ConvNet-4 of width 128, IPC 10.

    python main.py --config=configs/tiny_imagenet.py --workdir=runs/tiny_imagenet \\
        --config.data.name=FOLDER

FOLDER holds train/ and test/ (the validation images), each with one folder per class
and the images right in it: the archive's train/n…/images/ have to be moved up, and its
validation images sorted by val_annotations.txt. Or any TFDS dataset:
--config.data.source=tfds --config.data.name=NAME --config.data.test_split=validation.

IDC publishes no setting for it: these are the values of CIFAR-100, untried. This
program: not yet run (meant for a GPU).
"""

from configs import default


def get_config():
    config = default.get_config()
    config.data.source = "folder"
    config.data.name = "data/tiny_imagenet"
    config.data.size = 64
    config.network.depth = 4
    return config
