"""From stored pixels to training images: raw pixels and IDC's multi-formation.

With factor f a stored image holds f×f smaller ones. Every decoded image is a linear map
of one stored image, R · pixels · Kᵀ, where R and K cut a tile and enlarge it bilinearly
(half-pixel centres). Kim et al., "Dataset Condensation via Efficient Synthetic-Data
Parameterization", ICML 2022, section 4.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dasm_jax.memo import remembered

PADDING_VALUE = 0.5
FORMATIONS = ("single", "multi", "bound")
BOUND = 128  # images of a class that 'bound' makes at most of fewer stored ones


class Formation(NamedTuple):
    """Which tile of which stored image each decoded image is; indices into tables."""

    sources: Array | np.ndarray  # i32[M]
    rows: Array | np.ndarray  # i32[M]
    columns: Array | np.ndarray  # i32[M]

    def take(self, index: Array | np.ndarray) -> "Formation":
        """The formation of a choice of decoded images, made before decoding them."""
        return Formation(*(jnp.asarray(field)[index] for field in self))


class Parameterization(NamedTuple):
    """How stored pixels become images."""

    kind: str
    factor: int
    tiles: Callable[[int], Formation]  # number of stored images -> all its images
    decode: Callable[[Array, Formation], Array]  # f32[n,H,W,C] -> f32[M,H,W,C]


def padded_side(side: int, factor: int) -> int:
    """Smallest multiple of ``factor`` that holds ``side`` pixels."""
    return -(-side // factor) * factor


def _tile_matrices(side: int, factor: int, padded: int) -> np.ndarray:
    """f32[f, side, padded]: cut tile r from a line of pixels and enlarge it."""
    tile = padded_side(side, factor) // factor
    enlarge = np.asarray(jax.image.resize(jnp.eye(tile), (side, tile), "linear"))
    matrices = np.zeros((factor, side, padded), np.float32)
    for r in range(factor):
        matrices[r, :, r * tile : (r + 1) * tile] = enlarge
    return matrices


def _factors_of(kind: str, factor: int, count: int, bound: int) -> list[np.ndarray]:
    """Stored images that take part with factor 1, 2, … f."""
    everyone = np.arange(count)
    nobody = everyone[:0]
    if kind == "single":
        return [nobody] * (factor - 1) + [everyone]
    if kind == "multi":
        return [everyone] * factor
    # 'bound': stored images take the largest factor, then the next smaller one, as long
    # as every image left over still has room for itself.
    members = [nobody] * factor
    first, room = 0, bound
    for f in range(factor, 1, -1):
        left = count - first
        take = min(max(room - left, 0) // f**2, left)
        members[f - 1] = everyone[first : first + take]
        first, room = first + take, room - take * f**2
    members[0] = everyone[first:]
    return members


def decoded_count(kind: str, factor: int, stored: int, *, bound: int = BOUND) -> int:
    """How many images ``stored`` ones give; see ``make_parameterization``."""
    members = _factors_of(kind, factor, stored, bound)
    return sum(f**2 * len(index) for f, index in enumerate(members, 1))


@remembered
def make_parameterization(
    kind: str, factor: int, size: tuple[int, int], *, bound: int = BOUND
) -> Parameterization:
    """Build the decoder of ``kind`` for images of ``size``.

    Args:
      kind: ``'single'`` (factor f only), ``'multi'`` (all factors 1 … f) or ``'bound'``
        (mixed factors, so that n stored images give at most max(n, ``bound``)).
      factor: tiles per side, 1 for raw pixels.
      size: height and width of stored and decoded images.
      bound: see ``kind``.

    Raises:
      ValueError: unknown kind.
    """
    if kind not in FORMATIONS:
        raise ValueError(f"unknown formation {kind!r}; known: {', '.join(FORMATIONS)}")
    padded = [max(padded_side(s, f) for f in range(1, factor + 1)) for s in size]
    tables = [
        np.concatenate([_tile_matrices(s, f, p) for f in range(1, factor + 1)])
        for s, p in zip(size, padded)
    ]

    def tiles(count: int) -> Formation:
        parts = []
        members = _factors_of(kind, factor, count, bound)
        # The public order: factors rising for 'multi', falling for 'bound'; within a
        # factor tile by tile, each over all its stored images.
        factors = range(1, factor + 1)
        for f in factors if kind == "multi" else reversed(factors):
            offset = f * (f - 1) // 2
            for row in range(f):
                for column in range(f):
                    sources = members[f - 1]
                    place = np.ones_like(sources)
                    parts.append(
                        (sources, place * (offset + row), place * (offset + column))
                    )
        columns = (np.concatenate(field) for field in zip(*parts))
        return Formation(*(field.astype(np.int32) for field in columns))

    def decode(
        pixels: Float[Array, "n H W C"], formation: Formation
    ) -> Float[Array, "m H W C"]:
        sources = jnp.asarray(formation.sources)
        if factor == 1:
            return pixels[sources]
        margin = [(0, p - s) for p, s in zip(padded, size)]
        pixels = jnp.pad(
            pixels, ((0, 0), *margin, (0, 0)), constant_values=PADDING_VALUE
        )
        rows, columns = (
            jnp.asarray(table)[jnp.asarray(index)]
            for table, index in zip(tables, (formation.rows, formation.columns))
        )
        return jnp.einsum(
            "mhp,mpqc,mwq->mhwc", rows, pixels[sources], columns, optimize="optimal"
        )

    return Parameterization(kind, factor, tiles, decode)


def pack_tiles(images: Float[Array, "n f f H W C"]) -> Float[Array, "n H W C"]:
    """Shrink f×f images into the tiles of one stored image (IDC's 'mix' start).

    By their nearest pixels, as the public IDC does: a mean of several would start from
    images with less contrast than real ones have.
    """
    count, factor, _, height, width, channels = images.shape
    rows, columns = (padded_side(s, factor) // factor for s in (height, width))
    of_rows, of_columns = (
        np.arange(small) * whole // small
        for small, whole in ((rows, height), (columns, width))
    )
    small = images[:, :, :, of_rows][:, :, :, :, of_columns]
    grid = small.transpose(0, 1, 3, 2, 4, 5)
    grid = grid.reshape(count, factor * rows, factor * columns, channels)
    return grid[:, :height, :width]
