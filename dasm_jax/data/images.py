"""Image files decoded with Pillow into one array."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dasm_jax.errors import UserError
from dasm_jax.host_memory import physical_memory

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
# Pillow goes by content: a file of any name would reach its forty other decoders, of
# which the one for PostScript runs a program.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
_GRAY = ("1", "L")


def common_form(paths: Sequence[Path], size: int = 0) -> tuple[int, int, int]:
    """Returns the shape (height, width, channels) that all images share.

    Only the headers are read. One channel when every image is grayscale, else three.

    Args:
        paths: the files.
        size: side to which ``decode`` brings images, which then may differ; 0: none.

    Raises:
        UserError: for images of different sizes, of more than 8 bits, or without a
            readable header.
    """
    headers = [_header(path) for path in paths]
    first = headers[0][1]
    for path, (mode, pixels) in zip(paths, headers):
        if not size and pixels != first:
            raise UserError(
                f"{paths[0]} is {first[0]}x{first[1]} pixels but {path} is"
                f" {pixels[0]}x{pixels[1]}; resize all images to one size, or set"
                " config.data.size"
            )
        if mode.startswith(("I", "F")):
            raise UserError(
                f"{path} has more than 8 bits per pixel (mode {mode}); convert it to"
                " 8-bit grayscale or RGB"
            )
    channels = 1 if all(mode in _GRAY for mode, _ in headers) else 3
    return (size, size, channels) if size else (first[1], first[0], channels)


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes an image to cover ``height``×``width`` and cuts its centre out.

    Bilinear; Pillow averages over what it shrinks (antialiasing). An image of that size
    is left as it is.

    Raises:
        ValueError: the image is so narrow that covering it would take a huge one.
    """
    if image.size == (width, height):
        return image
    if 0 in image.size:
        raise ValueError("it has no pixels")
    scale = max(width / image.width, height / image.height)
    covering = (
        max(width, round(scale * image.width)),
        max(height, round(scale * image.height)),
    )
    if math.prod(covering) > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(
            f"{image.width}x{image.height} pixels are too narrow to be cut to"
            f" {width}x{height}"
        )
    image = image.resize(covering, Image.Resampling.BILINEAR)
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def decode(paths: Sequence[Path], shape: tuple[int, int, int]) -> np.ndarray:
    """Decodes image files into uint8[N, *shape], resized where they are not so large.

    Args:
        paths: the files.
        shape: height, width and channels from ``common_form``.

    Raises:
        UserError: naming the file that is damaged, or when all of them together would
            take more than this machine's memory.
    """
    # A kilobyte can claim millions of pixels, so this is asked before it is allocated.
    expected = len(paths) * math.prod(shape)
    if expected > physical_memory():
        raise UserError(
            f"the {len(paths)} images of {paths[0].parent.parent} would take"
            f" {expected:,} bytes, more than this machine's memory; set"
            " config.data.size, or make them smaller"
        )
    images = np.empty((len(paths), *shape), np.uint8)
    for index, path in enumerate(paths):
        with _reporting(path), Image.open(path, formats=_FORMATS) as image:
            if shape[-1] == 1:
                images[index, ..., 0] = np.asarray(fit(image.convert("L"), *shape[:2]))
                continue
            if image.mode in ("P", "PA"):
                # Pillow warns when a transparent palette goes straight to RGB.
                image = image.convert("RGBA")
            images[index] = np.asarray(fit(image.convert("RGB"), *shape[:2]))
    return images


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    with _reporting(path), Image.open(path, formats=_FORMATS) as image:
        return image.mode, image.size


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Turns every failure of Pillow into one line that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} claims more than {Image.MAX_IMAGE_PIXELS} pixels, which may be a"
            " decompression bomb; resize or remove it"
        ) from error
    except Exception as error:  # each of Pillow's decoders has errors of its own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{path} cannot be decoded ({reason}); replace or remove it"
        ) from error
