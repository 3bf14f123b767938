r"""What might carry DASM past IDC, beside IDC with it where it can have it.

    python main.py --config=configs/study/levers.py:digits \
        --workdir=runs/levers_digits

Datasets: digits, fashion_mnist_small, fashion_mnist_narrow, cifar10_small,
fashion_mnist, cifar10.
"""

from configs.study import base
from configs.study.base import (
    BY_PREFIX,
    EASY,
    GROWING,
    LEARNABLE,
    SEEN,
    STRICT,
    TOGETHER,
    UNCOVERED,
)

COSINE = "matcher.idc.image.schedule=cosine"
CLUSTERED = "matcher.idc.batches=kmeans"
BANK = "matcher.idc.trajectory.bank=10 matcher.idc.trajectory.perturb=0.1"
GROWN = "matcher.idc.trajectory.start=segments"
WHOLE = "dasm.target=class"
JOINT = "dasm.polish=0.5 dasm.polish_rate=1.0"
TAPER = "dasm.taper=0.5"
# As EASY in the eyes of networks trained on the segments: there are none before the
# first is finished, so that one is matched against whole classes.
LEARNED = "dasm.rho=0 dasm.high=0.7 dasm.random_share=0"
POLISHED = "dasm.segments=2 dasm.polish=0.8 dasm.polish_rate=1.0"
# Without what the networks trained on the segments give less than a guess: the end of
# the pools follows the set so far, and no share is chosen.
REACHED = "dasm.rho=0 dasm.high=1.0 dasm.ceiling=chance dasm.random_share=0"
HARD = "dasm.rho=0.3 dasm.high=1.0"
ANNEALED = TOGETHER.replace("rate=1.0", "rate=2.0 dasm.polish_schedule=cosine")


def get_config(dataset=""):
    config = base.table("levers", dataset, ("idc",), "idc")
    lr = base.image_rate(dataset)

    def rate(factor):
        return f"matcher.idc.image.lr={factor * lr:g}"

    def learn5(name):
        return base.LEARN5.replace("learn5", name, 1)

    def grow(name):
        return f"{name}: {LEARNABLE} {UNCOVERED} {SEEN} {BY_PREFIX}"

    config.study.arms = (
        # IDC takes them too.
        "idc",
        f"idc_slow: dasm.segments=1 {rate(0.3)}",
        f"idc_fast: dasm.segments=1 {rate(3)}",
        f"idc_cosine: dasm.segments=1 {COSINE}",
        f"idc_clustered: dasm.segments=1 {CLUSTERED}",
        f"idc_bank: dasm.segments=1 {BANK}",
        "idc_kmeans: dasm.segments=1 synthetic.init=kmeans",
        f"idc_easy: dasm.segments=1 {EASY}",
        # Only starts from easy images, and is matched against all: start or match?
        f"easy_start: dasm.segments=1 {EASY} dasm.target=class",
        # Without what is easiest, as a smaller share than static_filter has.
        "filter15: dasm.segments=1 dasm.pool=static_filter dasm.rho=0.15",
        # Each on its own.
        "dasm",
        f"slow: {rate(0.3)}",
        f"fast: {rate(3)}",
        f"cosine: {COSINE}",
        f"clustered: {CLUSTERED}",
        f"bank: {BANK}",
        f"uncovered: {UNCOVERED}",
        f"seen: {SEEN}",
        f"grown: {GROWN}",
        f"whole: {WHOLE}",
        f"joint: {JOINT}",
        f"taper: {TAPER}",
        # A sequence that sees itself, with difficulty and without.
        f"seen_grown: {SEEN} {GROWN}",
        f"seqmatch: dasm.pool=full {SEEN} {GROWN}",
        f"whole_seen: {WHOLE} {SEEN}",
        f"whole_uncovered: {WHOLE} {UNCOVERED}",
        f"joint_cosine: {JOINT} {COSINE}",
        f"joint_uncovered: {JOINT} {UNCOVERED}",
        f"taper_uncovered: {TAPER} {UNCOVERED}",
        # Like for like with idc_easy are those of EASY: the same judges and pool.
        f"easy_real: {EASY}",
        f"easy: {LEARNED}",
        f"polished: {POLISHED}",
        f"easy_real_polished: {EASY} {POLISHED} dasm.polish_target=pool",
        f"easy_polished: {LEARNED} {POLISHED} dasm.polish_target=pool",
        f"easy5: {LEARNED} {TOGETHER}",
        f"grown5: {LEARNED} {TOGETHER} {GROWN}",
        f"reached: {REACHED}",
        f"reached5: {REACHED} {TOGETHER}",
        # Without segments, and without difficulty but for the sizes of the pools.
        f"idc_reached: dasm.segments=1 dasm.pool=static_window {REACHED}",
        f"random5: {REACHED} {TOGETHER} dasm.pool=random",
        # The sequence and its polish alone, and away from what is easy but for the
        # random share of the paper's.
        "whole5: dasm.pool=full dasm.polish=0.8 dasm.polish_rate=1.0",
        f"hard5: {HARD} {TOGETHER}",
        # Judged by networks of the real images throughout.
        f"real_reached5: {REACHED} {TOGETHER} dasm.scored_by=real",
        # What is not learned yet and can be, with segments that are polished together:
        # what each part is worth, and a polish that pulls segments by prefixes.
        base.LEARN5,
        f"learn5_mix: {LEARNABLE} {TOGETHER}",
        f"whole5_uncovered: dasm.pool=full {TOGETHER} {UNCOVERED}",
        f"hard5_uncovered: {HARD} {TOGETHER} {UNCOVERED}",
        f"{learn5('nested5')} dasm.polish_nested=1.0",
        f"{learn5('half5')} dasm.polish_nested=0.5",
        f"{learn5('half5_cosine')} dasm.polish_nested=0.5 {COSINE} {rate(2)}",
        f"half5_anneal: {LEARNABLE} {ANNEALED} {UNCOVERED} dasm.polish_nested=0.5",
        # A set that grows: its segments are frozen and see the finished ones; and what
        # that is worth without seeing them, and in smaller steps.
        grow("grow"),
        f"frozen: {LEARNABLE} {UNCOVERED} {BY_PREFIX}",
        f"{grow('grow10')} dasm.segments=10",
        # The defaults: the same without a random share. Then with pools that tell
        # nothing by difficulty, in smaller steps, at other bars, by more networks.
        base.GROW_STRICT,
        f"grow_full: {GROWING} dasm.pool=full",
        f"grow_random: {GROWING} dasm.pool=random",
        f"strict10: {GROWING} dasm.segments=10",
        f"strict_cov80: {GROWING} dasm.coverage=0.8",
        f"strict_cov95: {GROWING} dasm.coverage=0.95",
        f"strict_nets4: {GROWING} dasm.networks=4",
        # With levers that IDC can have, and without moving an image.
        f"{learn5('learn5_clustered')} {CLUSTERED}",
        f"{learn5('learn5_slow')} {rate(0.3)}",
        f"{learn5('learn5_still')} {rate(1e-6)}",
        f"{learn5('learn5_anneal')} {COSINE} {rate(2)}",
        f"{learn5('learn5_bank')} {BANK}",
        f"{learn5('learn5_grown')} {GROWN}",
        # With other pools: nothing of what is learned, at a lower bar, and looked at
        # again while the polish moves the set.
        f"{learn5('learn5_strict')} {STRICT}",
        f"{learn5('learn5_cov80')} dasm.coverage=0.8",
        f"{learn5('learn5_fresh')} {STRICT} dasm.rescore_every=8",
    )
    return config
