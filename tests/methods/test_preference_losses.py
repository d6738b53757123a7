"""Every wired preference loss: the plain formula on unpacked texts, whatever the cut of the batch; and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign import losses
from jaxalign.data.batches import attach
from jaxalign.data.trees import Tree, pack
from jaxalign.errors import UserError
from jaxalign.loop import gradients, place_batch
from jaxalign.methods import dpo, wirings
from jaxalign.methods.dpo import dpo as method_of
from jaxalign.models.model import Model
from jaxalign.models.sharding import make_mesh
from tests.losses.registry import PUBLIC
from tests.methods.bigrams import Bigrams, tables
from tests.plain import text_logits

BETA, MESH = 0.5, make_mesh()
HYPER = {"beta": BETA, "label_smoothing": 0.1, "gamma": 0.3, "tau": 0.2, "alpha": 0.25}
STATE = np.array([[2.0, 4.0], [-3.0, 2.0]])  # δ = (2/4 - 3/2) / 2
MPO = {losses.dpo: 0.8, losses.bco_pair: 0.2, losses.nll: 1.0}


def user_loss(pc, pr, rc, rr):
    """A loss as a user writes it: no hyper-parameter, four arrays."""
    return jnp.logaddexp(0.0, -(pc - pr - 0.5 * (rc - rr)))


def keywords(loss):
    """The hyper-parameters that a loss takes."""
    parameters = wirings.inspect.signature(loss).parameters.values()
    return {p.name: HYPER[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in HYPER}


CASES = {loss.__name__: (loss, keywords(loss), {}) for loss in wirings.WIRINGS} | {
    "sigmoid_norm": (losses.dpo, {"beta": BETA}, {"average": True}),
    "nll": (losses.nll, {}, {}),
    "mpo": (MPO, {"beta": BETA}, {}),
    "aot_and_dpo": ({losses.aot: 0.7, losses.dpo: 0.3}, {"beta": BETA}, {}),
    "user": (user_loss, {}, {}),
    "dpo_with_sft": (losses.dpo, {"beta": BETA}, {"sft": 0.4}),
    "f_dpo": (losses.dpo, {"beta": BETA, "divergence": losses.jensen_shannon}, {}),
    "ld_dpo": (losses.dpo, {"beta": BETA}, {"ld_alpha": 0.4}),
    "ld_simpo": (losses.simpo, {"beta": BETA, "gamma": 0.3}, {"ld_alpha": 0.4}),
}


def pair_trees(count, seed=0):
    """Pairs with answers of 1 to 7 tokens."""
    random = np.random.default_rng(seed)
    text = lambda: random.integers(3, 96, random.integers(1, 8))  # noqa: E731
    return [Tree.of(text(), [text(), text()]) for _ in range(count)]


def batch_of(trees, *, length=256, rows=1, order=None):
    """A step's batch in a packing of one's choice."""
    indexed = attach(trees, index=np.arange(len(trees)))
    order = range(len(trees)) if order is None else order
    return place_batch(*pack([indexed[i] for i in order], shapes=[(length, length)], rows_per_microbatch=rows), MESH)


def plain(case, policy, reference, trees):
    """The loss from its definition: each text by itself, no packing."""
    loss, options, more = CASES[case]
    table, ref_table = (jax.nn.log_softmax(t, -1) for t in (policy, reference))

    def side(table, k, average):
        sums = []
        for tree in trees:
            text = np.concatenate([tree.prompt, tree.completions[k]])
            logps = table[text[:-1], text[1:]][len(tree.prompt) - 1 :]
            shorter = min(len(c) for c in tree.completions)
            logps = jnp.where(jnp.arange(len(logps)) < shorter, logps, more.get("ld_alpha", 1.0) * logps)
            sums.append(jnp.mean(logps) if average else jnp.sum(logps))
        return jnp.stack(sums)

    total = 0.0
    sft = more.get("sft")
    added = 0.0
    for function, weight in (loss if isinstance(loss, dict) else {loss: 1.0}).items():
        if function is losses.nll:
            added += weight
            continue
        wiring = wirings.WIRINGS.get(function, wirings.Wiring())
        average = more.get("average", wiring.average)
        pair = [side(t, k, average) for t in ([table, ref_table] if wiring.reference else [table]) for k in (0, 1)]
        given = dict(options) | ({"delta": -0.5} if function is losses.bco_pair else {})
        total += weight * jnp.mean(function(*pair, **given))
        added += wiring.sft
    sft = added if sft is None else sft
    if sft:
        tokens = sum(len(tree.completions[0]) for tree in trees)
        total -= sft * jnp.sum(side(table, 0, False)) / tokens
    return total


@pytest.fixture(scope="module")
def parts():
    """A policy and a reference in float64."""
    with jax.enable_x64(True):
        yield Bigrams(), *map(jnp.asarray, tables(0, 96, -1.0))


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_those_of_the_plain_loss_whatever_the_cut(parts, case):
    """All trees in one row; two microbatches of two rows; one tree a row in another order, with empty slots."""
    model, policy, reference = parts
    loss, options, more = CASES[case]
    method = method_of(model, loss=loss, **options, **more)
    trees = pair_trees(5)
    want, slope = jax.jit(jax.value_and_grad(lambda p: plain(case, p, reference, trees)))(policy)
    size = optax.tree.norm(slope)
    assert size > 1e-3
    state = () if isinstance(method.method_state, tuple) else jnp.asarray(STATE)
    takes_reference = any(term.wiring.reference for term in wirings.wire(loss, **options)[0])
    step = jax.jit(lambda b: gradients(method, policy, reference if takes_reference else None, state, b))
    for cut in ({}, {"length": 32, "rows": 2}, {"length": 64, "order": range(4, -1, -1)}):
        (value, metrics), grads, _ = step(batch_of(trees, **cut))
        np.testing.assert_allclose(value, want, rtol=1e-10)
        assert optax.tree.norm(grads - slope) <= 1e-9 * size
        assert metrics["rewards/margins"][1] == len(trees)


def test_every_published_preference_loss_is_wired():
    """A loss whose first argument is of a chosen completion's log-probs has a row in the table."""
    for name in PUBLIC:
        function = getattr(losses, name)
        if callable(function) and not isinstance(function, type) and name != "log_ratios":
            first = next(iter(wirings.inspect.signature(function).parameters), "")
            assert (function in wirings.WIRINGS) == first.startswith("policy_chosen"), name


@pytest.mark.parametrize("name", ["ld_alpha", None])
def test_cached_reference_log_probs_give_the_same(parts, name):
    model, policy, reference = parts
    trees = pair_trees(4)
    more = {} if name is None else {name: 0.4}
    method = method_of(model, beta=BETA, **more)
    live = batch_of(trees)
    cached = attach(trees, ref_logps=dpo.reference_logps(model, reference, [live], **more))
    value = jax.jit(lambda f, b: gradients(method, policy, f, (), b)[0][0])
    np.testing.assert_allclose(value(None, batch_of(cached)), value(reference, live), rtol=1e-6)


@pytest.mark.thorough
def test_wpo_weighs_each_pair(tiny_config):
    """The weights of losses.wpo_weights, from a real model, without gradient."""
    model = Model(tiny_config, remat="none")
    policy = model.init(jax.random.key(0))
    reference = jax.tree.map(lambda p: 0.8 * p, policy)
    trees = pair_trees(3)

    def weights(params, k):
        values = []
        texts = [np.concatenate([tree.prompt, tree.completions[k]]) for tree in trees]
        for tree, logits in zip(trees, text_logits(model, params, texts), strict=True):
            table = jax.nn.log_softmax(logits, -1)[len(tree.prompt) - 1 : -1]
            answer = tree.completions[k]
            mask = jnp.ones(len(answer), bool)
            squares = jax.nn.logsumexp(2 * table, axis=-1)
            values.append(losses.wpo_weights(table[jnp.arange(len(answer)), answer], mask, squares))
        return jnp.stack(values)

    both = jax.device_get(weights(policy, 0) * weights(policy, 1))

    def custom(pc, pr, rc, rr):
        return losses.dpo(pc, pr, rc, rr, beta=BETA) * both[order].astype(np.float32)

    batch = batch_of(trees)  # one row
    order = np.asarray(batch.rows.extras["index"])[0, 0, : len(trees), 0]  # packing sorts the pairs by length
    step = jax.jit(lambda method, b: gradients(method, policy, reference, (), b), static_argnums=0)
    (value, _), grads, _ = step(method_of(model, beta=BETA, wpo=True), batch)

    def padded(pc, pr, rc, rr):
        used = [x[..., : len(trees)] for x in (pc, pr, rc, rr)]
        return jnp.zeros_like(pc).at[..., : len(trees)].set(custom(*used))

    (want, _), slope, _ = step(method_of(model, loss=padded), batch)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert optax.tree.norm(jax.tree.map(jnp.subtract, grads, slope)) <= 1e-4 * optax.tree.norm(slope)


def test_the_running_delta_of_bco_is_the_method_state(parts):
    model, policy, reference = parts
    method = method_of(model, loss=losses.bco_pair, beta=BETA)
    batch = batch_of(pair_trees(4))
    (_, metrics), _, state = jax.jit(lambda b: gradients(method, policy, reference, method.method_state, b))(batch)
    assert metrics["delta"][0] == 0
    np.testing.assert_allclose(state[0, 0], metrics["rewards/chosen"][0], rtol=1e-6)
    np.testing.assert_allclose(state[:, 1], 4)
    assert method_of(model, loss=losses.bco_pair, beta=BETA, delta=0.0).method_state == ()


def test_metrics_of_ones_own_are_given_the_arrays_of_the_loss(parts):
    model, policy, reference = parts

    def metrics(arrays):
        assert {"pc", "policy_chosen_logps", "rr", "reference_rejected_logps", "mask"} <= arrays.keys()
        used = arrays["mask"]
        return {"gap": (jnp.sum(jnp.where(used, arrays["pc"] - arrays["pr"], 0)), jnp.sum(used))}

    method = method_of(model, loss=user_loss, metrics=metrics)
    (_, measured), _, _ = gradients(method, policy, reference, (), batch_of(pair_trees(4)))
    np.testing.assert_allclose(measured["gap"][0], measured["logps/chosen"][0] - measured["logps/rejected"][0])
    assert measured["gap"][1] == 4
    names = []
    free = method_of(model, loss=losses.simpo, beta=1.0, gamma=0.1, metrics=lambda arrays: names.extend(arrays) or {})
    gradients(free, policy, None, (), batch_of(pair_trees(2)))
    assert {"policy_chosen_avg_logps", "policy_rejected_avg_logps"} <= set(names)
    assert "reference_chosen_logps" not in names


@pytest.mark.parametrize(
    ("loss", "options", "fragment"),
    [
        (losses.kto, {"beta": 1.0}, "loss=kto is not a loss of pairs"),
        (losses.ppo_clip, {}, "loss=ppo_clip is not a loss of pairs"),
        (losses.simpo, {"beta": 1.0}, "loss=simpo needs a value of gamma"),
        (losses.dpo, {}, "loss=dpo needs a value of beta"),
        (losses.dpo, {"beta": 1.0, "gamma": 1.0}, "loss=dpo does not take gamma"),
        (losses.orpo, {"beta": 1.0}, "loss=orpo does not take beta"),
        (lambda logps: logps, {}, "Give a loss that takes 4"),
        (losses.aot, {"beta": 1.0, "wpo": True}, "loss=aot sorts the batch"),
        (losses.ipo, {"beta": 1.0, "soft_labels": True}, "loss=ipo does not take label_smoothing"),
        (losses.nll, {"wpo": True, "ld_alpha": 0.5}, "loss=nll does not use wpo and ld_alpha"),
        (functools.partial(losses.dpo, beta=1.0), {"tau": 1.0}, "loss=dpo does not take tau"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused_when_the_method_is_built(loss, options, fragment):
    with pytest.raises(UserError, match=fragment):
        method_of(Bigrams(), loss=loss, **options)


def test_a_missing_reference_is_refused(parts):
    model, policy, _ = parts
    with pytest.raises(UserError, match="needs a reference"):
        gradients(method_of(model, beta=BETA), policy, None, (), batch_of(pair_trees(2)))
