"""Fashion-MNIST at full size, ConvNet-3 of width 16, IPC 50: half an hour of a core.

    python main.py --config=configs/fashion_mnist_narrow.py --workdir=runs/narrow

The network is an eighth as wide as the published one, and runs are as short as those of
fashion_mnist_small, so that a CPU can hold a study of full-size images.
"""

from configs import fashion_mnist, fashion_mnist_small


def get_config():
    config = fashion_mnist_small.get_config()
    full_size = fashion_mnist.get_config()
    config.data.downsample = 1
    config.data.mean, config.data.std = full_size.data.mean, full_size.data.std
    config.network.depth, config.network.width = 3, 16
    for m in (config.matcher.idc, config.matcher.idc_i):
        m.image.lr = 3e-3  # chosen on validation images, see docs/tuning.md
        m.image.base_size = 28
    return config
