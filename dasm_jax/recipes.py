"""From the settings of a way of training to its recipe."""

from dasm_jax.augment import parse_strategy
from dasm_jax.schema import RecipeSettings
from dasm_jax.training import Recipe


def recipe_from(settings: RecipeSettings, decay_steps: int = 0) -> Recipe:
    """Recipe of one way of training; CutMix takes the place of cutout."""
    strategy = parse_strategy(settings.augment)
    if settings.cutmix:
        strategy = tuple(name for name in strategy if name != "cutout")
    return Recipe(
        batch=settings.batch,
        learning_rate=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        augment=strategy,
        cutmix=settings.cutmix,
        decay_steps=decay_steps,
    )
