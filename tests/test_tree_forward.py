"""The tree forward equals running every (prompt + completion) in a row of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.trees import Tree, pack
from jaxalign.loop import Batch, gradients, microbatch, place_batch
from jaxalign.methods import dpo
from jaxalign.models.model import Model
from tests.plain import text_logits


def random_trees(count, seed=0, vocab=96, completions=2, longest=12):
    rng = np.random.default_rng(seed)
    draw = lambda low, high: rng.integers(3, vocab, rng.integers(low, high)).astype(np.int32)  # noqa: E731
    trees = []
    for _ in range(count):
        branches = tuple(draw(1, longest) for _ in range(completions))
        trees.append(Tree(draw(1, longest), branches, tuple(np.ones(len(b), bool) for b in branches)))
    return trees


def separate_logps(model, params, trees):
    """Per-token log-probs of each completion of each tree, from a row of its own."""
    parts = [(tree.prompt, completion) for tree in trees for completion in tree.completions]
    texts = [np.concatenate(part) for part in parts]
    out = []
    for (prompt, completion), logits in zip(parts, text_logits(model, params, texts), strict=True):
        logps = jax.nn.log_softmax(logits)
        out.append(logps[len(prompt) - 1 + np.arange(len(completion)), completion])
    return [out[i : i + len(trees[0].completions)] for i in range(0, len(out), len(trees[0].completions))]


@pytest.mark.parametrize("variant", ["tied", "untied", "window"])
def test_logps_and_gradient_equal_separate_rows(tiny_config, variant):
    config = dataclasses.replace(
        tiny_config,
        num_key_value_heads=2,
        tie_word_embeddings=variant != "untied",
        sliding_window=5 if variant == "window" else None,
    )
    with jax.enable_x64(True):
        model = Model(config, dtype=jnp.float64)
        params = model.init(jax.random.key(0), dtype=jnp.float64)
        trees = random_trees(5)
        packed = pack(trees, row_lengths=(64,), rows_per_microbatch=2)
        weights = np.random.default_rng(1).normal(size=packed.rows.mask.shape)

        def packed_sum(params):
            total = 0.0
            for m in range(packed.used):
                rows = microbatch(jax.tree.map(jnp.asarray, packed.rows), m)
                total += jnp.sum(model.token_logps(params, rows) * weights[m])
            return total

        def apart(params):
            """The same weighted sum, read off separate rows; slots of a completion stand in the order of its tokens."""
            total, rows = 0.0, packed.rows
            logps_of = separate_logps(model, params, trees)
            for m, r, example in zip(*np.nonzero(rows.example_mask), strict=True):
                prompt = rows.tokens[m, r][(rows.example[m, r] == example) & (rows.branch[m, r] == 0)]
                number = next(i for i, t in enumerate(trees) if np.array_equal(t.prompt, prompt))
                for branch, logps in enumerate(logps_of[number]):
                    total += logps @ weights[m, r][rows.owner[m, r] == example * 2 + branch]
            return total

        value, grads = jax.jit(jax.value_and_grad(packed_sum))(params)
        want, want_grads = jax.jit(jax.value_and_grad(apart))(params)
        assert abs(value - want) < 1e-10 * abs(want) + 1e-10
        for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


def dpo_gradient(model, params, trees, **options):
    packed = pack(trees, **options)
    frozen = jax.tree.map(lambda p: p * 0.9, params)
    method = dpo.dpo(model, beta=0.1)
    batch = place_batch(packed.rows, packed.used, model.mesh)
    step = jax.jit(lambda p, f, b: gradients(method, p, f, (), b)[:2])
    return step(params, frozen, batch)


def test_packing_and_microbatches_never_change_the_gradient(tiny_config):
    with jax.enable_x64(True):
        model = Model(tiny_config, dtype=jnp.float64)
        params = model.init(jax.random.key(0), dtype=jnp.float64)
        trees = random_trees(7)
        (loss, _), want = dpo_gradient(model, params, trees, row_lengths=(512,))
        for options in (
            {"row_lengths": (48,), "rows_per_microbatch": 1},
            {"row_lengths": (64,), "rows_per_microbatch": 3},
            {"row_lengths": (128,), "rows_per_microbatch": 7},
        ):
            for order in (trees, trees[::-1]):
                (other, _), grads = dpo_gradient(model, params, order, **options)
                assert abs(other - loss) < 1e-12
                for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(want), strict=True):
                    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


def test_poisoned_padding_changes_nothing(tiny_config):
    model = Model(tiny_config)
    params = model.init(jax.random.key(0))
    packed = pack(random_trees(3), row_lengths=(128,), rows_per_microbatch=1)
    rows = packed.rows
    padding, unused = rows.example < 0, rows.owner < 0
    poisoned = dataclasses.replace(
        rows,
        tokens=np.where(padding, 77, rows.tokens),
        position=np.where(padding, 500, rows.position),
        branch=np.where(padding, 2, rows.branch),
        source=np.where(unused, 127, rows.source),
        target=np.where(unused, 55, rows.target),
        last=np.where(rows.example_mask[..., None], rows.last, 99),
    )
    cached = np.random.default_rng(0).normal(-20, 1, rows.last.shape).astype(np.float32)
    rows = dataclasses.replace(rows, extras={"ref_logps": np.where(rows.example_mask[..., None], cached, 0)})
    poison = np.where(rows.example_mask[..., None], cached, np.nan)
    poisoned = dataclasses.replace(poisoned, extras={"ref_logps": poison})
    method = dpo.dpo(model, beta=0.1)
    step = jax.jit(lambda p, b: gradients(method, p, None, (), b)[:2])
    clean, dirty = (step(params, Batch(jax.tree.map(jnp.asarray, r), jnp.int32(packed.used))) for r in (rows, poisoned))
    assert np.isfinite(clean[0][0])
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_loss_is_log_two_where_policy_is_reference(tiny_config):
    model = Model(tiny_config)
    params = model.init(jax.random.key(0))
    packed = pack(random_trees(6), row_lengths=(64,), rows_per_microbatch=1)
    batch = place_batch(packed.rows, packed.used, model.mesh)
    method = dpo.dpo(model, beta=0.1)
    (loss, metrics), _, _ = jax.jit(lambda p, b: gradients(method, p, p, (), b))(params, batch)
    assert abs(loss - np.log(2)) < 1e-6
    assert metrics["rewards/accuracies"][0] / metrics["rewards/accuracies"][1] == 0.5
