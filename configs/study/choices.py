r"""Every open choice of the method on its own, against the paper's reading of DASM.

    python main.py --config=configs/study/choices.py:digits \
        --workdir=runs/choices_digits

Datasets: digits, fashion_mnist_small, cifar10_small, fashion_mnist, cifar10.
"""

from configs.study import base


def get_config(dataset=""):
    config = base.table("choices", dataset, ("dasm",), "dasm")
    lr = base.image_rate(dataset)
    config.study.arms = (
        "dasm",
        # The window, and what is drawn beside it.
        "rho_0.1: dasm.rho=0.1",
        "rho_0.6: dasm.rho=0.6",
        "high_1: dasm.high=1.0",
        "random_share_0: dasm.random_share=0.0",
        "random_share_0.5: dasm.random_share=0.5",
        "cosine: dasm.schedule=cosine",
        "coverage: dasm.schedule=coverage",
        # Other pools.
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
        "cumulative: dasm.context=cumulative",
        "start_segments: matcher.idc.trajectory.start=segments",
        "data_pool: matcher.idc.trajectory.data=pool",
        # Segments and their first images.
        "segments_2: dasm.segments=2",
        "segments_10: dasm.segments=10",
        "init_random: synthetic.init=random",
        "init_kmeans: synthetic.init=kmeans",
        "init_noise: synthetic.init=noise",
        "factor_1: synthetic.factor=1",
        "factor_2: synthetic.factor=2",
        # How far they are moved, and whether together in the end.
        f"slow: matcher.idc.image.lr={0.3 * lr:g}",
        f"fast: matcher.idc.image.lr={3 * lr:g}",
        "polished: dasm.polish=0.2",
    )
    return config
