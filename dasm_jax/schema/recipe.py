"""How a network is trained."""

import dataclasses

from dasm_jax.checks import Count, Momentum, Rate, Share, Strategy


@dataclasses.dataclass(frozen=True)
class RecipeSettings:
    """One way of training a network."""

    batch: Count
    lr: Rate
    momentum: Momentum
    weight_decay: Rate
    augment: Strategy
    cutmix: Share
