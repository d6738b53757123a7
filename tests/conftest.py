"""Shared by all tests: eight virtual devices (one of which most tests use), and a tiny model."""

import importlib.util
import os

# Most of the time of these tests goes into compiling; code that is optimised less takes a third of it away. Not so in
# the parity environment, which has PyTorch: figures from there are quoted.
os.environ.setdefault(
    "XLA_FLAGS",
    ""
    if importlib.util.find_spec("torch")
    else "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, from JAXALIGN_DATA."""
    if "JAXALIGN_DATA" not in os.environ:
        pytest.skip("JAXALIGN_DATA does not name the folder of shared data")
    return Path(os.environ["JAXALIGN_DATA"])


@pytest.fixture(scope="session")
def tiny_config():
    """A two-layer Llama with grouped queries, small enough for float64 and for every mesh of eight devices."""
    from jaxalign.models.config import from_hf_config

    return from_hf_config(
        {
            "model_type": "llama",
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "max_position_embeddings": 512,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "initializer_range": 0.2,
        }
    )
