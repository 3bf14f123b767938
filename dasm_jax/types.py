"""Plain containers that the modules hand to each other."""

from typing import Any, NamedTuple

import numpy as np

Params = Any  # a pytree of network parameters
Array = Any  # a NumPy array on the host or a JAX array on a device


class Batch(NamedTuple):
    """Images with labels and the weight of each image in the mean loss."""

    images: Array  # f32[B, H, W, C]
    labels: Array  # i32[B]
    weights: Array  # f32[B], how many images each stands for


class ArrayDataset(NamedTuple):
    """A labelled image set as two arrays."""

    images: Array  # u8[N, H, W, C], or f32[N, H, W, C] in [0, 1]
    labels: Array  # i32[N]


class Dataset(NamedTuple):
    """A real dataset: decoded splits, the names of its classes, and its identity."""

    name: str
    train: ArrayDataset
    test: ArrayDataset
    class_names: tuple[str, ...]
    content_hash: str  # sha256 of arrays and class names, hexadecimal

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.train.images.shape[1:]
        return int(height), int(width), int(channels)


class Whitening(NamedTuple):
    """ZCA of D = H·W·C values: networks see (x − mean) @ matrix; both are symmetric."""

    mean: Array  # f32[D]
    matrix: Array  # f32[D, D]
    inverse: Array  # f32[D, D]


class Normalization(NamedTuple):
    """Per-channel statistics of images in [0, 1]: networks see (x − mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    whitening: Whitening | None = None  # after it, on whole images


class SyntheticSet(NamedTuple):
    """Stored synthetic images, ordered by segment, then class, then index."""

    pixels: np.ndarray  # f32[N, H, W, C] in [0, 1]
    labels: np.ndarray  # i32[N]
    segments: np.ndarray  # i32[N], counted from 1
