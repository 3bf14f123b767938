"""Fashion-MNIST averaged to 14×14, ConvNet-2 of width 32, IPC 50: minutes on two cores.

    python main.py --config=configs/fashion_mnist_small.py --workdir=runs/fashion_small

Expect at IPC 50 83.8 ± 0.2, with --config.dasm.segments=1 (IDC) 83.2 ± 0.4, Random
80.7, Full 85.0 (test split, five seeds, commit 975def9, docs/study.md). Making the set
takes six and a half minutes of one CPU core, four for IDC. Before 62a3ac7 this file had
a ConvNet-3 of width 16, of which docs/results.md speaks: network.depth=3 and width=16.
"""

from configs import fashion_mnist


def get_config():
    config = fashion_mnist.get_config()
    config.data.downsample = 2  # 28 px averaged to 14 px
    config.data.mean = ()  # averaging changes the statistics: computed
    config.data.std = ()
    # A third pooling leaves one pixel of 14, and few numbers to tell ten classes by.
    config.network.depth, config.network.width = 2, 32
    for m in (config.matcher.idc, config.matcher.idc_i):
        m.image.lr = 1e-3  # chosen on training images, see docs/results.md
        m.image.base_size = 14
        m.loop.niter = 30
        m.loop.inner = 50
    matcher = config.matcher
    for m in (matcher.dc, matcher.dsa, matcher.cafe, matcher.dm):
        m.real_batch = 64
        m.loop.niter = 10
    matcher.dm.loop.niter = 20
    mtt = matcher.mtt
    mtt.synthetic_batch, mtt.steps, mtt.expert_epochs, mtt.max_start = 128, 10, 1, 4
    mtt.experts, mtt.epochs = 3, 5
    mtt.loop.niter, mtt.loop.inner = 20, 10
    mtt.image.lr = 100.0  # chosen on training images, see docs/results.md
    config.recover.teacher_steps, config.recover.steps = 3000, 500
    config.dasm.score_steps = 1000
    config.coreset.steps = config.measure.steps = 2000
    config.evaluate.steps = 3000
    # Without CutMix: Full of a ConvNet-3 of width 16 stayed low (docs/results.md).
    config.evaluate.recipe.augment = "color_crop_flip_scale_rotate"
    config.evaluate.recipe.cutmix = 0.0
    config.log.every = 5
    return config
