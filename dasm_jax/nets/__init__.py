"""Networks. Nothing outside this folder knows Flax: a network is two pure functions."""

from dasm_jax.nets.convnet import make_convnet
from dasm_jax.nets.network import Network

NETS = {"convnet": make_convnet}

__all__ = ["NETS", "Network", "make_convnet"]
