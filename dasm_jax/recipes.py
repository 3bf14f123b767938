"""From the settings of a way of training to its recipe."""

import dataclasses

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


# Zhao & Bilen 2021, and what IDC adds to it (Kim et al. 2022).
DSA = ("color", "crop", "cutout", "flip", "scale", "rotate")
CUTMIX = 0.5


def under_augmentation(settings: RecipeSettings, name: str) -> RecipeSettings:
    """The same way of training with other augmentations.

    Args:
      settings: of the recipe as it stands.
      name: ``'recipe'`` leaves it; ``'none'`` has none; ``'dsa'`` is color, crop,
        cutout, flip, scale and rotate without CutMix; ``'dsa_cutmix'`` the same with
        CutMix in every other batch, which takes the place of cutout. Whether images
        may be mirrored is a matter of the dataset (a digit may not), and the recipe is
        what knows it: DSA flips only where the recipe flips.
    """
    if name == "recipe":
        return settings
    if name == "none":
        return dataclasses.replace(settings, augment="none", cutmix=0.0)
    left_out = set[str]()
    if "flip" not in parse_strategy(settings.augment):
        left_out.add("flip")
    if name == "dsa_cutmix":
        left_out.add("cutout")
    return dataclasses.replace(
        settings,
        augment="_".join(op for op in DSA if op not in left_out),
        cutmix=CUTMIX if name == "dsa_cutmix" else 0.0,
    )
