"""scikit-learn digits, 8×8: the whole of DASM in two or three minutes on two CPU cores.

    python main.py --config=configs/digits.py --workdir=runs/digits

Expect at IPC 2 and 10: DASM 90.9 ± 0.4 and 97.8 ± 0.4, Random 82.3 ± 2.0 and
95.0 ± 0.7, Full 99.1 ± 0.2 (seed 0, three networks, two cores). Two and a half minutes
from a cold start on two CPU cores, 2026-11-23.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.ipc = 10
    config.data.source = "digits"
    config.data.name = "digits"
    config.network.width = 32
    config.network.depth = 2
    config.synthetic.factor = 1  # tiles of 4 px hold no digit
    for m in (config.matcher.idc, config.matcher.idc_i):
        m.metric = "mse"
        m.image.lr = 5e-3
        m.image.base_size = 8
        m.loop.niter = 20
        m.loop.inner = 20
        m.trajectory.n_data = 128
    matcher = config.matcher
    for m in (matcher.dc, matcher.dsa, matcher.cafe):
        m.real_batch = 64
        m.loop.niter = 10
    matcher.dm.real_batch = 64
    matcher.dm.loop.niter, matcher.dm.loop.inner = 10, 50
    mtt = matcher.mtt
    mtt.image.lr = 30.0  # of 10 to 10,000 the one with the lowest matching distance
    mtt.steps, mtt.expert_epochs, mtt.max_start = 10, 2, 8
    mtt.experts, mtt.epochs, mtt.recipe.batch = 10, 10, 64
    mtt.loop.niter, mtt.loop.inner = 20, 10
    config.recover.teacher_steps, config.recover.steps = 600, 500
    config.dasm.segments = 5
    config.dasm.score_steps = 300
    config.coreset.steps = config.measure.steps = 300
    config.evaluate.steps = 600
    config.evaluate.recipe.augment = "color_crop_scale_rotate"
    return config
