"""Every field, for 32 px colour images; configs/paper.py has DASM as its paper reads.

    python main.py --config=configs/default.py --workdir=runs/default

The other files start from this one; as it stands it is CIFAR-10 at IPC 10, meant for a
GPU, not yet run. ``seed`` fixes the synthesis, Random and coresets, ``evaluate.seed``
the networks that evaluate and measure, and nothing else is random.
"""

from ml_collections import ConfigDict

from configs import matchers


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.experiment = "distill"  # what to run
    config.seed = 0  # of the synthesis
    config.devices = 0  # to work on side by side; 0: all there are
    # A distance or pixel that is not finite: stop, or rollback (to the last checkpoint,
    # with the image rate halved from there on; ten times, then it stops)
    config.on_nonfinite = "stop"
    config.ipc = 10  # stored images per class, all segments together

    config.data = data = ConfigDict()
    data.source = "tfds"  # tfds, folder (one sub-folder per class) or digits
    data.name = "cifar10"  # TFDS name, or the path of the folder
    data.data_dir = ""  # prepared TFDS datasets; empty: $TFDS_DATA_DIR, or TFDS' own
    data.train_split = "train"
    data.test_split = "test"
    data.test_share = 0.2  # of a folder that has no test/ of its own
    data.validation = 0.0  # share of training images tested on in the test's place
    data.size = 0  # px: shorter side resized, then centre crop; 0: images as they are
    data.downsample = 1  # average blocks of n×n pixels on loading
    data.zca = False  # networks see whitened images (trajectory matching on CIFAR)
    data.mean = ()  # per channel, images in [0, 1]; empty: computed on the train split
    data.std = ()

    config.network = network = ConfigDict()
    # convnet, lenet, mlp, alexnet, vgg11, resnet10, resnet18, resnet_ap10, densenet or
    # vit
    network.name = "convnet"
    # Channels of the first layer (mlp: hidden ones, densenet: growth, vit: per token);
    # 0: as published, 128 of convnet, mlp and alexnet, 64 of vgg11 and resnets, 12, 192
    network.width = 0
    network.depth = 3  # of convnet: convolution blocks, each halves the image
    # instance, batch, group, layer or none; of convnet, vgg11, resnets and densenet
    network.norm = "instance"
    network.activation = "relu"  # of convnet: relu, leaky or sigmoid
    network.pooling = "average"  # of convnet: average, max or none

    config.synthetic = synthetic = ConfigDict()
    # f: a stored image holds f×f tiles (IDC's multi-formation); 0: as the matcher
    # published it, 2 for idc and 1 for all others.
    synthetic.factor = 0
    synthetic.formation = "single"  # single, multi (factors 1…f), bound (at most 128)
    # mix (f² real images per stored one), random, kmeans, noise, or uncovered: as mix,
    # and later segments from images that are far from all finished ones
    synthetic.init = "uncovered"

    config.matcher = matchers.get_config()  # the objective, and its settings

    config.dasm = dasm = ConfigDict()
    dasm.segments = 5  # K; 1 is IDC
    # prefix: of a run with K = 1 the first segment gets the FLOPs that one of its size
    # would have (at most half of all), the others share the rest, and there is no
    # polish; or of that run flops, steps (1/K each) or per_segment
    dasm.budget = "prefix"
    # A segment's share of flops, steps or per_segment over that of the one before it
    dasm.taper = 1.0
    # window, reverse, random, full, weighted, disjoint, not_yet_learned_easiest; or by
    # networks trained on real images static_filter [rho, 1], static_window [rho, high]
    dasm.pool = "window"
    # How low_k rises: linear or cosine to rho, or coverage: to what is learned already
    dasm.schedule = "coverage"
    dasm.coverage = 0.9  # that is what is predicted right with p above this
    # low_K of linear and cosine: share of easy images that the last segment leaves out;
    # and the low end of the static pools
    dasm.rho = 0.3
    dasm.high = 1.0  # where windows end; 0.95 leaves out what is hardest
    # fixed: the window ends at high; chance: at the share of a class, if that is less,
    # to which the networks that judge give at least the probability of a guess;
    # learnable: what networks of the real images give less than that is in no pool
    dasm.ceiling = "learnable"
    dasm.random_share = 0.0  # eps: random images of the class in every pool
    dasm.gamma = 1.0  # pool=weighted draws by score^gamma
    dasm.easiest_share = 0.5  # pool=not_yet_learned_easiest: share of the wrong ones
    dasm.score = "ce"  # ce, el2n, margin, grad_norm, misclassified or forgetting
    dasm.scored_by = "segments"  # networks trained on finished segments, or on real
    dasm.networks = 2  # N networks that score
    dasm.score_steps = 2000  # SGD steps of each, under the evaluation recipe
    dasm.rescore_every = 0  # outer iterations, of a polish too; 0: once in each
    dasm.target = (
        "pool"  # what is matched; class: all of it, the pool is where segments start
    )
    # Synthetic batch: the active segment, or cumulative, the finished ones beside it
    dasm.context = "cumulative"
    # Share of the FLOPs for all segments together at the end, where there are several
    # and the matcher is not mtt; not with budget=prefix
    dasm.polish = 0.0
    dasm.polish_rate = 1.0  # of the image rate of the whole set
    dasm.polish_schedule = "matcher"  # as image.schedule, or constant or cosine
    # How much of the pull on a segment is that of the prefix it ends, as if what comes
    # after it were not there; the rest is that of the whole set
    dasm.polish_nested = 0.0
    # What it is matched against: class, or a pool by the last segment's rule, judged by
    # networks trained on all segments (scored_by=real, static pools: on real images)
    dasm.polish_target = "pool"

    config.evaluate = evaluate = ConfigDict()
    evaluate.seed = 0  # of the evaluation networks
    evaluate.networks = 3  # per set
    evaluate.steps = 10_000  # SGD steps of each, the same for every set in a table
    evaluate.prefixes = True  # every prefix of the segments, or the whole set alone
    evaluate.baselines = True  # Random and Full beside it
    evaluate.at_once = 0  # networks per launch; 0: on CPU one per device, else all
    # From here to looks for experiment=evaluate: files or folders, commas between
    evaluate.synthetic = ""
    # name, name/norm, name/width or name/norm/width, such as "resnet18/batch"; empty:
    # config.network. One of the same name as config.network inherits from it, others
    # are as published (norm: instance, batch of densenet).
    evaluate.architectures = ()
    evaluate.augmentations = ("recipe",)  # recipe, none (for ARS), dsa, dsa_cutmix
    evaluate.epochs = 0  # over the decoded set, instead of steps; 0: steps
    evaluate.same_compute = False  # epochs divided by f²
    evaluate.looks = 5  # tests of a network on its way; the best is printed apart
    evaluate.recipe = recipe = ConfigDict()  # lr ×0.2 at 2/3 and 5/6 of the steps
    recipe.batch = 64
    recipe.lr = 0.01
    recipe.momentum = 0.9
    recipe.weight_decay = 5e-4
    recipe.augment = "color_crop_cutout_flip_scale_rotate"  # cutout or CutMix
    recipe.cutmix = 0.5

    config.recover = recover = ConfigDict()  # experiment=recover, the SRe2L line
    recover.teacher_steps = 10_000  # of a network with batch norm, on all real images
    recover.steps = 2000  # of Adam on the images
    recover.lr = 0.1  # on the network's inputs
    recover.bn_weight = 0.01  # of the distance between batch and running statistics
    recover.augment = "color_crop_flip"  # per image and step
    recover.temperature = 1.0  # of the teacher's soft labels

    config.compare = compare = ConfigDict()  # experiment=compare, a table of matchers
    compare.matchers = ("idc", "dc", "dsa", "dm", "cafe", "mtt")
    compare.ipcs = (10, 50)
    compare.seeds = (0,)  # of synthesis and evaluation
    compare.document = ""  # Markdown file whose section for this dataset is renewed

    config.coreset = coreset = ConfigDict()  # experiment=coreset, real images selected
    coreset.methods = (
        "random",
        "herding",
        "k_center",
        "k_means",
        "forgetting",
        "el2n",
        "grand",
        "static_filter",
    )
    coreset.networks = 2  # trained on all real images, for embeddings and scores
    coreset.steps = 2000  # SGD steps of each, under the evaluation recipe
    coreset.looks = 10  # moments of a training; forgetting sees all, el2n the first

    config.curve = curve = ConfigDict()  # experiment=curve, accuracy over IPC
    curve.methods = (*coreset.methods, "idc", "dasm")
    curve.ipcs = (1, 10, 20, 50)
    curve.seeds = (0, 1, 2)  # of synthesis and evaluation
    curve.document = ""  # Markdown file whose section for this dataset is renewed

    config.study = study = ConfigDict()  # experiment=study, arms and their differences
    study.name = "study"  # of the table, in documents and file names
    # "name: field=value …", fields of dasm, matcher and synthetic; or a name of
    # curve.methods alone
    study.arms = ("random", "idc", "dasm")
    # Arm that the others are compared with, and whose matching FLOPs they get; further
    # ones after commas get a column of differences each
    study.baseline = "idc"
    study.ipcs = (10, 50)
    study.seeds = (0, 1, 2)  # of synthesis and evaluation
    study.prefixes = False  # of the largest runs too, where a segment ends at an IPC
    study.rows = ""  # cells.csv files, commas between: show them, run nothing
    study.document = ""  # Markdown file whose section is renewed, the CSV beside it

    config.analyse = analyse = ConfigDict()  # experiment=analyse, measures of runs
    analyse.name = "analysis"  # of the tables, in documents and file names
    # "name: workdir, workdir, …": finished runs that differ in their seeds; others
    # are compared with the first name
    analyse.runs = ()
    analyse.rows = ""  # a rows.csv of an analysis: show it, read no run
    analyse.document = ""  # Markdown file whose section is renewed, files beside it

    config.measure = measure = ConfigDict()  # what a run measures of itself
    measure.networks = 1  # trained on all real images, they rank difficulty; 0: nothing
    measure.steps = 2000  # SGD steps of each, under the evaluation recipe
    measure.images = 500  # real images whose gradient norms are taken

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.resume = "auto"  # go on where a run stopped; must: or refuse; never:
    # remove what is there, a finished run as well, and begin anew
    checkpoint.minutes = 10.0  # between two, beside that at every segment's end; 0:
    # after every outer iteration
    checkpoint.keep = 2  # the newest ones

    config.log = log = ConfigDict()
    log.every = 1  # outer iterations per line in log.txt
    return config
