r"""What might carry DASM past IDC: learning rates, context, and combinations.

    python main.py --config=configs/study/levers.py:digits \
        --workdir=runs/levers_digits

Datasets: digits, fashion_mnist_small, fashion_mnist, cifar10.
"""

from configs.study import base


def get_config(dataset=""):
    config = base.table("levers", dataset, ("idc",), "idc")
    lr = base.image_rate(dataset)
    # The rule gives a segment of K a K-th of the rate of the whole set.
    fast = f"matcher.idc.image.lr={5 * lr:g}"
    seen = "dasm.context=cumulative"
    grown = "matcher.idc.trajectory.start=segments"
    config.study.arms = (
        "idc",
        f"idc_fast: dasm.segments=1 {fast}",
        "dasm",
        f"fast: {fast}",
        f"full_fast: dasm.pool=full {fast}",
        f"seen: {seen}",
        f"seen_fast: {seen} {fast}",
        f"grown_fast: {grown} {fast}",
        f"seen_grown: {seen} {grown}",
        f"seen_grown_fast: {seen} {grown} {fast}",
        f"seqmatch: dasm.pool=full {seen} {grown}",  # no difficulty: the control
        f"two_fast: dasm.segments=2 {fast}",
        f"two_seen_fast: dasm.segments=2 {seen} {fast}",
        # Joint polish, real batches by difficulty, banks of networks and schedules of
        # the images belong here once they are settings.
    )
    return config
