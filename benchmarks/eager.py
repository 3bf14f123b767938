"""IDC's inner step as the public code runs it: eager PyTorch, one class after another.

Written from the method's definition, to be measured beside ours: a double backward and
one optimiser step per class, then the network's steps. Tensors are NCHW; every random
number comes from outside, so that both programs can be given the same ones.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dasm_jax.augment import BRIGHTNESS, CONTRAST, CROP_SHARE, CUTOUT_SHARE, SATURATION

MATCHED_NDIM = 4  # IDC matches convolution kernels


class ConvNet(nn.Module):
    """3 × [conv 3×3 → instance norm → activation → average pooling], then dense."""

    def __init__(
        self,
        channels: int,
        side: int,
        width: int,
        n_classes: int,
        activation: type[nn.Module] = nn.ReLU,
    ):
        super().__init__()
        widened = (side, channels) == (28, 1)
        blocks = []
        for layer in range(3):
            padding = 3 if widened and layer == 0 else 1
            blocks += [
                nn.Conv2d(width if layer else channels, width, 3, padding=padding),
                nn.GroupNorm(width, width),
                activation(),
                nn.AvgPool2d(2),
            ]
        self.blocks = nn.Sequential(*blocks)
        last = (32 if widened else side) // 8
        self.classifier = nn.Linear(width * last**2, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.blocks(images).flatten(1))


class Draw(NamedTuple):
    """Random numbers of one augmentation: [] for a whole batch, [B] for each image."""

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    shift: Tensor  # i64[…, 2]
    hole: Tensor | None  # i64[…, 2] centre of the cutout


def _reach(side: int, share: float) -> int:
    return int(side * share + 0.5)


def draw(side: int, count: int | None, cutout: bool, rng: np.random.Generator) -> Draw:
    """Draw for a batch as a whole (``count=None``), or for each of its images."""
    shape = () if count is None else (count,)
    reach = _reach(side, CROP_SHARE)

    def whole(low, high):
        return torch.as_tensor(rng.integers(low, high, (*shape, 2)))

    def uniform():
        return torch.as_tensor(np.asarray(rng.random(shape), np.float32))

    stop = side + 1 - _reach(side, CUTOUT_SHARE) % 2
    return Draw(
        uniform(),
        uniform(),
        uniform(),
        whole(-reach, reach + 1),
        whole(0, stop) if cutout else None,
    )


def augment(images: Tensor, d: Draw) -> Tensor:
    """Colour, crop and, where it was drawn, cutout."""
    side = images.shape[-1]
    brightness, saturation, contrast = (x.reshape(-1, 1, 1, 1) for x in d[:3])
    images = images + (brightness - 0.5) * BRIGHTNESS
    mean = images.mean(dim=1, keepdim=True)
    images = (images - mean) * (saturation * SATURATION) + mean
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * (contrast + CONTRAST) + mean
    images = _crop(images, d.shift, _reach(side, CROP_SHARE))
    if d.hole is None:
        return images
    line = torch.arange(side)
    first = d.hole.reshape(-1, 2, 1) - _reach(side, CUTOUT_SHARE) // 2
    inside = (line >= first) & (line < first + _reach(side, CUTOUT_SHARE))
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]
    return images * (~hole)[:, None].to(images.dtype)


def _crop(images: Tensor, shift: Tensor, reach: int) -> Tensor:
    """``out[h, w] = image[h + shift[0], w + shift[1]]``, zero outside."""
    count, _, side, _ = images.shape
    padded = F.pad(images, (reach,) * 4)
    if shift.ndim == 1:  # one for all: a view
        top, left = (int(x) + reach for x in shift)
        return padded[:, :, top : top + side, left : left + side]
    line = torch.arange(side) + reach
    rows = line + shift[:, :1]
    columns = line + shift[:, 1:]
    image = torch.arange(count)[:, None, None]
    gathered = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    return gathered.permute(0, 3, 1, 2)


def decode(pixels: Tensor, factor: int) -> Tensor:
    """f×f tiles of every stored image, enlarged bilinearly; tile by tile."""
    if factor == 1:
        return pixels
    side = pixels.shape[-1]
    tile = -(-side // factor)
    margin = tile * factor - side
    pixels = F.pad(pixels, (0, margin, 0, margin), value=0.5)
    tiles = [
        pixels[:, :, r * tile : (r + 1) * tile, c * tile : (c + 1) * tile]
        for r in range(factor)
        for c in range(factor)
    ]
    return F.interpolate(
        torch.cat(tiles), size=(side, side), mode="bilinear", align_corners=False
    )


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda x, y: (x - y).pow(2).sum(),
    "l1": lambda x, y: (x - y).abs().sum(),
}


def match_class(
    net: nn.Module, real: Tensor, synthetic: Tensor, label: int, metric: str
) -> Tensor:
    """Distance between the gradients of a real and a synthetic batch of one class."""
    weights = list(net.parameters())

    def gradients(images, **kwargs):
        labels = torch.full((len(images),), label)
        loss = F.cross_entropy(net(images), labels)
        return torch.autograd.grad(loss, weights, **kwargs)

    wanted = [g.detach() for g in gradients(real)]
    ours = gradients(synthetic, create_graph=True)
    distances = [
        DISTANCES[metric](x, y)
        for x, y in zip(wanted, ours, strict=True)
        if x.ndim == MATCHED_NDIM
    ]
    return torch.stack(distances).sum()


def match_step(
    net: nn.Module,
    pixels: Tensor,
    optimizer: torch.optim.Optimizer | None,
    real_batches: Sequence[Tensor],
    draws: Sequence[Draw],
    choices: Sequence[Tensor],
    factor: int,
    metric: str,
    normalize: Callable[[Tensor], Tensor],
) -> list[float]:
    """Match all classes, one after another; one optimiser step after each.

    Args:
      net: the network.
      pixels: f32[C, n, ch, H, W], with gradient.
      optimizer: of the pixels; ``None`` adds up gradients instead.
      real_batches: f32[B, ch, H, W] in [0, 1] of every class.
      draws: one augmentation per class.
      choices: i64[M], which decoded images of each class take part.
      factor: tiles per side.
      metric: distance.
      normalize: images in [0, 1] to what the network sees.
    """
    distances = []
    for label, (real, d, choice) in enumerate(
        zip(real_batches, draws, choices, strict=True)
    ):
        synthetic = decode(pixels[label], factor)[choice]
        images = augment(normalize(torch.cat([real, synthetic])), d)
        images = images.contiguous(memory_format=memory_format_of(net))
        real, synthetic = images[: len(real)], images[len(real) :]
        distance = match_class(net, real, synthetic, label, metric)
        if optimizer is not None:
            optimizer.zero_grad()
        distance.backward()
        if optimizer is not None:
            optimizer.step()
        distances.append(distance.item())
    return distances


def memory_format_of(net: nn.Module) -> torch.memory_format:
    """How the network's kernels lie in memory."""
    kernel = next(p for p in net.parameters() if p.ndim == MATCHED_NDIM)
    last = kernel.is_contiguous(memory_format=torch.channels_last)
    plain = kernel.is_contiguous()
    return torch.channels_last if last and not plain else torch.contiguous_format


def network_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    d: Draw,
    normalize: Callable[[Tensor], Tensor],
    rng: np.random.Generator,
) -> float:
    """One SGD step on augmented images, with CutMix in every second batch."""
    with torch.no_grad():
        images = augment(normalize(images), d)
        images = images.contiguous(memory_format=memory_format_of(net))
    partners, share = labels, 1.0
    if rng.random() < 0.5:
        side = images.shape[-1]
        half = int(side * np.sqrt(1.0 - rng.random())) // 2
        order = torch.as_tensor(rng.permutation(len(labels)))
        (top, bottom), (left, right) = (
            (max(middle - half, 0), min(middle + half, side))
            for middle in rng.integers(0, side, 2)
        )
        images[:, :, top:bottom, left:right] = images[order, :, top:bottom, left:right]
        partners = labels[order]
        share = 1.0 - (bottom - top) * (right - left) / side**2
    logits = net(images)
    loss = share * F.cross_entropy(logits, labels)
    if share < 1.0:
        loss = loss + (1.0 - share) * F.cross_entropy(logits, partners)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
