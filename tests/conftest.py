"""Strict JAX for every test: no silent promotion, shapes checked, four CPU devices."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path

import jax
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (named in the hook below)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)

install_import_hook("dasm_jax", "tests.typecheck.check").__enter__()

SHARED = Path(__file__).parent.parent.parent / "shared"
