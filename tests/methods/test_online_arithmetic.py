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
from jaxalign.loop import gradients, init_state, make_step
from jaxalign.masking import Rows
from jaxalign.methods import experience, grpo, ppo
from jaxalign.methods.rollouts import Packing, make_prepare, minibatch, minibatches, update
from jaxalign.models.model import Model

BETA, RATE, LENGTH, SIZE, K = 0.3, 0.5, 6, 5, 3
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


def plain(trees):
    """(texts [N, L], where each completion's tokens are predicted [N, C], the tokens, which count) padded behind."""
    pairs = [(t.prompt, c, m) for t in trees for c, m in zip(t.completions, t.masks, strict=True)]
    longest = max(len(p) + len(c) for p, c, _ in pairs)
    texts = np.zeros((len(pairs), longest), np.int32)
    at, tokens, mask = np.zeros((3, len(pairs), LENGTH), np.int32)
    for i, (prompt, completion, counts) in enumerate(pairs):
        texts[i, : len(prompt) + len(completion)] = np.concatenate([prompt, completion])
        at[i, : len(completion)] = len(prompt) - 1 + np.arange(len(completion))
        tokens[i, : len(completion)], mask[i, : len(completion)] = completion, counts
    return texts, at, tokens, mask.astype(bool)


def forward(model, params, trees):
    """Log-probs of the completions' tokens [N, C] from plain rows, a completion each."""
    texts, at, tokens, _ = plain(trees)
    logits = jnp.take_along_axis(model.logits(params, texts), at[..., None], axis=1)
    logps = logits - jnp.log(jnp.sum(jnp.exp(logits), axis=-1, keepdims=True))
    return jnp.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0]


def values_of(model, params, kernel, trees):
    """Final states of plain rows, times the head [N, C]."""
    texts, at, _, _ = plain(trees)
    none, zeros = jnp.zeros((len(texts), 0), jnp.int32), np.zeros_like(texts)
    position = np.broadcast_to(np.arange(texts.shape[1]), texts.shape)
    states = model.encode(params, Rows(texts, zeros, position, zeros, none, none, none, none, none, none))
    return jnp.take_along_axis(states, at[..., None], axis=1) @ kernel[:, 0]


def cut(rectangle, trees):
    """[N, C] as a list of completions a tree, each as long as it is."""
    rows = iter(np.asarray(rectangle))
    return [[next(rows)[: len(c)] for c in tree.completions] for tree in trees]


def rect(per_tree):
    """The inverse of ``cut``."""
    return np.stack([np.pad(values, (0, LENGTH - len(values))) for tree in per_tree for values in tree])


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
        own = cut(jax.jit(lambda p: forward(model, p, trees))(policy), trees)
        for i, tree in enumerate(trees):
            logps = tuple(logps + random.normal(0, 0.25, len(logps)) for logps in own[i])
            trees[i] = dataclasses.replace(tree, token_extras={"old_logps": logps})
        yield model, policy, reference, trees


def run_iteration(online, model, params, frozen, trees, *, rows=1, shape=(64, 64), rate=RATE):
    """(final state, prepared examples, metrics of preparing and of stepping) of an iteration with SGD."""
    packing = Packing(model.mesh, shape, K, rows)
    optimizer = optax.sgd(rate)
    state = init_state(
        jax.tree.map(jnp.copy, params), optimizer, jax.random.key(5), method_state=experience.init_state(BETA)
    )
    step = make_step(online.step, optimizer, state)
    prepare = make_prepare(online, packing, size=SIZE, length=LENGTH, frozen=frozen)
    examples, method_state, measured = prepare(state.params, state.method_state, trees)
    state = dataclasses.replace(state, method_state=method_state)
    done = update(
        state,
        examples,
        jax.random.key(9),
        step_fn=step,
        packing=packing,
        weights=online.weights,
        epochs=EPOCHS,
        num_minibatches=PARTS,
        size=SIZE,
    )
    return done.state, examples, measured, done.metrics


def check_steps(loss_of, params, state):
    """SGD on the transcription's loss of the same minibatches ends at the same parameters."""
    want, gradient = params, jax.jit(jax.grad(loss_of))
    for epoch in range(EPOCHS):
        for chosen in minibatches(SIZE, PARTS, jax.random.fold_in(jax.random.key(9), epoch)):
            grads = gradient(want, np.repeat(np.isin(np.arange(SIZE), chosen), K)[:, None])
            want = jax.tree.map(lambda p, g: p - RATE * g, want, grads)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, want, params))
    apart = optax.tree.norm(jax.tree.map(jnp.subtract, want, state.params))
    assert moved > 1e-2
    assert apart <= 1e-6 * moved


def assert_tokens(examples, name, want, rtol=1e-6):
    rectangle = getattr(examples.inputs, name)
    for tree, rows, expected in zip(examples.trees, rectangle, want, strict=True):
        for mask, row, values in zip(tree.masks, rows, expected, strict=True):
            np.testing.assert_allclose(row[: len(mask)][mask], np.asarray(values)[mask], rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("trunk", [pytest.param("shared", marks=pytest.mark.thorough), "own"])
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

    def value(params):
        if trunk == "shared":
            return values_of(model, params["policy"], params["value"]["score"]["kernel"], trees)
        return values_of(value_model, params["value"], params["value"]["score"]["kernel"], trees)

    refs = cut(jax.jit(lambda p: forward(model, p, trees))(reference), trees)
    values = cut(jax.jit(value)(params), trees)
    rewards = [rewards_of(tree, ref, BETA) for tree, ref in zip(trees, refs, strict=True)]
    raw = [
        [gae_of(*completion, gamma, lam) for completion in zip(r, v, tree.masks, strict=True)]
        for r, v, tree in zip(rewards, values, trees, strict=True)
    ]
    counted = np.concatenate(
        [a[m] for per, tree in zip(raw, trees, strict=True) for a, m in zip(per, tree.masks, strict=False)]
    )
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
    back = np.concatenate(
        [r[m] for per, tree in zip(returns, trees, strict=True) for r, m in zip(per, tree.masks, strict=False)]
    )
    np.testing.assert_allclose(measured["val/explained_variance"], 1 - counted.var() / back.var(), rtol=1e-6)
    np.testing.assert_allclose(measured["returns/std"], back.std(), rtol=1e-6)
    np.testing.assert_allclose(
        measured["completions/truncated"], np.mean([~tree.extras["finished"] for tree in trees]), rtol=1e-6
    )
    assert int(state.method_state.iteration) == 1

    mask, old = plain(trees)[-1], rect([tree.token_extras["old_logps"] for tree in trees])
    then, target, advantage = rect(values), rect(returns), rect(white)

    def loss_of(params, chosen):
        ratio, now = jnp.exp(forward(model, params["policy"], trees) - old), value(params)
        near = jnp.clip(now, then - value_clip, then + value_clip)
        error = jnp.maximum((now - target) ** 2, (near - target) ** 2) / 2
        per_token = surrogate(ratio, advantage, low, high) + coefficient * error
        return jnp.sum(jnp.where(mask & chosen, per_token, 0)) / jnp.sum(mask & chosen)

    check_steps(loss_of, params, state)
    assert 0.05 < stepped["policy/clipfrac_avg"] < 0.95
    assert stepped["val/clipfrac_avg"] > 0.05


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
    online = make(model, shape=functools.partial(experience.shape_scores, clip=CLIP, missing_eos_penalty=PENALTY))
    state, prepared, _, _ = run_iteration(online, model, policy, {"reference": reference}, trees)
    refs = cut(jax.jit(lambda p: forward(model, p, trees))(reference), trees)
    in_reward = BETA if name == "rloo" else 0.0
    totals = [np.array([r.sum() for r in rewards_of(t, ref, in_reward)]) for t, ref in zip(trees, refs, strict=True)]
    taught = [advantage_of(total) for total in totals]
    assert_tokens(
        prepared,
        "advantages",
        [[np.full(len(m), a) for a, m in zip(per, t.masks, strict=True)] for per, t in zip(taught, trees, strict=True)],
    )

    mask, old = plain(trees)[-1], rect([tree.token_extras["old_logps"] for tree in trees])
    advantage, ref_logps = np.concatenate(taught)[:, None], rect(refs)
    count = mask.sum(axis=1, keepdims=True)

    def loss_of(params, chosen):
        logps = forward(model, params, trees)
        log_ratio = jnp.where(mask, logps - old, 0)
        if name in ("rloo", "gspo"):
            total = jnp.sum(log_ratio, axis=1, keepdims=True)
            per_token = surrogate(jnp.exp(total / count if name == "gspo" else total), advantage, low, high)
            return jnp.sum(jnp.where(chosen, per_token, 0)) / jnp.sum(chosen)
        if name == "cispo":
            per_token = -jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_ratio), high)) * advantage * logps
        else:
            per_token = surrogate(jnp.exp(log_ratio), advantage, low, high)
        if name == "grpo":
            per_token += BETA * (jnp.exp(ref_logps - logps) - 1 - (ref_logps - logps))
        tokens, sequences = jnp.sum(mask & chosen), jnp.sum(chosen)
        over = {"grpo": count * sequences, "dr_grpo": LENGTH * sequences}.get(name, tokens)
        return jnp.sum(jnp.where(mask & chosen, per_token / over, 0))

    check_steps(loss_of, policy, state)


@pytest.mark.thorough
@pytest.mark.parametrize("which", ["ppo", "grpo", "rloo"])
def test_packing_and_microbatches_change_nothing(tiny_config, which):
    """Float32: the first gradient to 1e-5 of its norm, the parameters to 1e-3 of how far an iteration takes them."""
    model = Model(tiny_config)
    policy = model.init(jax.random.key(0))
    reference = jax.tree.map(lambda p: 0.9 * p, policy)
    trees = experience_trees(np.random.default_rng(3), np.float32)
    params = {"policy": policy, "value": ppo.value_head(model)} if which == "ppo" else policy
    online = ppo.ppo(model) if which == "ppo" else getattr(grpo, which)(model)
    results = {}

    def first_gradient(rows, shape, prepared):
        packing = Packing(model.mesh, shape, K, rows)
        batch = minibatch(prepared, range(SIZE), packing, weights=online.weights, room=SIZE)
        return jax.jit(lambda b: gradients(online.step, params, None, (), b)[1])(batch)

    for name, rows, shape in (
        ("all", SIZE, (64, 64)),
        ("1", 1, (64, 48)),
        ("2", 2, (128, 128)),
        ("4", 4, (32, 32)),
    ):
        state, prepared, _, _ = run_iteration(
            online, model, params, {"reference": reference}, trees, rows=rows, shape=shape, rate=0.05
        )
        results[name] = (first_gradient(rows, shape, prepared), state.params)
    gradient, after = results.pop("all")
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, after, params))
    assert 1e-3 < moved < 10
    for other_gradient, other_after in results.values():
        apart = optax.tree.norm(jax.tree.map(jnp.subtract, gradient, other_gradient))
        assert apart <= 1e-5 * optax.tree.norm(gradient)
        assert optax.tree.norm(jax.tree.map(jnp.subtract, after, other_after)) <= 1e-3 * moved
