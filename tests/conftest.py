"""Strict JAX for every test: no silent promotion, shapes checked, eight CPU devices."""

import os

# Tests compile far longer than they compute: LLVM is told to hurry.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",  # the older ones compile in a third
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)
os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (named in the hook below)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)
# Many tests run the same small programs: each is compiled once, by whoever is first.
jax.config.update(
    "jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".cache" / "tests")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

install_import_hook("dasm_jax", "tests.typecheck.check").__enter__()


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """No test sees the user's cache or TFDS folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DASM_CACHE_DIR", str(folder))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no_tfds"))
    return folder


@pytest.fixture
def tiny(tmp_path):
    """A prepared TFDS dataset of six images."""
    from tests.data_cases import Tiny

    return Tiny(tmp_path / "tfds").write()
