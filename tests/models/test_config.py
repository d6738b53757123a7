"""config.json, of either generation of `transformers`, and the messages for what is not supported."""

import dataclasses

import pytest

from jaxalign.errors import UserError
from jaxalign.models.config import ModelConfig, RopeScaling, from_hf_config, to_hf_config

# From the repositories of the models, without the fields that do not describe the architecture.
LLAMA_31 = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu",
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "tie_word_embeddings": False, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
    "pretraining_tp": 1, "initializer_range": 0.02, "torch_dtype": "bfloat16",
}  # fmt: skip
LLAMA_2 = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-06,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu", "rope_scaling": None,
}  # fmt: skip
MISTRAL_01 = {
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def test_llama_31():
    config = from_hf_config(LLAMA_31)
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    assert (config.head_dim, config.num_key_value_heads, config.tie_word_embeddings) == (128, 8, False)
    assert config.eos_token_ids == (128001, 128008, 128009)
    assert config.sliding_window is None


def test_llama_2_has_as_many_key_heads_as_heads():
    config = from_hf_config(LLAMA_2)
    assert (config.num_key_value_heads, config.rope_theta, config.rope_scaling) == (32, 10000.0, None)
    assert (config.eos_token_ids, config.pad_token_id) == ((2,), 0)


def test_mistral_window():
    assert from_hf_config(MISTRAL_01).sliding_window == 4096
    assert from_hf_config(MISTRAL_01 | {"sliding_window": None}).sliding_window is None
    left_out = {name: value for name, value in MISTRAL_01.items() if name != "sliding_window"}
    assert from_hf_config(left_out).sliding_window == 4096  # what transformers takes then


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 500000.0, "rope_scaling": LLAMA_31["rope_scaling"]},
        {
            "rope_parameters": LLAMA_31["rope_scaling"] | {"rope_theta": 500000.0},
            "rope_theta": None,
            "rope_scaling": None,
        },
    ],
)
def test_both_spellings_of_rope(rope):
    assert from_hf_config(LLAMA_31 | rope) == from_hf_config(LLAMA_31)


def test_linear_scaling_by_its_old_name():
    config = from_hf_config(LLAMA_2 | {"rope_scaling": {"type": "linear", "factor": 2}})
    assert config.rope_scaling == RopeScaling("linear", 2.0)
    assert to_hf_config(config)["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    "fields",
    [LLAMA_31, LLAMA_2, MISTRAL_01, LLAMA_2 | {"rope_scaling": {"type": "linear", "factor": 2}, "eos_token_id": None}],
)
def test_written_and_read_again(fields):
    config = from_hf_config(fields)
    assert from_hf_config(to_hf_config(config)) == config


@pytest.mark.parametrize("fields", [LLAMA_31, LLAMA_2, MISTRAL_01])
def test_transformers_reads_the_same(fields):
    from transformers import AutoConfig

    written = to_hf_config(from_hf_config(fields))
    hf_config = AutoConfig.for_model(**written)
    assert from_hf_config(hf_config.to_dict()) == from_hf_config(fields)
    assert hf_config.rope_parameters["rope_theta"] == from_hf_config(fields).rope_theta


def test_hashable():
    assert hash(from_hf_config(LLAMA_31)) == hash(from_hf_config(LLAMA_31))
    assert dataclasses.is_dataclass(ModelConfig)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2' is not supported. Use one of llama, mistral"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported. Use a model with silu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "'yarn' is not supported. Use one of default, linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "llama3': low_freq_factor must be a number, not None"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor must be a number, not '4'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"hidden_size": None}, "hidden_size must be a positive whole number, not None"),
        ({"vocab_size": "many"}, "vocab_size must be a positive whole number, not 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads 3"),
        ({"head_dim": 127}, "head_dim 127 must be even"),
        ({"rope_theta": "x"}, "rope_theta must be a positive number, not 'x'"),
        ({"rope_parameters": {"rope_theta": -1}}, "rope_theta must be a positive number, not -1"),
        ({"rope_scaling": "x"}, "rope_scaling must be an object with fields, or null, not 'x'"),
        (
            {"rope_scaling": LLAMA_31["rope_scaling"] | {"original_max_position_embeddings": "x"}},
            "original_max_position_embeddings must be",
        ),
        ({"eos_token_id": "a"}, "eos_token_id must be a token id, a list of them or null, not 'a'"),
        ({"eos_token_id": [1, None]}, "eos_token_id must be"),
        ({"bos_token_id": 1.5}, "bos_token_id must be"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number, not 'small'"),
    ],
)
def test_bad_fields_are_named(change, words):
    with pytest.raises(UserError, match=r"^somewhere/config\.json: ") as caught:
        from_hf_config(LLAMA_31 | change, where="somewhere/config.json")
    assert words in str(caught.value)
