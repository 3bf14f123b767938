"""ZCA whitening of training images, as in the trajectory-matching literature.

Networks see images whose pixels are decorrelated. Synthetic images stay as they are, in
[0, 1], and are whitened like real ones; the set is stored with what maps both ways.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from dasm_jax.types import Whitening

ROWS_AT_ONCE = 1000


def fit_whitening(
    images: Float32[np.ndarray, "N H W C"], epsilon: float = 0.1
) -> Whitening:
    """ZCA of images that are already normalised per channel.

    With the covariance U · diag(s) · Uᵀ (over N − 1) the matrix is
    U · diag(1/√(s + epsilon)) · Uᵀ. In float64; beside the images it needs room for a
    few D×D matrices only.

    Args:
      images: in the memory of the host.
      epsilon: added to the variances; what hardly varies is left as small as it is.
    """
    count, size = len(images), math.prod(images.shape[1:])
    parts = [images[i : i + ROWS_AT_ONCE] for i in range(0, count, ROWS_AT_ONCE)]
    mean, scatter = np.zeros(size), np.zeros((size, size))
    for part in parts:
        mean += _flatten(part).sum(axis=0) / count
    for part in parts:
        centred = _flatten(part) - mean
        scatter += centred.T @ centred
    variances, axes = np.linalg.eigh(scatter / max(count - 1, 1))
    scales = np.sqrt(np.maximum(variances, 0.0) + epsilon)
    return Whitening(
        mean=mean.astype(np.float32),
        matrix=((axes / scales) @ axes.T).astype(np.float32),
        inverse=((axes * scales) @ axes.T).astype(np.float32),
    )


def whiten(
    images: Float[Array, "B H W C"], whitening: Whitening
) -> Float[Array, "B H W C"]:
    """Normalised images to whitened ones."""
    flat = images.reshape(len(images), -1) - whitening.mean[None]
    return _multiply(flat, whitening.matrix).reshape(images.shape)


def unwhiten(
    images: Float[Array, "B H W C"], whitening: Whitening
) -> Float[Array, "B H W C"]:
    """Whitened images to normalised ones."""
    flat = _multiply(images.reshape(len(images), -1), whitening.inverse)
    return (flat + whitening.mean[None]).reshape(images.shape)


def _flatten(images: np.ndarray) -> np.ndarray:
    return np.asarray(images, np.float64).reshape(len(images), -1)


def _multiply(x: Array, matrix: Array | np.ndarray) -> Array:
    # Accelerators round the factors to ten bits or less unless told otherwise, and then
    # the inverse is none.
    return jnp.matmul(x, matrix, precision="highest")
