"""Networks. Nothing outside this folder knows Flax: a network is pure functions."""

from dasm_jax.nets.convnet import NORMS, make_convnet
from dasm_jax.nets.network import Moments, Network

NETS = {"convnet": make_convnet}

__all__ = ["NETS", "NORMS", "Moments", "Network", "make_convnet"]
