"""Image files decoded with Pillow into one array."""

import contextlib
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dasm_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
_GRAY = ("1", "L")

# What Pillow's decoders raise on damaged files.
_DAMAGE = (
    OSError,
    EOFError,
    LookupError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


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
    """
    if image.size == (width, height):
        return image
    scale = max(width / image.width, height / image.height)
    covering = (
        max(width, round(scale * image.width)),
        max(height, round(scale * image.height)),
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
        UserError: naming the file that is damaged.
    """
    images = np.empty((len(paths), *shape), np.uint8)
    for index, path in enumerate(paths):
        with _reporting(path), Image.open(path) as image:
            if shape[-1] == 1:
                images[index, ..., 0] = np.asarray(fit(image.convert("L"), *shape[:2]))
                continue
            if image.mode in ("P", "PA"):
                # Pillow warns when a transparent palette goes straight to RGB.
                image = image.convert("RGBA")
            images[index] = np.asarray(fit(image.convert("RGB"), *shape[:2]))
    return images


def _header(path: Path) -> tuple[str, tuple[int, int]]:
    with _reporting(path), Image.open(path) as image:
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
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{path} cannot be decoded ({reason}); replace or remove it"
        ) from error
