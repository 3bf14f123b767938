"""scikit-learn digits, 8×8: the whole of DASM in a minute or two on two CPU cores.

    python main.py --config=configs/digits.py --workdir=runs/digits

Expect at IPC 2 and 10: DASM 88.3 ± 1.2 and 96.7 ± 0.6, Random 82.3 ± 1.7 and
94.8 ± 0.5, Full 99.1 ± 0.2 (seed 0, three networks; docs/results.md). 70 s from a cold
start on two CPU cores, 2026-11-21.
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
    config.matcher.metric = "mse"
    config.image.lr = 5e-3
    config.image.base_size = 8
    config.loop.niter = 20
    config.loop.inner = 20
    config.trajectory.n_data = 128
    config.dasm.segments = 5
    config.dasm.score_steps = 300
    config.evaluate.steps = 600
    config.evaluate.recipe.augment = "color_crop_scale_rotate"
    return config
