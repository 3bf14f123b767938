r"""The last table, on the test split, of the arms that the others have chosen.

    python main.py --config=configs/study/final.py:digits \
        --workdir=runs/final_digits

Datasets: digits, fashion_mnist_small, fashion_mnist_narrow, cifar10_small,
fashion_mnist, cifar10. Run it once.
"""

from configs.study import base


def get_config(dataset=""):
    coresets = ("random", "herding", "k_means")
    one_segment = ("idc", f"idc_easy: dasm.segments=1 {base.EASY}")
    as_read = ("full_pool: dasm.pool=full", "dasm")
    grown = (f"grow_full: {base.GROWING} dasm.pool=full", base.GROW_STRICT)
    arms = (*coresets, *one_segment, *as_read, base.LEARN5, *grown)
    arms = base.with_prefixes(arms, dataset, f"grow20: {base.GROWING}")
    config = base.table("final", dataset, arms, "idc, grow_strict")
    config.data.validation = 0.0
    config.study.prefixes = True
    config.study.seeds = (10, 11, 12, 13, 14)  # none that a choice was made with
    config.evaluate.networks = 5
    return config
