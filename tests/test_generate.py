"""The sampler agrees with the training forward, and a rollout depends on its prompt and its key alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.models.model import Model
from jaxalign.rollout import generate
from jaxalign.rollout.sample import Sampling, filter_logits

PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14], [15, 16, 17, 18]]
EOS = 2
WIDTH = 16  # the longest prompt and completion


def padded(prompts, width, side="left"):
    rows, mask = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), bool)
    for i, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if side == "left" else slice(0, len(prompt))
        rows[i, place], mask[i, place] = prompt, True
    return jnp.asarray(rows), jnp.asarray(mask)


@functools.partial(jax.jit, static_argnums=0)
def full_row_logits(model, params, row):
    """Logits of one row by the training forward. What stands behind a text cannot change it, so all share one width."""
    return model.logits(params, row[None])[0]


def recomputed(model, params, prompt, tokens):
    """Log-probs of a completion by the training forward, on its own."""
    row = np.zeros(WIDTH, np.int32)
    row[: len(prompt) + len(tokens)] = [*prompt, *tokens]
    logps = jax.nn.log_softmax(full_row_logits(model, params, row))
    at = np.arange(len(prompt), len(prompt) + len(tokens))
    return np.asarray(logps)[at - 1, row[at]]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("side", ["left", "right"])
def test_recorded_logps_are_those_of_the_training_forward(tiny_config, window, side):
    config = dataclasses.replace(tiny_config, num_key_value_heads=2, sliding_window=window)
    with jax.enable_x64(True):
        model = Model(config, dtype=jnp.float64)
        params = model.init(jax.random.key(0), dtype=jnp.float64)
        tokens, mask = padded(PROMPTS, 7, side)
        out = generate(
            model,
            params,
            tokens,
            prompt_mask=mask,
            max_new_tokens=9,
            key=jax.random.key(1),
            eos_id=EOS,
            num_completions=3,
        )
        lengths = set()
        for row in range(len(PROMPTS) * 3):
            drawn = np.asarray(out.tokens[row])[np.asarray(out.mask[row])]
            lengths.add(len(drawn))
            want = recomputed(model, params, PROMPTS[row // 3], drawn.tolist())
            np.testing.assert_allclose(out.logps[row, : len(drawn)], want, rtol=0, atol=1e-10)
            assert EOS not in drawn[:-1]
            assert len(drawn) == 9 or drawn[-1] == EOS
            assert not np.any(out.logps[row, len(drawn) :])
            assert not np.any(out.tokens[row, len(drawn) :])
        assert len(lengths) > 1, "no completion ended early: the test shows nothing about ends"


def test_rollouts_do_not_depend_on_the_batch(tiny_config):
    model = Model(tiny_config)
    params = model.init(jax.random.key(0))
    options = {"max_new_tokens": 6, "key": jax.random.key(3), "eos_id": EOS, "num_completions": 2, "top_p": 0.9}
    tokens, mask = padded(PROMPTS, 8)
    whole = generate(model, params, tokens, prompt_mask=mask, **options)
    for i, prompt in enumerate(PROMPTS):
        alone, alone_mask = padded([prompt], 8)
        one = generate(model, params, alone, prompt_mask=alone_mask, example_ids=jnp.array([i]), **options)
        np.testing.assert_array_equal(one.tokens, whole.tokens[2 * i : 2 * i + 2])
        np.testing.assert_array_equal(one.mask, whole.mask[2 * i : 2 * i + 2])
    assert not np.array_equal(whole.tokens[0], whole.tokens[1])


def test_greedy_takes_the_most_likely_token(tiny_config):
    model = Model(tiny_config)
    params = model.init(jax.random.key(0))
    tokens, mask = padded(PROMPTS[:1], 6)
    out = generate(model, params, tokens, prompt_mask=mask, max_new_tokens=5, key=jax.random.key(0), temperature=0.0)
    row, length = np.zeros(WIDTH, np.int32), len(PROMPTS[0])
    row[:length] = PROMPTS[0]
    for token in np.asarray(out.tokens[0]):
        assert token == int(jnp.argmax(full_row_logits(model, params, row)[length - 1]))
        row[length] = token
        length += 1


def test_sampled_frequencies_are_the_model_s(tiny_config):
    """Chi-square of 4,000 first tokens against the model's own probabilities."""
    model = Model(dataclasses.replace(tiny_config, vocab_size=16))
    params = model.init(jax.random.key(0))
    tokens, mask = padded([[5, 6, 7]], 3)
    count = 4000
    out = generate(
        model,
        params,
        tokens,
        prompt_mask=mask,
        max_new_tokens=1,
        key=jax.random.key(5),
        temperature=1.5,
        num_completions=count,
    )
    logits = model.logits(params, tokens)[0, -1]
    expected = np.asarray(jax.nn.softmax(logits / 1.5)) * count
    seen = np.bincount(np.asarray(out.tokens[:, 0]), minlength=16)
    common = expected >= 5
    pairs = [(seen[common], expected[common])]
    if not common.all():
        pairs.append((seen[~common].sum(keepdims=True), expected[~common].sum(keepdims=True)))
    statistic = sum(float(np.sum((s - e) ** 2 / e)) for s, e in pairs)
    assert statistic < 37.7  # the 99.9th percentile of chi-square with 15 degrees of freedom; fewer only lower it


def test_old_style_keys_and_lists_of_ends_are_taken(tiny_config):
    model = Model(tiny_config)
    params = model.init(jax.random.key(0))
    tokens, mask = padded(PROMPTS, 7)
    options = {"prompt_mask": mask, "max_new_tokens": 4}
    old = generate(model, params, np.asarray(tokens), key=jax.random.PRNGKey(3), eos_id=[2, 5], **options)
    new = generate(model, params, tokens, key=jax.random.key(3), eos_id=(2, 5), **options)
    np.testing.assert_array_equal(old.tokens, new.tokens)


def test_filters():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.1]]))
    assert np.isfinite(filter_logits(logits, Sampling(top_k=2, top_p=1.0))).tolist() == [[True, True, False, False]]
    assert np.isfinite(filter_logits(logits, Sampling(top_k=0, top_p=0.6))).tolist() == [[True, True, False, False]]
    assert np.isfinite(filter_logits(logits, Sampling(top_k=0, top_p=0.5))).tolist() == [[True, False, False, False]]
    assert np.isfinite(filter_logits(logits, Sampling(top_k=0, top_p=0.01))).tolist() == [[True, False, False, False]]
