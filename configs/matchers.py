"""The matchers, each with published values for 32 px colour images.

``config.matcher.name`` picks one; only its own group is read, so that changing the name
changes everything that belongs to it. Fields that several have are explained once.
Where a program differs from the public ones beyond these values, docs/method.md says so
(augmentation: all operations in a row, as IDC, where DSA and its successors pick one).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = "idc"  # idc, idc_i, dc, dsa, dm, cafe or mtt
    config.idc = idc()
    config.idc_i = idc()  # IDC without tiles: synthetic.factor=1
    config.dc = dc()
    config.dsa = dsa()
    config.dm = dm()
    config.cafe = cafe()
    config.mtt = mtt()
    return config


def idc() -> ConfigDict:
    """Gradients of networks trained on real images."""
    config = ConfigDict()
    config.metric = "mse"  # mse, l1, l1_mean or cos, between gradients
    config.layers = "conv"  # conv (kernels), kernels (dense ones too) or all
    config.augment = "color_crop_cutout"  # siamese: one draw for real and synthetic
    config.real_batch = 64  # real images per class and step
    # shuffled: without replacement; kmeans: one of each of so many clusters of the pool
    config.batches = "shuffled"
    config.synthetic_batch = 128  # decoded images per class and step, at most
    config.image = _image(5e-3, rule="idc", class_turns=True)
    config.loop = _loop(2000, 100)
    config.trajectory = trajectory = ConfigDict()  # the networks that are matched on
    trajectory.start = "random"  # random, or trained on the finished segments
    trajectory.data = "all"  # trained between steps on: all, pool, synthetic, none
    trajectory.n_data = 2000  # real images per inner step
    trajectory.epochs = 0  # of synthetic images per inner step; 0: as published, by IPC
    # Networks trained on real images once, that outer iterations start from; 0: fresh
    trajectory.bank = 0
    trajectory.bank_epochs = 2  # of each
    trajectory.perturb = (
        0.0  # of one from the bank: a random move, in its filters' norms
    )
    trajectory.recipe = _recipe(augment="color_crop", cutmix=0.5)
    return config


def dc() -> ConfigDict:
    """Gradients of networks trained on the synthetic images, without augmentation."""
    config = idc()
    config.metric = "cos"
    config.layers = "kernels"
    config.augment = "none"
    config.real_batch = 256
    config.synthetic_batch = 256
    config.image = _image(0.1)
    config.loop = _loop(1000, 0)
    config.trajectory.data = "synthetic"
    config.trajectory.recipe = _recipe(batch=256, momentum=0.0, weight_decay=0.0)
    return config


def dsa() -> ConfigDict:
    """DC with siamese augmentation, in matching and in training."""
    config = dc()
    config.augment = "color_crop_cutout_flip_scale_rotate"
    config.trajectory.recipe.augment = config.augment
    return config


def dm() -> ConfigDict:
    """Mean embeddings of networks that are drawn anew in every step."""
    config = ConfigDict()
    config.augment = "color_crop_cutout_flip_scale_rotate"
    config.real_batch = 256
    config.batches = "shuffled"
    config.synthetic_batch = 256
    config.image = _image(1.0)
    config.loop = _loop(200, 100)
    config.trajectory = idc().trajectory
    config.trajectory.data = "none"
    return config


def cafe() -> ConfigDict:
    """Mean features of every layer, and discrimination by them."""
    config = dc()
    del config.metric, config.layers
    config.discrimination = 0.01  # weight of the loss that tells real images apart
    return config


def mtt() -> ConfigDict:
    """Parameters after training on synthetic images, against those of experts."""
    config = ConfigDict()
    config.augment = "color_crop_cutout_flip_scale_rotate"  # of the student, per image
    config.synthetic_batch = 256  # decoded images of all classes per student step
    config.image = _image(1000.0)
    config.loop = _loop(500, 10)
    config.steps = 30  # student steps that are unrolled
    config.expert_epochs = 2  # how far ahead on the expert's way the target lies
    config.max_start = 15  # last epoch from which a student starts
    config.step_size = 0.01  # of the student at first; learned
    config.step_size_lr = 1e-5  # learning rate of the step size
    config.experts = 100  # trajectories
    config.epochs = 20  # of each; at least max_start + expert_epochs
    config.at_once = 0  # experts trained at a time; 0: on CPU one per device, else 10
    config.folder = ""  # stored experts of all real images; empty: in the workdir
    config.recipe = _recipe(
        batch=256, momentum=0.0, weight_decay=0.0, augment=config.augment
    )
    return config


def _image(lr: float, rule: str = "inputs", class_turns: bool = False) -> ConfigDict:
    config = ConfigDict()
    config.lr = lr
    config.schedule = "constant"  # or cosine: to 0 over a segment's outer iterations
    # idc: lr · (ipc_k / 10) · (side / base_size)² on pixels; inputs: lr as it stands on
    # the normalised images that networks see, which is what the others publish.
    config.rule = rule
    config.base_size = 32
    config.momentum = 0.5
    config.class_turns = class_turns  # one step after every class, as IDC's loop
    return config


def _loop(niter: int, inner: int) -> ConfigDict:
    config = ConfigDict()
    config.niter = niter  # outer iterations with one segment, fresh networks in each
    config.inner = inner  # steps of each; 0: as DC published, by IPC
    return config


def _recipe(
    batch: int = 64,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    augment: str = "none",
    cutmix: float = 0.0,
) -> ConfigDict:
    config = ConfigDict()
    config.batch = batch
    config.lr = 0.01
    config.momentum = momentum
    config.weight_decay = weight_decay
    config.augment = augment  # per image
    config.cutmix = cutmix  # probability per batch
    return config
