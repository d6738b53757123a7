"""One full iteration of PPO, GRPO, RLOO and DAPO against a transcription in float64 that knows no rows.

The transcription runs every completion by itself through the plain forward pass, does rewards, KL, advantages and
whitening in NumPy, token by token, and differentiates a loss written as its equation.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign import losses
from jaxalign.data.trees import Tree
from jaxalign.loop import Batch, init_state, make_step
from jaxalign.methods import experience, grpo, ppo
from jaxalign.methods.rollouts import Packing, make_prepare, minibatches, update
from jaxalign.models.model import Model

BETA, RATE, LENGTH, SIZE, K = 0.3, 0.5, 6, 6, 3
EPOCHS, PARTS = 2, 2
PENALTY, CLIP = 0.7, 1.5


def experience_trees(random, dtype=np.float64, masked=True):
    """Prompts with K scored completions of different lengths, some of whose tokens do not count."""
    trees = []
    for _ in range(SIZE):
        prompt = random.integers(3, 96, random.integers(1, 5)).astype(np.int32)
        texts = tuple(random.integers(3, 96, random.integers(2, LENGTH + 1)).astype(np.int32) for _ in range(K))
        masks = tuple(random.random(len(t)) < (0.75 if masked else 2) for t in texts)
        for mask in masks:
            mask[random.integers(len(mask))] = True
        trees.append(
            Tree(
                prompt,
                texts,
                masks,
                {"scores": random.normal(size=K).astype(dtype), "finished": random.random(K) < 0.6},
                {"old_logps": tuple(random.normal(-4, 0.7, len(t)).astype(dtype) for t in texts)},
            )
        )
    return trees


def forward(model, params, head, tree):
    """(log-probs, values or None, entropies) of each completion's tokens, from a row of its own."""
    found = []
    for completion in tree.completions:
        text = jnp.asarray(np.concatenate([tree.prompt, completion]))[None]
        at = np.arange(len(tree.prompt), text.shape[1])
        logits = model.logits(params, text)[0][at - 1]
        logps = logits - jnp.log(jnp.sum(jnp.exp(logits), axis=-1, keepdims=True))
        states = None
        if head is not None:
            trunk, trunk_params, kernel = head
            states = hidden(trunk, trunk_params, text)[at - 1] @ kernel[:, 0]
        found.append((logps[np.arange(len(at)), text[0, at]], states, -jnp.sum(jnp.exp(logps) * logps, axis=-1)))
    return found


def hidden(model, params, text):
    """Final states of one plain row: what logits are made of, with an identity for a head."""
    from jaxalign.masking import Rows

    none = jnp.zeros((1, 0), jnp.int32)
    zeros = jnp.zeros_like(text)
    rows = Rows(text, zeros, jnp.arange(text.shape[1])[None], zeros, none, none, none, none, none, none)
    return model.encode(params, rows)[0]


def rewards_of(tree, refs, beta, clip=CLIP):
    """-β (log π_old - log π_ref) on every token that counts, and the shaped score on the last one."""
    out = []
    for k, mask in enumerate(tree.masks):
        reward = np.zeros(len(mask))
        for t in np.flatnonzero(mask):
            reward[t] = -beta * (tree.token_extras["old_logps"][k][t] - refs[k][t])
        score = np.clip(tree.extras["scores"][k], -clip, clip) - PENALTY * (not tree.extras["finished"][k])
        reward[np.flatnonzero(mask)[-1]] += score
        out.append(reward)
    return out


def gae_of(reward, value, mask, gamma, lam):
    advantage, after, next_value = np.zeros(len(mask)), 0.0, 0.0
    for t in np.flatnonzero(mask)[::-1]:
        after = reward[t] + gamma * next_value - value[t] + gamma * lam * after
        advantage[t], next_value = after, value[t]
    return advantage


def surrogate(ratio, advantage, low, high):
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - low, 1 + high) * advantage)


@pytest.fixture
def setting(tiny_config):
    """(model, policy, another policy as reference, trees), in float64."""
    with jax.enable_x64(True):
        model = Model(tiny_config, dtype=jnp.float64)
        policy, reference = (model.init(jax.random.key(i), dtype=jnp.float64) for i in (0, 1))
        random = np.random.default_rng(2)
        trees = experience_trees(random)
        # Near the policy's own log-probs, some ratios beyond the clip and some not.
        for i, tree in enumerate(trees):
            own = forward(model, policy, None, tree)
            logps = tuple(np.asarray(o[0]) + random.normal(0, 0.25, len(o[0])) for o in own)
            trees[i] = dataclasses.replace(tree, token_extras={"old_logps": logps})
        yield model, policy, reference, trees


def run_iteration(online, model, params, frozen, trees, *, rows=1, shape=(64, 64)):
    """(first loss, final parameters, prepared trees, method state, metrics) of an iteration with SGD."""
    packing = Packing(model.mesh, shape, K, rows)
    optimizer = optax.sgd(RATE)
    state = init_state(
        jax.tree.map(jnp.copy, params), optimizer, jax.random.key(5), method_state=experience.init_state(BETA)
    )
    step = make_step(online.step, optimizer, state)
    prepare = make_prepare(online, packing, size=SIZE, length=LENGTH, frozen=frozen)
    trees, method_state, measured = prepare(state.params, state.method_state, trees)
    state = dataclasses.replace(state, method_state=method_state)
    done = update(
        state,
        trees,
        step,
        packing,
        key=jax.random.key(9),
        weights=online.weights,
        epochs=EPOCHS,
        num_minibatches=PARTS,
        size=SIZE,
    )
    return done.state, trees, measured, done.metrics


def check_steps(loss_of, params, state):
    """SGD on the transcription's loss of the same minibatches ends at the same parameters."""
    want, gradient = params, jax.jit(jax.grad(loss_of), static_argnums=1)
    for epoch in range(EPOCHS):
        for chosen in minibatches(SIZE, PARTS, jax.random.fold_in(jax.random.key(9), epoch)):
            grads = gradient(want, tuple(chosen.tolist()))
            want = jax.tree.map(lambda p, g: p - RATE * g, want, grads)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, want, params))
    apart = optax.tree.norm(jax.tree.map(jnp.subtract, want, state.params))
    assert moved > 1e-2
    assert apart <= 1e-6 * moved


def assert_tokens(trees, name, want, rtol=1e-6):
    for tree, per_tree in zip(trees, want, strict=True):
        for mask, got, each in zip(tree.masks, tree.token_extras[name], per_tree, strict=True):
            np.testing.assert_allclose(got[mask], np.asarray(each)[mask], rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("trunk", ["shared", "own"])
def test_ppo(setting, trunk):
    model, policy, reference, trees = setting
    gamma, lam, low, high, value_clip, coefficient = 0.97, 0.9, 0.15, 0.25, 0.1, 0.3
    kernel = jax.random.normal(jax.random.key(4), (32, 1), jnp.float64) / 6
    if trunk == "shared":
        value_model, params = None, {"policy": policy, "value": {"score": {"kernel": kernel}}}
    else:
        value_model = dataclasses.replace(model, config=dataclasses.replace(model.config, num_scores=1))
        own = value_model.init(jax.random.key(8), dtype=jnp.float64)
        params = {"policy": policy, "value": {**own, "score": {"kernel": kernel}}}
    online = ppo.ppo(
        model,
        value_model=value_model,
        shape=functools.partial(experience.shape_scores, clip=CLIP, missing_eos_penalty=PENALTY),
        controller=functools.partial(losses.adaptive_kl, target=2.0),
        gamma=gamma,
        lam=lam,
        clip_low=low,
        clip_high=high,
        value_clip=value_clip,
        value_coefficient=coefficient,
    )
    state, prepared, measured, stepped = run_iteration(online, model, params, {"reference": reference}, trees)

    def run(params, tree):
        if trunk == "shared":
            head = (model, params["policy"], params["value"]["score"]["kernel"])
        else:
            head = (value_model, params["value"], params["value"]["score"]["kernel"])
        return forward(model, params["policy"], head, tree)

    refs = [[np.asarray(f[0]) for f in forward(model, reference, None, tree)] for tree in trees]
    values = [[np.asarray(f[1]) for f in run(params, tree)] for tree in trees]
    rewards = [rewards_of(tree, ref, BETA) for tree, ref in zip(trees, refs, strict=True)]
    raw = [
        [gae_of(*each, gamma, lam) for each in zip(r, v, tree.masks, strict=True)]
        for r, v, tree in zip(rewards, values, trees, strict=True)
    ]
    counted = np.concatenate([a[m] for per, tree in zip(raw, trees, strict=True) for a, m in zip(per, tree.masks)])
    mean, std = counted.mean(), np.sqrt(counted.var() + 1e-8)
    white = [[(a - mean) / std for a in per] for per in raw]
    returns = [[a + v for a, v in zip(*both, strict=True)] for both in zip(raw, values, strict=True)]
    assert_tokens(prepared, "ref_logps", refs)
    assert_tokens(prepared, "old_values", values)
    assert_tokens(prepared, "returns", returns)
    assert_tokens(prepared, "advantages", white)

    kl = np.mean(
        [
            np.sum((old - ref)[m])
            for tree, ref_ in zip(trees, refs, strict=True)
            for old, ref, m in zip(tree.token_extras["old_logps"], ref_, tree.masks, strict=True)
        ]
    )
    np.testing.assert_allclose(measured["objective/kl"], kl, rtol=1e-6)
    np.testing.assert_allclose(
        state.method_state.kl.beta, BETA * (1 + 0.1 * np.clip(kl / 2.0 - 1, -0.2, 0.2)), rtol=1e-6
    )
    scores = np.concatenate([tree.extras["scores"] for tree in trees])
    np.testing.assert_allclose(state.method_state.scores[:2], (SIZE * K, scores.mean()), rtol=1e-6)
    np.testing.assert_allclose(state.method_state.scores[2], np.sum((scores - scores.mean()) ** 2), rtol=1e-6)
    back = np.concatenate([r[m] for per, tree in zip(returns, trees, strict=True) for r, m in zip(per, tree.masks)])
    np.testing.assert_allclose(measured["val/explained_variance"], 1 - counted.var() / back.var(), rtol=1e-6)
    np.testing.assert_allclose(measured["returns/std"], back.std(), rtol=1e-6)
    np.testing.assert_allclose(
        measured["completions/truncated"], np.mean([~tree.extras["finished"] for tree in trees]), rtol=1e-6
    )
    assert int(state.method_state.iteration) == 1

    def loss_of(params, chosen):
        total, count = 0.0, sum(int(m.sum()) for i in chosen for m in trees[i].masks)
        for i in chosen:
            for k, (logps, value, _) in enumerate(run(params, trees[i])):
                ratio = jnp.exp(logps - trees[i].token_extras["old_logps"][k])
                old = values[i][k]
                near = jnp.clip(value, old - value_clip, old + value_clip)
                error = jnp.maximum((value - returns[i][k]) ** 2, (near - returns[i][k]) ** 2) / 2
                each = surrogate(ratio, white[i][k], low, high) + coefficient * error
                total += jnp.sum(jnp.where(trees[i].masks[k], each, 0))
        return total / count

    check_steps(loss_of, params, state)
    assert 0.05 < stepped["policy/clipfrac_avg"] < 0.95
    assert 0.05 < stepped["val/clipfrac_avg"]


def group(scores, std):
    centred = scores - scores.mean()
    return centred / (scores.std(ddof=1) + 1e-4) if std else centred


CASES = {
    "grpo": (grpo.grpo, lambda s: group(s, True), 0.2, 0.2),
    "dapo": (grpo.dapo, lambda s: group(s, True), 0.2, 0.28),
    "rloo": (grpo.rloo, lambda s: np.array([s[k] - np.delete(s, k).mean() for k in range(K)]), 0.2, 0.2),
    "dr_grpo": (functools.partial(grpo.dr_grpo, length=LENGTH), lambda s: group(s, False), 0.2, 0.2),
    "gspo": (grpo.gspo, lambda s: group(s, True), 3e-4, 4e-4),
    "cispo": (grpo.cispo, lambda s: group(s, True), None, 5.0),
}


@pytest.mark.parametrize("name", CASES)
def test_critic_free(setting, name):
    model, policy, reference, trees = setting
    make, advantage_of, low, high = CASES[name]
    online = make(
        model, shape=functools.partial(experience.shape_scores, clip=CLIP, missing_eos_penalty=PENALTY)
    )
    state, prepared, _, _ = run_iteration(online, model, policy, {"reference": reference}, trees)
    refs = [[np.asarray(f[0]) for f in forward(model, reference, None, tree)] for tree in trees]
    in_reward = BETA if name == "rloo" else 0.0
    totals = [np.array([r.sum() for r in rewards_of(t, ref, in_reward)]) for t, ref in zip(trees, refs, strict=True)]
    taught = [advantage_of(total) for total in totals]
    assert_tokens(
        prepared,
        "advantages",
        [[np.full(len(m), a) for a, m in zip(per, t.masks, strict=True)] for per, t in zip(taught, trees, strict=True)],
    )

    def loss_of(params, chosen):
        total, tokens = 0.0, sum(int(m.sum()) for i in chosen for m in trees[i].masks)
        sequences = K * len(chosen)
        for i in chosen:
            for k, (logps, _, _) in enumerate(forward(model, params, None, trees[i])):
                mask, advantage = trees[i].masks[k], taught[i][k]
                count = int(mask.sum())
                log_ratio = jnp.where(mask, logps - trees[i].token_extras["old_logps"][k], 0)
                if name == "rloo":
                    total += surrogate(jnp.exp(jnp.sum(log_ratio)), advantage, low, high) / sequences
                elif name == "gspo":
                    total += surrogate(jnp.exp(jnp.sum(log_ratio) / count), advantage, low, high) / sequences
                elif name == "cispo":
                    weight = jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_ratio), high))
                    total += jnp.sum(jnp.where(mask, -weight * advantage * logps, 0)) / tokens
                else:
                    each = surrogate(jnp.exp(log_ratio), advantage, low, high)
                    if name == "grpo":
                        r = refs[i][k] - logps
                        each += BETA * (jnp.exp(r) - 1 - r)
                    share = {"grpo": count * sequences, "dapo": tokens, "dr_grpo": LENGTH * sequences}[name]
                    total += jnp.sum(jnp.where(mask, each, 0)) / share
        return total

    check_steps(loss_of, policy, state)


@pytest.mark.parametrize("which", ["ppo", "grpo", "rloo"])
def test_packing_and_microbatches_change_nothing(tiny_config, which):
    """Float32: the first gradient to 1e-5 of its norm, the parameters after an iteration to 1e-3 of how far they went."""
    model = Model(tiny_config)
    policy, reference = model.init(jax.random.key(0)), model.init(jax.random.key(1))
    trees = experience_trees(np.random.default_rng(3), np.float32)
    params = {"policy": policy, "value": ppo.value_head(model)} if which == "ppo" else policy
    online = ppo.ppo(model) if which == "ppo" else getattr(grpo, which)(model)
    step_of = {}

    def first_gradient(rows, shape, prepared):
        from jaxalign.loop import gradients
        from jaxalign.methods.rollouts import weighted

        packing = Packing(model.mesh, shape, K, rows)
        batch: Batch = packing.batch(weighted(prepared, range(SIZE), online.weights), SIZE)
        return jax.jit(lambda b: gradients(online.step, params, None, (), b)[1])(batch)

    for name, rows, shape in (
        ("all", SIZE, (64, 64)),
        ("one long row", 1, (512, 512)),
        ("1", 1, (64, 64)),
        ("2", 2, (64, 48)),
        ("4", 4, (32, 32)),
    ):
        state, prepared, _, _ = run_iteration(
            online, model, params, {"reference": reference}, trees, rows=rows, shape=shape
        )
        step_of[name] = (first_gradient(rows, shape, prepared), state.params)
    gradient, after = step_of.pop("all")
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, after, params))
    for other_gradient, other_after in step_of.values():
        apart = optax.tree.norm(jax.tree.map(jnp.subtract, gradient, other_gradient))
        assert apart <= 1e-5 * optax.tree.norm(gradient)
        assert optax.tree.norm(jax.tree.map(jnp.subtract, after, other_after)) <= 1e-3 * moved
