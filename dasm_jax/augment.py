"""Differentiable siamese augmentation (Zhao & Bilen 2021) and CutMix (Yun et al. 2019).

An operation is two pure functions on one image: ``draw`` its random numbers, ``apply``
them. A batch either shares one draw (siamese: real and synthetic images move alike) or
has one per image; ``vmap`` makes either from the same two functions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, Key

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP_SHARE, CUTOUT_SHARE = 0.125, 0.5
SCALE, ROTATE_DEGREES = 1.2, 15.0

Image = Float[Array, "H W C"]
Draw = dict[str, Array]


class Op(NamedTuple):
    """One augmentation of one image."""

    draw: Callable[[Key[Array, ""], tuple[int, int]], Array]
    apply: Callable[[Image, Array], Image]


def _uniform(count: int | None = None):
    shape = () if count is None else (count,)
    return lambda key, size: jax.random.uniform(key, shape)


def _flip(image: Image, u: Float[Array, ""]) -> Image:
    return jnp.where(u < 0.5, image[:, ::-1], image)


def _brightness(image: Image, u: Float[Array, ""]) -> Image:
    return image + (u - 0.5) * BRIGHTNESS


def _saturation(image: Image, u: Float[Array, ""]) -> Image:
    mean = image.mean(axis=2, keepdims=True)
    return (image - mean) * (u * SATURATION) + mean


def _contrast(image: Image, u: Float[Array, ""]) -> Image:
    mean = image.mean()
    return (image - mean) * (u + CONTRAST) + mean


def _warp(image: Image, transform: Callable) -> Image:
    """Sample bilinearly, zero outside; coordinates run over [−1, 1], x then y."""
    height, width, _ = image.shape
    y, x = jnp.meshgrid(
        (2 * jnp.arange(height) + 1) / height - 1,
        (2 * jnp.arange(width) + 1) / width - 1,
        indexing="ij",
    )
    x, y = transform(x, y)
    rows = ((y + 1) * height - 1) / 2  # half-pixel centres
    columns = ((x + 1) * width - 1) / 2

    def sample(channel):
        return map_coordinates(channel, [rows, columns], order=1, mode="constant")

    return jax.vmap(sample, in_axes=2, out_axes=2)(image)


def _scale(image: Image, u: Float[Array, "2"]) -> Image:
    s = u * (SCALE - 1 / SCALE) + 1 / SCALE
    return _warp(image, lambda x, y: (x * s[0], y * s[1]))


def _rotate(image: Image, u: Float[Array, ""]) -> Image:
    angle = jnp.deg2rad((u - 0.5) * 2 * ROTATE_DEGREES)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _warp(image, lambda x, y: (x * cos - y * sin, x * sin + y * cos))


def _reach(side: int) -> int:
    return int(side * CROP_SHARE + 0.5)


def _draw_shift(key: Key[Array, ""], size: tuple[int, int]) -> Int[Array, "2"]:
    reach = jnp.array([_reach(side) for side in size])
    return jax.random.randint(key, (2,), -reach, reach + 1)


def _shift(image: Image, shift: Int[Array, "2"]) -> Image:
    """``out[h, w] = image[h + shift[0], w + shift[1]]``, zero outside."""
    rows, columns = (_reach(side) for side in image.shape[:2])
    padded = jnp.pad(image, ((rows, rows), (columns, columns), (0, 0)))
    start = (shift[0] + rows, shift[1] + columns, jnp.zeros((), shift.dtype))
    return jax.lax.dynamic_slice(padded, start, image.shape)


def _draw_translate(key: Key[Array, ""], size: tuple[int, int]) -> Int[Array, ""]:
    return jax.random.randint(key, (), -_reach(size[1]), _reach(size[1]) + 1)


def _translate(image: Image, shift: Int[Array, ""]) -> Image:
    return _shift(image, jnp.stack([jnp.zeros_like(shift), shift]))


def _hole(side: int) -> int:
    return int(side * CUTOUT_SHARE + 0.5)


def _draw_cutout(key: Key[Array, ""], size: tuple[int, int]) -> Int[Array, "2"]:
    stop = jnp.array([side + 1 - _hole(side) % 2 for side in size])
    return jax.random.randint(key, (2,), 0, stop)


def _cutout(image: Image, centre: Int[Array, "2"]) -> Image:
    def inside(side, centre):
        first = centre - _hole(side) // 2
        index = jnp.arange(side)
        return (index >= first) & (index < first + _hole(side))

    rows, columns = (inside(n, c) for n, c in zip(image.shape[:2], centre))
    hole = rows[:, None, None] & columns[None, :, None]
    return jnp.where(hole, 0.0, image)


# In the order of application.
OPS = {
    "flip": Op(_uniform(), _flip),
    "brightness": Op(_uniform(), _brightness),
    "saturation": Op(_uniform(), _saturation),
    "contrast": Op(_uniform(), _contrast),
    "crop": Op(_draw_shift, _shift),
    "scale": Op(_uniform(2), _scale),
    "rotate": Op(_uniform(), _rotate),
    "translate": Op(_draw_translate, _translate),
    "cutout": Op(_draw_cutout, _cutout),
}
GEOMETRIC = ("crop", "scale", "rotate", "translate")
COLOR = ("brightness", "saturation", "contrast")


def parse_strategy(text: str) -> tuple[str, ...]:
    """Turn ``'color_crop_cutout'`` into the names of operations, in order.

    ``color`` stands for brightness, saturation and contrast; ``none`` for nothing.

    Raises:
      ValueError: an unknown name; the message lists the known ones.
    """
    names = [] if text in ("", "none") else text.split("_")
    unknown = [name for name in names if name not in {*OPS, "color"}]
    if unknown:
        known = ", ".join(["none", "color", *OPS])
        raise ValueError(f"unknown augmentation {unknown[0]!r}; known: {known}")
    chosen = {*names, *(COLOR if "color" in names else ())}
    return tuple(name for name in OPS if name in chosen)


def draw_augmentation(
    key: Key[Array, ""], strategy: tuple[str, ...], size: tuple[int, int]
) -> Draw:
    """Draw the random numbers of one image (or of a batch that shares them).

    Of the geometric operations in the strategy one is picked; its index is kept under
    ``'geometric'``.
    """
    position = {name: i for i, name in enumerate(OPS)}
    draw = {
        name: OPS[name].draw(jax.random.fold_in(key, position[name]), size)
        for name in strategy
    }
    geometric = [name for name in strategy if name in GEOMETRIC]
    if len(geometric) > 1:
        pick = jax.random.fold_in(key, len(OPS))
        draw["geometric"] = jax.random.randint(pick, (), 0, len(geometric))
    return draw


def _augment_image(strategy: tuple[str, ...], image: Image, draw: Draw) -> Image:
    def run(names, image):
        for name in names:
            image = OPS[name].apply(image, draw[name])
        return image

    geometric = [name for name in strategy if name in GEOMETRIC]
    if len(geometric) < 2:
        return run(strategy, image)
    first = strategy.index(geometric[0])
    image = run(strategy[:first], image)
    branches = [lambda image, name=name: run([name], image) for name in geometric]
    image = jax.lax.switch(draw["geometric"], branches, image)
    return run(strategy[first + len(geometric) :], image)


def augment_shared(
    images: Float[Array, "B H W C"], draw: Draw, strategy: tuple[str, ...]
) -> Float[Array, "B H W C"]:
    """Apply one draw to every image of a batch (siamese augmentation)."""

    def augment_image(image):
        return _augment_image(strategy, image, draw)

    return jax.vmap(augment_image)(images)


def augment_each(
    key: Key[Array, ""], images: Float[Array, "B H W C"], strategy: tuple[str, ...]
) -> Float[Array, "B H W C"]:
    """Augment every image with a draw of its own."""

    def augment_image(key, image):
        draw = draw_augmentation(key, strategy, image.shape[:2])
        return _augment_image(strategy, image, draw)

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(images)))
    return jax.vmap(augment_image)(keys, images)


class CutMix(NamedTuple):
    """One box and one permutation for a batch."""

    images: Any  # f32[B, H, W, C]
    partners: Any  # i32[B] whose label the box carries
    share: Any  # f32[] share of the image that is still its own


def cutmix_box(
    size: tuple[int, int], lam: Array, centre: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array]:
    """Bounds (first row, first column, end row, end column) of the CutMix box.

    The side is ⌊side·√(1 − λ)⌋ around the centre, clipped at the border.
    """
    bounds = []
    for side, middle in zip(size, centre):
        half = jnp.floor(side * jnp.sqrt(1.0 - lam)).astype(jnp.int32) // 2
        bounds.append((jnp.clip(middle - half, 0, side), middle + half, side))
    (top, bottom, height), (left, right, width) = bounds
    return top, left, jnp.clip(bottom, 0, height), jnp.clip(right, 0, width)


def cutmix(
    key: Key[Array, ""], images: Float[Array, "B H W C"], probability: float
) -> CutMix:
    """Paste one box of a permuted batch into every image, with some probability.

    λ ~ U(0, 1); the share returned is exact for the clipped box, and 1 where the batch
    is left alone.
    """
    count, height, width, _ = images.shape
    k_use, k_lam, k_row, k_column, k_partner = jax.random.split(key, 5)
    centre = (
        jax.random.randint(k_row, (), 0, height),
        jax.random.randint(k_column, (), 0, width),
    )
    lam = jax.random.uniform(k_lam)
    top, left, bottom, right = cutmix_box((height, width), lam, centre)
    used = jax.random.uniform(k_use) < probability
    rows, columns = jnp.arange(height), jnp.arange(width)
    box = (
        ((rows >= top) & (rows < bottom))[:, None]
        & ((columns >= left) & (columns < right))[None, :]
        & used
    )
    partners = jax.random.permutation(k_partner, count)
    mixed = jnp.where(box[None, :, :, None], images[partners], images)
    return CutMix(mixed, partners, 1.0 - box.mean(dtype=jnp.float32))
