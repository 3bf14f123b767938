"""Convolutions in the form that the backend at hand runs fastest.

On GPU and TPU that is XLA's own. On CPU (measured in docs/performance.md):

- XLA's fast kernels take convolutions that keep the sides, and anything padded further
  falls back to loops; so that padding is done ahead.
- 3×3 kernels between many channels run as Winograd's minimal filtering F(4×4, 3×3)
  (Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016): 36
  products of matrices with a quarter of the multiplications, which also frees kernel
  gradients from the slow path they have there. In float32 it is exact to about 1e-5.

Everything here is built of ordinary JAX operations, differentiable to any order.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

TILE = 4  # outputs per side of a Winograd tile
WIDE = 64  # channels from which Winograd's products outweigh its transforms

_plain: ContextVar[bool] = ContextVar("plain_convolutions", default=False)

# F(4×4, 3×3): output = A [(G kernel Gᵀ) ⊙ (B input Bᵀ)] Aᵀ for tiles of 6×6 inputs,
# interpolated at 0, ±1, ±2 and infinity.
_B = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_G = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_A = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ]
)


@contextmanager
def plain() -> Iterator[None]:
    """Trace convolutions as such on every backend, so that FLOPs count the same."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def convolve(
    inputs: Float[Array, "B H W C"],
    kernel: Float[Array, "h w C D"],
    strides: Sequence[int],
    padding: Any,
    **options: Any,
) -> Array:
    """``lax.conv_general_dilated`` for ``nn.Conv``, as this backend likes it best."""
    if not _plain.get() and jax.default_backend() == "cpu":
        if _is_padded_further(kernel, strides, padding):
            reach = kernel.shape[0] // 2
            ahead = [(low - reach, high - reach) for low, high in padding]
            inputs = jnp.pad(inputs, ((0, 0), *ahead, (0, 0)))
            padding = ((reach, reach),) * 2
        if _is_wide(inputs, kernel, strides, padding) and _is_usual(**options):
            return winograd(inputs, kernel)
    return lax.conv_general_dilated(inputs, kernel, strides, padding, **options)


def _is_padded_further(kernel: Array, strides: Sequence[int], padding: Any) -> bool:
    height, width = kernel.shape[:2]
    return (
        tuple(strides) == (1, 1)
        and height == width
        and height % 2 == 1
        and not isinstance(padding, str)
        and min(min(pair) for pair in padding) >= height // 2
        and max(max(pair) for pair in padding) > height // 2
    )


def _is_wide(
    inputs: Array, kernel: Array, strides: Sequence[int], padding: Any
) -> bool:
    return (
        kernel.shape[:2] == (3, 3)
        and min(kernel.shape[2:]) >= WIDE
        and inputs.shape[-1] == kernel.shape[2]
        and inputs.dtype == jnp.float32
        and tuple(strides) == (1, 1)
        and not isinstance(padding, str)
        and [tuple(pair) for pair in padding] == [(1, 1), (1, 1)]
    )


def _is_usual(
    lhs_dilation: Sequence[int] = (),
    rhs_dilation: Sequence[int] = (),
    precision: Any = None,
    **options: Any,
) -> bool:
    """Nothing asked for but channels last, which is how ``nn.Conv`` calls."""
    return {*lhs_dilation, *rhs_dilation} <= {1} and precision is None


def winograd(
    inputs: Float[Array, "B H W C"], kernel: Float[Array, "3 3 C D"]
) -> Float[Array, "B H W D"]:
    """Convolve and keep the sides: zeros beyond the border, stride 1."""
    batch, height, width, _ = inputs.shape
    margin = [(0, -side % TILE) for side in (height, width)]
    inputs = jnp.pad(inputs, ((0, 0), *margin, (0, 0)))
    rows, columns = inputs.shape[1] // TILE, inputs.shape[2] // TILE
    products = lax.dot_general(
        _transform_inputs(inputs, rows, columns),
        _transform_kernel(kernel),
        (((2,), (1,)), ((0,), (0,))),
    )
    outputs = _transform_products(products, batch, rows, columns)
    return outputs[:, :height, :width]


def _combine(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """Rows of numbers times arrays, without the terms that are zero."""
    combined = []
    for row in matrix:
        terms = [x if c == 1 else float(c) * x for c, x in zip(row, parts) if c]
        combined.append(sum(terms[1:], terms[0]))
    return combined


def _lines_of_tiles(x: Array, axis: int) -> list[Array]:
    """The 6 lines of overlapping tiles: x[…, tiles, 4, …] along ``axis``, axis + 1."""
    own = [lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(TILE)]
    border = jnp.zeros_like(lax.slice_in_dim(own[0], 0, 1, axis=axis))
    last, tiles = own[-1], own[0].shape[axis]
    before = lax.slice_in_dim(last, 0, tiles - 1, axis=axis)
    after = lax.slice_in_dim(own[0], 1, tiles, axis=axis)
    return [
        jnp.concatenate([border, before], axis),
        *own,
        jnp.concatenate([after, border], axis),
    ]


def _transform_inputs(x: Array, rows: int, columns: int) -> Float[Array, "36 N C"]:
    """B d Bᵀ of all tiles d; N = batch · rows · columns."""
    batch, channels = x.shape[0], x.shape[-1]
    x = x.reshape(batch, rows, TILE, columns, TILE, channels)
    x = jnp.stack(_combine(_B, _lines_of_tiles(x, 1)))
    x = jnp.stack(_combine(_B, _lines_of_tiles(x, 3)), axis=1)
    return x.reshape(len(_B) ** 2, -1, channels)


def _transform_kernel(kernel: Array) -> Float[Array, "36 C D"]:
    """G k Gᵀ."""
    x = jnp.stack(_combine(_G, list(kernel)))
    x = jnp.stack(_combine(_G, [x[:, i] for i in range(len(kernel))]), axis=1)
    return x.reshape(len(_G) ** 2, *kernel.shape[2:])


def _transform_products(
    x: Array, batch: int, rows: int, columns: int
) -> Float[Array, "B H W D"]:
    """A m Aᵀ of all products m, put together."""
    size, channels = len(_B), x.shape[-1]
    x = x.reshape(size, size, batch, rows, columns, channels)
    x = jnp.stack(_combine(_A, list(x)), axis=3)
    x = jnp.stack(_combine(_A, list(x)), axis=4)
    return x.reshape(batch, rows * TILE, columns * TILE, channels)
