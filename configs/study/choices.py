r"""Every open choice of the method on its own, against the defaults.

    python main.py --config=configs/study/choices.py:digits \
        --workdir=runs/choices_digits

Datasets: digits, fashion_mnist_small, fashion_mnist_narrow, cifar10_small,
fashion_mnist, cifar10.
"""

from configs.study import base

# Each is a change of the defaults.
CHOICES = (
    # Where a pool begins and ends, and what is drawn beside it.
    "coverage_0.8: dasm.coverage=0.8",
    "coverage_0.95: dasm.coverage=0.95",
    "linear: dasm.schedule=linear",
    "rho_0.1: dasm.schedule=linear dasm.rho=0.1",
    "rho_0.6: dasm.schedule=linear dasm.rho=0.6",
    "cosine: dasm.schedule=cosine",
    "high_0.95: dasm.high=0.95",
    "no_ceiling: dasm.ceiling=fixed",
    "chance: dasm.ceiling=chance",
    "random_share_0.2: dasm.random_share=0.2",
    "random_share_0.5: dasm.random_share=0.5",
    # Other pools.
    "full_pool: dasm.pool=full",
    "random_pool: dasm.pool=random",
    "reverse: dasm.pool=reverse",
    "easiest_wrong: dasm.pool=not_yet_learned_easiest",
    "weighted: dasm.pool=weighted",
    "disjoint: dasm.pool=disjoint",
    "filtered: dasm.pool=static_filter",
    "static_window: dasm.pool=static_window",
    # The score, and who gives it.
    "el2n_score: dasm.score=el2n",
    "margin: dasm.score=margin",
    "grad_norm: dasm.score=grad_norm",
    "misclassified: dasm.score=misclassified",
    "forgotten: dasm.score=forgetting",
    "by_real: dasm.scored_by=real",
    "networks_5: dasm.networks=5",
    "rescored: dasm.rescore_every=2",
    # What segments see of each other.
    "alone: dasm.context=active",
    "start_segments: matcher.idc.trajectory.start=segments",
    "data_pool: matcher.idc.trajectory.data=pool",
    # Segments, their shares of the work and their first images.
    "segments_2: dasm.segments=2",
    "segments_10: dasm.segments=10",
    "equal_flops: dasm.budget=flops",
    "equal_steps: dasm.budget=steps",
    "init_mix: synthetic.init=mix",
    "init_random: synthetic.init=random",
    "init_kmeans: synthetic.init=kmeans",
    "init_noise: synthetic.init=noise",
    "factor_1: synthetic.factor=1",
    "factor_2: synthetic.factor=2",
    # How far they are moved, and whether together in the end.
    "annealed: matcher.idc.image.schedule=cosine",
    "polished: dasm.budget=flops dasm.polish=0.2",
)


def growing_but(changes):
    """The defaults, spelled out for a table of the paper's reading, but for changes."""
    changed = {each.split("=")[0] for each in changes.split()}
    kept = (each for each in base.GROWING.split() if each.split("=")[0] not in changed)
    return " ".join((*kept, changes))


def get_config(dataset=""):
    config = base.table("choices", dataset, (), "grow_strict")
    lr = base.image_rate(dataset)
    rates = (("slow", 0.3), ("fast", 3))
    moved = (f"{name}: matcher.idc.image.lr={by * lr:g}" for name, by in rates)
    split = (each.split(": ") for each in (*CHOICES, *moved))
    arms = (f"{name}: {growing_but(changes)}" for name, changes in split)
    config.study.arms = ("idc", "dasm", base.GROW_STRICT, *arms)
    return config
