"""Networks. Nothing outside this folder knows Flax: a network is pure functions."""

from dasm_jax.nets.architecture import (
    CUSTOMARY_NORMS,
    NETS,
    PUBLISHED_WIDTHS,
    Architecture,
    make_convnet,
    make_network,
    parse_architecture,
    published_width,
)
from dasm_jax.nets.layers import ACTIVATIONS, NORMS, POOLINGS
from dasm_jax.nets.network import Moments, Network

__all__ = [
    "ACTIVATIONS",
    "CUSTOMARY_NORMS",
    "NETS",
    "NORMS",
    "POOLINGS",
    "PUBLISHED_WIDTHS",
    "Architecture",
    "Moments",
    "Network",
    "make_convnet",
    "make_network",
    "parse_architecture",
    "published_width",
]
