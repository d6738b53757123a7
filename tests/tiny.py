"""The tiny Llama of the tests: small enough for float64 and for every mesh of eight devices."""

from typing import Any

from jaxalign.models.config import ModelConfig, from_hf_config

# Fields of its config.json.
FIELDS: dict[str, Any] = {
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
# Four query heads for two key heads, and a head of its own.
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}


def config(**changes: Any) -> ModelConfig:
    """Returns the configuration of the tiny model with some of its fields changed."""
    return from_hf_config(FIELDS | changes)
