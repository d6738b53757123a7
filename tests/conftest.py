"""Settings and fixtures of all tests: eight virtual devices (most tests use one), a compilation cache, a tiny model."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Compilation is where the time of these tests goes. Code that is optimised less compiles in half the time, and XLA's
# older code generator (no fusion emitters) compiles in half of that. The parity environment, which has PyTorch, keeps
# XLA's defaults because figures from it are quoted.
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("XLA_FLAGS", "" if importlib.util.find_spec("torch") else FAST_COMPILATION)
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Lets all tests of a session share one compilation cache: workers, commands and subprocesses inherit the variable.

    Equal programs compile once, whichever test is first. Set JAX_COMPILATION_CACHE_DIR to share it between sessions.
    """
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        directory = tempfile.mkdtemp(prefix="jaxalign-compiled-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = directory
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, from JAXALIGN_DATA."""
    if "JAXALIGN_DATA" not in os.environ:
        pytest.skip("JAXALIGN_DATA does not name the folder of shared data")
    return Path(os.environ["JAXALIGN_DATA"])


@pytest.fixture(scope="session")
def tiny_config():
    """Configuration of a two-layer Llama (``tests.tiny``)."""
    from tests import tiny

    return tiny.config()
