"""Smoke test of an installed jaxalign: a loss, a run in memory, a saved model, and the command line.

Needs nothing but the package. `.ci/package` runs it in each environment.
"""

import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import jaxalign
from jaxalign import losses
from jaxalign.cli import main
from jaxalign.models.config import from_hf_config
from jaxalign.recipes import dpo


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def main_smoke(folder: Path) -> None:
    assert "site-packages" in jaxalign.__file__, f"jaxalign is imported from {jaxalign.__file__}, not installed"
    zeros = jnp.zeros(2)
    np.testing.assert_allclose(losses.dpo(zeros, zeros, zeros, zeros, beta=0.1), np.log(2), rtol=1e-6)

    tokenizer = byte_tokenizer()
    size = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048}
    config = from_hf_config({"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 1e4, **size, **heads})
    model = jaxalign.Model(config)
    params = model.init(jax.random.key(0))
    rows = [{"prompt": f"What is {i} + {i}?", "chosen": f"{2 * i}.", "rejected": "I do not know."} for i in range(20)]
    config = dpo.load_config(overrides={"train.batch_size": 4, "train.steps": 2, "samples.max_new_tokens": 4})
    result = dpo.train(config, model=(model, params), tokenizer=tokenizer, rows=rows)
    assert len(result.history) == 2
    assert np.isfinite(result.after["eval/loss"])

    jaxalign.save_model(folder / "model", result.model, result.params, tokenizer)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = ["dpo", "--model.path", "model", "--data.path", "pairs.jsonl", "--output", "run", "--train.batch_size", "4"]
    os.chdir(folder)
    assert main([*train, "--train.steps", "1", "--samples.max_new_tokens", "4"]) == 0
    assert main(["generate", "--model.path", "run/model", "--prompt", "What is 1 + 1?", "--max_new_tokens", "4"]) == 0
    assert main(["data", "inspect", "pairs.jsonl"]) == 0
    assert main(["dpo", "--model.path", "missing", "--data.path", "pairs.jsonl", "--output", "other"]) == 2


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main_smoke(Path(folder))
    versions = {name: importlib.metadata.version(name) for name in ("jaxalign", "jax", "flax", "optax", "transformers")}
    print(f"smoke test passed: Python {sys.version.split()[0]}, {versions}")
