"""Every field, with the IDC/DASM defaults for 32 px colour images.

    python main.py --config=configs/default.py --workdir=runs/default

The other files start from this one; as it stands it is CIFAR-10 at IPC 10, meant for a
GPU, not yet run. ``seed`` fixes the synthesis, ``evaluate.seed`` the networks that
evaluate, and nothing else is random.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.experiment = "distill"  # what to run
    config.seed = 0  # of the synthesis
    config.ipc = 10  # stored images per class, all segments together

    config.data = data = ConfigDict()
    data.source = "tfds"  # tfds, folder (one sub-folder per class) or digits
    data.name = "cifar10"  # TFDS name, or the path of the folder
    data.data_dir = ""  # prepared TFDS datasets; empty: $TFDS_DATA_DIR, or TFDS' own
    data.train_split = "train"
    data.test_split = "test"
    data.test_share = 0.2  # of a folder that has no test/ of its own
    data.downsample = 1  # average blocks of n×n pixels on loading
    data.mean = ()  # per channel, images in [0, 1]; empty: computed on the train split
    data.std = ()

    config.network = network = ConfigDict()
    network.name = "convnet"
    network.width = 128  # channels
    network.depth = 3  # convolution blocks, each halves the image

    config.synthetic = synthetic = ConfigDict()
    synthetic.factor = 2  # f: a stored image holds f×f tiles (IDC's multi-formation)
    synthetic.formation = "single"  # single, multi (factors 1…f), bound (at most 128)
    synthetic.init = "mix"  # mix (f² real images per stored one), random, kmeans, noise

    config.matcher = matcher = ConfigDict()
    matcher.name = "idc"
    matcher.metric = "mse"  # mse, l1, l1_mean or cos, between gradients
    matcher.layers = "conv"  # conv (kernels only) or all
    matcher.augment = "color_crop_cutout"  # siamese: one draw for real and synthetic
    matcher.real_batch = 64  # real images per class and step
    matcher.synthetic_batch = 128  # decoded images per class and step, at most

    config.image = image = ConfigDict()
    image.lr = 5e-3  # used: lr · (ipc_k / 10) · (side / base_size)²
    image.base_size = 32
    image.momentum = 0.5

    config.loop = loop = ConfigDict()
    loop.niter = 2000  # outer iterations of one IDC run, a fresh network in each
    loop.inner = 100  # inner steps: match all classes, then train the network

    config.trajectory = trajectory = ConfigDict()  # the networks that are matched on
    trajectory.start = "random"  # random, or trained on the finished segments
    trajectory.data = "all"  # all real images, or the segment's pool
    trajectory.n_data = 2000  # real images a network is trained on per inner step
    trajectory.recipe = recipe = ConfigDict()
    recipe.batch = 64
    recipe.lr = 0.01
    recipe.momentum = 0.9
    recipe.weight_decay = 5e-4
    recipe.augment = "color_crop"  # per image
    recipe.cutmix = 0.5  # probability per batch

    config.dasm = dasm = ConfigDict()
    dasm.segments = 5  # K; 1 is IDC
    dasm.budget = "flops"  # of one IDC run: flops, steps (niter/K each) or per_segment
    dasm.pool = (
        "window"  # not_yet_learned_easiest, weighted, disjoint, static_filter, …
    )
    dasm.schedule = "linear"  # how low_k rises: linear, cosine or coverage
    dasm.rho = 0.3  # low_K: share of easy images the last segment leaves out
    dasm.high = 0.95  # the hardest 5 % are mostly label noise
    dasm.random_share = 0.2  # eps: random images of the class in every pool
    dasm.gamma = 1.0  # pool=weighted draws by score^gamma
    dasm.easiest_share = 0.5  # pool=not_yet_learned_easiest: share of the wrong ones
    dasm.coverage = 0.9  # schedule=coverage drops what is right with p above this
    dasm.score = "ce"  # ce, el2n, margin, grad_norm, misclassified or forgetting
    dasm.scored_by = "segments"  # networks trained on finished segments, or on real
    dasm.networks = 2  # N networks that score
    dasm.score_steps = 2000  # SGD steps of each, under the evaluation recipe
    dasm.rescore_every = 0  # outer iterations; 0: once per segment
    dasm.context = "active"  # synthetic batch: active segment, or cumulative

    config.evaluate = evaluate = ConfigDict()
    evaluate.seed = 0  # of the evaluation networks
    evaluate.networks = 3  # per set
    evaluate.steps = 10_000  # SGD steps of each, the same for every set in a table
    evaluate.recipe = recipe = ConfigDict()  # lr ×0.2 at 2/3 and 5/6 of the steps
    recipe.batch = 64
    recipe.lr = 0.01
    recipe.momentum = 0.9
    recipe.weight_decay = 5e-4
    recipe.augment = "color_crop_cutout_flip_scale_rotate"  # cutout or CutMix
    recipe.cutmix = 0.5

    config.log = log = ConfigDict()
    log.every = 1  # outer iterations per line in log.txt
    return config
