"""The sampler agrees with the training forward, and a rollout depends on its prompt and its key alone."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.trees import pack
from jaxalign.errors import UserError
from jaxalign.models.model import Model
from jaxalign.models.sharding import make_mesh
from jaxalign.rollout import Rollout, Sampling, decode, generate, rollout_trees, stop_strings, stream
from jaxalign.rollout.sample import argmax, filter_logits, sample_softmax
from tests.packing import unpack

module = importlib.import_module("jaxalign.rollout.generate")

PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14], [15, 16, 17, 18]]
EOS = 2


def padded(prompts, width, side="left"):
    rows, mask = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), bool)
    for i, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if side == "left" else slice(0, len(prompt))
        rows[i, place], mask[i, place] = prompt, True
    return jnp.asarray(rows), jnp.asarray(mask)


def retold(model, params, prompts, rollout, count):
    """Log-probs of a rollout by the training forward on packed trees, in the rollout's own layout."""
    trees = rollout_trees(prompts, rollout, count, row=np.arange(len(rollout.tokens)))
    packed = pack(trees, row_lengths=(64,))
    rows = jax.tree.map(jnp.asarray, packed.rows)
    rows.extras["again"] = jax.lax.map(lambda one: model.token_logps(params, one), rows)
    again = np.zeros(rollout.logps.shape)
    for tree in unpack(packed._replace(rows=jax.tree.map(np.asarray, rows))):
        for row, logps in zip(tree.extras["row"], tree.token_extras["again"], strict=True):
            again[row, : len(logps)] = logps
    return again


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("side", ["left", "right"])
def test_recorded_logps_are_those_of_the_training_forward(tiny_config, window, side):
    """To 1e-10 in float64: ragged prompts, early ends, three completions each; on temperature 1, unfiltered."""
    config = dataclasses.replace(tiny_config, num_key_value_heads=2, sliding_window=window)
    with jax.enable_x64(True):
        model = Model(config, dtype=jnp.float64)
        params = model.init(jax.random.key(0), dtype=jnp.float64)
        tokens, mask = padded(PROMPTS, 7, side)
        options = {"max_new_tokens": 9, "eos_id": EOS, "num_completions": 3, "temperature": 1.3, "top_p": 0.95}
        out = generate(model, params, tokens, prompt_mask=mask, key=jax.random.key(4), **options)
        np.testing.assert_allclose(out.logps, retold(model, params, PROMPTS, out, 3), rtol=0, atol=1e-10)
    lengths = np.sum(out.mask, axis=1)
    for row, length in enumerate(lengths):
        drawn = np.asarray(out.tokens[row, :length])
        assert np.array_equal(out.mask[row], np.arange(9) < length)
        assert EOS not in drawn[:-1]
        assert length == 9 or drawn[-1] == EOS
        assert not np.any(out.tokens[row, length:])
        assert not np.any(out.logps[row, length:])
    assert len(set(lengths.tolist())) > 1, "no completion ended early: the test shows nothing about ends"


def test_bfloat16_logps_are_those_of_its_training_forward(tiny_config):
    """As far as bfloat16 goes: 2^-8 relative in the states, some hundredths of a nat."""
    model = Model(tiny_config, dtype=jnp.bfloat16)
    params = model.init(jax.random.key(0))
    tokens, mask = padded(PROMPTS, 7)
    out = generate(model, params, tokens, prompt_mask=mask, max_new_tokens=9, key=jax.random.key(1), num_completions=2)
    assert out.logps.dtype == jnp.float32
    np.testing.assert_allclose(out.logps, retold(model, params, PROMPTS, out, 2), rtol=0, atol=0.1)


def many(count=24):
    """Prompts of one to six tokens."""
    random = np.random.default_rng(0)
    return [random.integers(3, 96, random.integers(1, 7)).tolist() for _ in range(count)]


def test_rollouts_do_not_depend_on_batch_or_segment(tiny_config, monkeypatch):
    """One by one, in batches and all at once, in segments of one token or more, with ended rows dropped or not."""
    sizes = []
    monkeypatch.setattr(module, "select", lambda *given: sizes.append(len(given[2])) or decode.select(*given))
    with jax.enable_x64(True):  # float64: what differs by a rounding cannot turn a near tie
        model = Model(tiny_config, dtype=jnp.float64)
        params = model.init(jax.random.key(0), dtype=jnp.float64)
        tokens, mask = padded(many(), 8)
        options = {"max_new_tokens": 20, "key": jax.random.key(3), "eos_id": range(2, 14), "num_completions": 2}
        sampling = Sampling(temperature=0.8, top_p=0.9)

        def rollout(places, segment):
            numbers = np.asarray(places)
            *_, (out, done) = stream(
                model,
                params,
                tokens[numbers],
                prompt_mask=mask[numbers],
                example_ids=numbers,
                sampling=sampling,
                segment=segment,
                **options,
            )
            assert done.all()
            return out

        whole = rollout(range(24), 32)
        assert not sizes, "19 tokens are one segment"
        lengths = whole.mask.sum(axis=1)
        assert lengths.min() < 6 < 14 < lengths.max()
        for step, segment in ((24, 1), (24, 7), (8, 3), (1, 32)):
            parts = [rollout(range(24)[start : start + step], segment) for start in range(0, 24, step)]
            for name in ("tokens", "mask"):
                np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name))
            np.testing.assert_allclose(np.concatenate([p.logps for p in parts]), whole.logps, rtol=0, atol=1e-12)
    assert min(sizes) < max(sizes), "no rows were dropped, or never a second time"
    assert not np.array_equal(whole.tokens[0], whole.tokens[1])


@pytest.mark.parametrize("shape", [pytest.param((8, 1, 1), marks=pytest.mark.thorough), (2, 2, 2)], ids=str)
def test_a_mesh_draws_what_one_device_draws(tiny_config, shape):
    with jax.enable_x64(True):
        start = Model(tiny_config, dtype=jnp.float64).init(jax.random.key(0), dtype=jnp.float64)
        tokens, mask = padded(many(16), 8)
        options = {"prompt_mask": mask, "max_new_tokens": 40, "key": jax.random.key(3), "eos_id": [2, 3, 4, 5]}
        outs = []
        for mesh in (make_mesh(), make_mesh(*shape)):
            model = Model(tiny_config, mesh=mesh, dtype=jnp.float64)
            params = jax.device_put(start, model.param_shardings())
            outs.append(generate(model, params, np.asarray(tokens), **options, num_completions=2))
    np.testing.assert_array_equal(outs[0].tokens, outs[1].tokens)
    np.testing.assert_allclose(outs[0].logps, outs[1].logps, rtol=0, atol=1e-10)


def test_greedy_takes_the_most_likely_token(tiny_config):
    model = Model(tiny_config)
    params = model.init(jax.random.key(0))
    tokens, mask = padded(PROMPTS[:1], 6)
    out = generate(model, params, tokens, prompt_mask=mask, max_new_tokens=5, key=jax.random.key(0), temperature=0.0)
    text = [*PROMPTS[0], *np.asarray(out.tokens[0]).tolist()]
    logits = model.logits(params, jnp.asarray([text]))[0]
    assert text[6:] == np.argmax(logits[5:-1], axis=-1).tolist()


def assert_drawn_from(counts, probabilities):
    """Chi-square at 1 in 1,000 (Wilson and Hilferty's cubes); cells with less than 5 expected are one."""
    counts, expected = np.ravel(counts), np.ravel(probabilities) * counts.sum()
    assert not counts[expected == 0].any(), "a token that was filtered out was drawn"
    rare = expected < 5
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    assert freedom >= 2, "too few cells to test anything"
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3
    assert np.sum((counts - expected) ** 2 / expected) < limit


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=1.5),
    Sampling(temperature=0.7, top_k=5),
    Sampling(top_p=0.7),
    Sampling(temperature=1.2, min_p=0.1),
    Sampling(temperature=2.0, top_k=9, top_p=0.9, min_p=0.02),
]


def by_sorting(logits, sampling):
    """Probabilities after the filters, in NumPy and by sorting."""
    p = np.exp(np.float64(logits) / sampling.temperature)
    order = np.argsort(-p)
    if sampling.top_k:
        p[order[sampling.top_k :]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= sampling.top_p]] = 0
    p[p < sampling.min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_sampled_frequencies_are_the_model_s(tiny_config, sampling):
    """8,000 pairs of a first and a second token against the model's own joint probabilities."""
    size, count = 13, 8000
    model = Model(dataclasses.replace(tiny_config, vocab_size=size))
    params = model.init(jax.random.key(0))
    tokens, mask = padded([[5, 6, 7]], 3)
    options = {**dataclasses.asdict(sampling), "max_new_tokens": 2, "num_completions": count}
    out = generate(model, params, tokens, prompt_mask=mask, key=jax.random.key(5), **options)
    counts = np.zeros((size, size))
    np.add.at(counts, tuple(np.asarray(out.tokens).T), 1)
    texts = np.array([[5, 6, 7, first] for first in range(size)])
    logits = np.asarray(model.logits(params, texts))
    first = by_sorting(logits[0, 2], sampling)
    assert_drawn_from(counts, first[:, None] * [by_sorting(row[3], sampling) for row in logits])


@pytest.mark.parametrize("size", [1, 2, 7, 300])
def test_the_two_level_draw_and_maximum(size):
    """Of a vocabulary that no block divides, some of it ruled out."""
    logits = np.random.default_rng(size).normal(size=size).astype(np.float32) * 2
    logits[2::5] = -np.inf
    rows = jnp.broadcast_to(jnp.asarray(logits), (20000, size))
    drawn = np.asarray(jax.jit(sample_softmax)(rows, jax.random.split(jax.random.key(0), 20000)))
    if size > 2:
        assert_drawn_from(np.bincount(drawn, minlength=size), np.exp(logits) / np.exp(logits).sum())
    assert argmax(rows[:3]).tolist() == [int(np.argmax(logits))] * 3
    assert argmax(jnp.zeros((1, size))).tolist() == [0]  # of equals the first


@pytest.mark.parametrize("sampling", SAMPLINGS[1:], ids=str)
def test_filters_keep_what_sorting_keeps(sampling):
    logits = np.random.default_rng(0).normal(size=(50, 400)).astype(np.float32) * 3
    allowed = np.isfinite(filter_logits(jnp.asarray(logits) / sampling.temperature, sampling))
    want = np.array([by_sorting(row, sampling) for row in logits]) > 0
    np.testing.assert_array_equal(allowed, want)


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids, **options):
        return "".join(chr(97 + i % 26) for i in ids)


def test_stop_strings_end_a_completion_whenever_they_are_looked_for(tiny_config):
    """At the token that completes the first of them, which is kept, on any batch and segment."""
    stop = stop_strings(Letters(), ["ab", "c", "de"])
    assert stop_strings(Letters(), []) is None
    model = Model(dataclasses.replace(tiny_config, vocab_size=26))
    params = model.init(jax.random.key(0))
    tokens, mask = padded([[5, 6], [7]] * 8, 3)
    options = {"prompt_mask": mask, "max_new_tokens": 40, "key": jax.random.key(2), "num_completions": 2}
    free = generate(model, params, tokens, **options)
    ended = generate(model, params, tokens, stop=stop, **options)
    *_, (often, _) = stream(model, params, tokens, stop=stop, segment=3, **options)
    lengths = set()
    for row, ids in enumerate(np.asarray(free.tokens)):
        text = Letters().decode(ids)
        places = [text.find(string) + len(string) for string in ("ab", "c", "de") if string in text]
        length = min(places, default=40)
        lengths.add(length)
        for out in (ended, often):
            np.testing.assert_array_equal(out.mask[row], np.arange(40) < length)
            np.testing.assert_array_equal(out.tokens[row], np.where(out.mask[row], ids, 0))
            np.testing.assert_allclose(out.logps[row], np.where(out.mask[row], free.logps[row], 0), rtol=0, atol=1e-5)
    assert len(lengths) > 5
    for bad in ("", "a\ufffd"):
        with pytest.raises(UserError, match="stop string"):
            stop_strings(Letters(), ["a", bad])


def test_streaming_shows_each_segment(tiny_config):
    model = Model(tiny_config)
    params = model.init(jax.random.key(0))
    tokens, mask = padded(PROMPTS, 7)
    seen = [
        (progress.rollout.mask.sum(axis=1).tolist(), progress.done.tolist())
        for progress in stream(
            model, params, tokens, prompt_mask=mask, max_new_tokens=6, key=jax.random.key(0), segment=2
        )
    ]
    assert seen == [([n] * 4, [n == 6] * 4) for n in (1, 3, 5, 6)]


def test_settings_that_make_no_sense(tiny_config):
    for wrong in ({"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"min_p": 1.5}, {"temperature": float("nan")}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} must be"):
            Sampling(**wrong)
    model = Model(tiny_config)
    params = model.init(jax.random.key(0))
    good = {"prompt_mask": np.ones((1, 2), bool), "max_new_tokens": 3, "key": jax.random.key(0)}
    for wrong in ({"max_new_tokens": 0}, {"num_completions": 0}, {"prompt_mask": np.zeros((1, 2), bool)}):
        with pytest.raises(UserError, match=r"must be 1 or more|is False everywhere"):
            generate(model, params, np.ones((1, 2), int), **(good | wrong))


def test_trees_of_a_rollout():
    tokens = np.array([[5, 2, 0], [6, 7, 8], [2, 0, 0], [9, 2, 0]])
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]], bool)
    logps = np.where(mask, -np.arange(12.0).reshape(4, 3), 0)
    trees = rollout_trees([[3], [4, 4]], Rollout(tokens, mask, logps), 2, score=[0.5, 1.5, 2.5, 3.5])
    assert [[c.tolist() for c in tree.completions] for tree in trees] == [[[5, 2], [6, 7, 8]], [[2], [9, 2]]]
    assert trees[1].extras["score"].tolist() == [2.5, 3.5]
    assert [v.tolist() for v in trees[1].token_extras["old_logps"]] == [[-6.0], [-9.0, -10.0]]
    for wrong in ({"num_completions": 3}, {"num_completions": 2, "score": [1.0]}):
        with pytest.raises(ValueError, match=r"completions\. Give"):
            rollout_trees([[3], [4, 4]], Rollout(tokens, mask, logps), **wrong)


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
