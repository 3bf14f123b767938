"""CIFAR-10 averaged to 16×16, ConvNet-3 of width 16, IPC 50: minutes on two CPU cores.

    python main.py --config=configs/cifar10_small.py --workdir=runs/cifar_small

Expect at IPC 50 45.5 ± 0.4, with --config.dasm.segments=1 (IDC) 43.6 ± 0.7, Random
40.5, Full 54.6 (test split, five seeds, commit 975def9, docs/study.md). Making the set
takes seven and a half minutes of one CPU core, five for IDC.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.ipc = 50
    config.data.name = "cifar10"
    config.data.downsample = 2  # 32 px averaged to 16 px
    config.network.width = 16
    config.synthetic.factor = 1  # tiles of 8 px hold too little
    for m in (config.matcher.idc, config.matcher.idc_i):
        m.image.lr = 0.02  # chosen on training images, see docs/study.md
        m.image.base_size = 16
        m.trajectory.n_data = 500
        m.loop.niter = 30
        m.loop.inner = 50
    config.dasm.score_steps = 1000
    config.coreset.steps = config.measure.steps = 2000
    config.evaluate.steps = 3000
    # As of fashion_mnist_small: a network this narrow stays low with CutMix.
    config.evaluate.recipe.augment = "color_crop_flip_scale_rotate"
    config.evaluate.recipe.cutmix = 0.0
    config.log.every = 5
    return config
