"""Networks by name: what is chosen of one, as settings or as one line of text."""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn

from dasm_jax.memo import remembered
from dasm_jax.nets.classic import MLP, VGG11, AlexNet, LeNet
from dasm_jax.nets.convnet import ConvNet
from dasm_jax.nets.densenet import DenseNet
from dasm_jax.nets.layers import (
    ACTIVATIONS,
    GROUPS,
    NORMS,
    POOLINGS,
    SinglePixelError,
)
from dasm_jax.nets.network import Network, from_linen
from dasm_jax.nets.resnet import ResNet
from dasm_jax.nets.vit import HEADS, ViT


class Architecture(NamedTuple):
    """What is chosen of a network.

    ``depth``, ``activation`` and ``pooling`` are of ConvNets, the others have published
    ones. ``norm`` is of networks that have norms to choose (``CUSTOMARY_NORMS``).
    """

    name: str = "convnet"
    width: int = 0  # channels (see PUBLISHED_WIDTHS); 0: as published
    depth: int = 3
    norm: str = "instance"
    activation: str = "relu"
    pooling: str = "average"


NETS: dict[str, Callable[[Architecture, int], nn.Module]] = {
    "convnet": lambda a, n: ConvNet(
        n, a.width, a.depth, a.norm, a.activation, a.pooling
    ),
    "lenet": lambda a, n: LeNet(n),
    "mlp": lambda a, n: MLP(n, a.width),
    "alexnet": lambda a, n: AlexNet(n, a.width),
    "vgg11": lambda a, n: VGG11(n, a.norm, a.width),
    "resnet10": lambda a, n: ResNet(n, 10, a.norm, False, a.width),
    "resnet18": lambda a, n: ResNet(n, 18, a.norm, False, a.width),
    "resnet_ap10": lambda a, n: ResNet(n, 10, a.norm, True, a.width),
    "densenet": lambda a, n: DenseNet(n, a.norm, a.width),
    "vit": lambda a, n: ViT(n, a.width),
}

# Channels of the first layer, from which the others follow; of hidden layers (mlp), new
# ones per layer (densenet), values of a token (vit). LeNet comes in one size.
PUBLISHED_WIDTHS = {
    "convnet": 128,
    "mlp": 128,
    "alexnet": 128,
    "vgg11": 64,
    "resnet10": 64,
    "resnet18": 64,
    "resnet_ap10": 64,
    "densenet": 12,
    "vit": 192,
}

# What the dataset-distillation literature evaluates with, for networks whose norm is a
# choice. The others have none, or (vit) their own.
CUSTOMARY_NORMS = {
    "convnet": "instance",
    "vgg11": "instance",
    "resnet10": "instance",
    "resnet18": "instance",
    "resnet_ap10": "instance",
    "densenet": "batch",
}

# Pixels of the shorter side, where it is more than one.
SMALLEST_SIDES = {"lenet": 14, "resnet_ap10": 8}

LARGEST_WIDTH = 4096

WIDTH_MULTIPLES = {"alexnet": 2, "vit": HEADS}


def published_width(name: str) -> int:
    """What a width of 0 stands for; 0 for a network that comes in one size."""
    return PUBLISHED_WIDTHS.get(name, 0)


def parse_architecture(
    text: str,
    base: Architecture = Architecture(),  # noqa: B008  (immutable)
) -> Architecture:
    """Read ``name``, ``name/norm``, ``name/width`` or ``name/norm/width``.

    What the text leaves open comes from ``base`` where that has the same name, else it
    is as published, with the customary norm.

    Raises:
      ValueError: an unknown name or norm, or a choice the network does not offer.
    """
    name, *rest = text.split("/")
    if name not in NETS:
        raise ValueError(
            f"unknown network {name!r} in {text!r}; known: {', '.join(sorted(NETS))}"
        )
    architecture = (
        base
        if name == base.name
        else Architecture(name, norm=CUSTOMARY_NORMS.get(name, "none"))
    )
    if rest and not rest[0].isdecimal():
        norm = rest.pop(0)
        if norm not in NORMS:
            raise ValueError(
                f"unknown norm {norm!r} in {text!r}; known: {', '.join(NORMS)}"
            )
        if name not in CUSTOMARY_NORMS:
            raise ValueError(f"{name} has no norm to choose; write {name!r}")
        architecture = architecture._replace(norm=norm)
    if rest:
        width = rest.pop(0)
        if rest or not width.isdecimal() or int(width) == 0:
            raise ValueError(
                f"{text!r} is not 'name', 'name/norm', 'name/width' or "
                "'name/norm/width', such as 'resnet18/batch/16'"
            )
        architecture = architecture._replace(width=int(width))
    architecture = architecture._replace(
        width=architecture.width or published_width(name)
    )
    try:
        _check(architecture)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    return architecture


@remembered  # so that programs for it are found again
def make_network(
    architecture: Architecture, image_shape: tuple[int, int, int], n_classes: int
) -> Network:
    """The network of an architecture for images of ``image_shape``.

    Raises:
      ValueError: a choice the network does not offer, or images too small for it.
    """
    a = architecture._replace(
        width=architecture.width or published_width(architecture.name)
    )
    _check(a)
    _check_size(a, image_shape)
    try:
        return from_linen(NETS[a.name](a, n_classes), image_shape)
    except SinglePixelError:
        raise ValueError(
            f"network.norm='instance' leaves nothing of the single pixels in which "
            f"{a.name} ends with {image_shape[0]}x{image_shape[1]} images; use 'batch' "
            "or 'group', or larger images"
        ) from None


def make_convnet(
    image_shape: tuple[int, int, int],
    n_classes: int,
    *,
    width: int,
    depth: int,
    norm: str = "instance",
    activation: str = "relu",
    pooling: str = "average",
) -> Network:
    """ConvNet-``depth`` of ``width`` channels for images of ``image_shape``.

    Raises:
      ValueError: see ``make_network``.
    """
    architecture = Architecture("convnet", width, depth, norm, activation, pooling)
    return make_network(architecture, image_shape, n_classes)


def _check(a: Architecture) -> None:
    for field, value, known in (
        ("name", a.name, NETS),
        ("norm", a.norm, NORMS),
        ("activation", a.activation, ACTIVATIONS),
        ("pooling", a.pooling, POOLINGS),
    ):
        if value not in known:
            raise ValueError(
                f"unknown network.{field}={value!r}; known: {', '.join(known)}"
            )
    if a.norm == "batch" and a.name not in CUSTOMARY_NORMS:
        raise ValueError(
            f"network.norm='batch' is not to be had with {a.name}, which has no norm "
            f"to choose; networks that have: {', '.join(CUSTOMARY_NORMS)}"
        )
    if a.width and not published_width(a.name):
        raise ValueError(
            f"network.width={a.width} cannot be had: {a.name} comes in one size; "
            "leave the width out (0)"
        )
    if a.width > LARGEST_WIDTH:
        raise ValueError(
            f"network.width={a.width} is too large; it must be at most {LARGEST_WIDTH}"
        )
    multiple = WIDTH_MULTIPLES.get(a.name, 1)
    if a.norm == "group" and a.name in CUSTOMARY_NORMS:
        multiple = GROUPS
    if a.width % multiple:
        why = "norm='group'" if multiple == GROUPS else a.name
        raise ValueError(
            f"network.width={a.width} must be a multiple of {multiple} for {why}"
        )


def _check_size(a: Architecture, image_shape: tuple[int, int, int]) -> None:
    height, width, _ = image_shape
    smallest = min(height, width)
    needed = SMALLEST_SIDES.get(a.name, 1)
    if smallest < needed:
        raise ValueError(
            f"network.name={a.name!r} needs images of at least {needed} px, not "
            f"{height}x{width}"
        )
    if image_shape == (28, 28, 1):
        smallest = 32  # the first layer pads
    if a.name == "convnet" and a.pooling != "none" and smallest < 2**a.depth:
        raise ValueError(
            f"network.depth={a.depth} halves {height}x{width} images to nothing; "
            f"use a depth up to {smallest.bit_length() - 1}"
        )
