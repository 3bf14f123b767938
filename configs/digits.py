"""scikit-learn digits, 8×8: the whole of DASM in a minute or two on two CPU cores.

python main.py --config=configs/digits.py --workdir=runs/digits
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
