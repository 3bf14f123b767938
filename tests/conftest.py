"""Strict JAX for every test: no silent promotion, shapes checked, eight CPU devices."""

import gc
import os
import signal
from importlib.metadata import version

# Tests compile far longer than they compute: LLVM is told to hurry.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        # The older emitters compile in a third; later versions have none, and end the
        # process where they are asked for.
        "--xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
    ]
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Threads of XLA's pool: devices that wait for each other hold one each, and on two
# cores eight of them would wait for good (docs/performance.md).
os.environ["NPROC"] = "16"

from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (named in the hook below)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Many tests run the same small programs: each is compiled once, by whoever is first.
jax.config.update(
    "jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".cache" / "tests")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}

# Whole files go to one worker each, and the longest must not be the last.
LONGEST = (
    "test_mesh",
    "test_resume",
    "test_dasm",
    "test_study",
    "test_methods",
    "test_polish",
    "test_networks",
    "test_measures",
    "test_measures_runs",
    "test_curve",
    "test_resume_elsewhere",
    "test_signals",
    "test_run",
    "test_compare",
    "test_compare_runs",
    "test_hosts",
    "test_benchmarks",
)


def pytest_collection_modifyitems(items):
    """Put the tests of the longest files first; others stay where they are."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


install_import_hook("dasm_jax", "tests.typecheck.check").__enter__()

# What is imported before the hook is not checked.
from tests.generated import EVERYTHING  # noqa: E402

# Tracing makes millions of objects that stay: looking through them takes a tenth.
gc.set_threshold(50_000, 20, 20)
# Dear where every program that is traced is watched: see tests/test_keys.py.
jax.config.update("jax_debug_key_reuse", EVERYTHING)


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
    """A worker compiles thousands of programs in its life, more than it can hold."""
    from dasm_jax.experiments.memory import make_room_for_programs

    yield
    make_room_for_programs()


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """No test sees the user's cache or TFDS folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DASM_CACHE_DIR", str(folder))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no_tfds"))
    return folder


@pytest.fixture(autouse=True)
def _signals_of_a_terminal():
    """Tests that are started in the background ignore these, and so would runs."""
    found = {}
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            found[number] = signal.signal(number, DEFAULTS[number])
    yield
    for number, handler in found.items():
        signal.signal(number, handler)


@pytest.fixture
def tiny(tmp_path):
    """A prepared TFDS dataset of six images."""
    from tests.data_cases import Tiny

    return Tiny(tmp_path / "tfds").write()


@pytest.fixture
def calm(tmp_path_factory):
    """A run that nobody stopped, where runs are ``_compiled_once``."""
    from tests.stopped import calm_run

    return calm_run(tmp_path_factory)
