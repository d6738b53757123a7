"""KTO, BCO and APO-zero on single completions: against a plain transcription, and whatever the cut of the batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.checkpoint import Checkpoints
from jaxalign.data.batches import attach, batches, evaluation_batches
from jaxalign.data.mismatched import Mismatched
from jaxalign.data.trees import Tree, pack
from jaxalign.errors import UserError
from jaxalign.loop import (
    OnMesh,
    gradients,
    init_state,
    make_eval,
    make_step,
    place_batch,
    run,
    sum_microbatches,
)
from jaxalign.losses.metrics import mean
from jaxalign.methods import dpo, kto
from jaxalign.methods.dpo import delta_state
from jaxalign.models import lora
from jaxalign.models.config import LoraConfig
from jaxalign.models.model import Model
from jaxalign.models.params import union
from jaxalign.models.sharding import make_mesh
from tests.methods.bigrams import Bigrams, tables, text_logps
from tests.packing import unpack

BETA, D, U = 0.5, 1.5, 0.75


def labelled_trees(count, seed=0):
    """Every prompt with two completions, side by side as unpairing leaves them; some thirds are alone."""
    random = np.random.default_rng(seed)
    text = lambda: random.integers(3, 96, random.integers(1, 8))  # noqa: E731
    trees = []
    while len(trees) < count:
        prompt = text()
        trees += [Tree.of(prompt, [text()], label=True), Tree.of(prompt, [text()], label=False)][: count - len(trees)]
    return trees


def mismatched(trees, seed=0, step=0, **options):
    return Mismatched(evaluation_batches(trees, batch_size=len(trees)), trees, trees, seed, **options)


def batch_of(trees, mesh, *, length=64, rows=1, order=None, with_mismatched=True):
    """A step's batch in a packing of one's choice, and its mismatched trees."""
    source = mismatched(trees)
    others = [source.mismatched_tree(0, i) for i in range(len(trees))]
    order = range(len(trees)) if order is None else order
    cut = {"shapes": [(length, length)], "rows_per_microbatch": rows}
    indexed = attach(trees, index=np.arange(len(trees)))
    packed = pack([indexed[i] for i in order], **cut)
    return place_batch(*packed, mesh, pack([others[i] for i in order], **cut) if with_mismatched else None), others


@pytest.fixture(scope="module")
def parts():
    """A policy and a reference that is less sure of likely texts, so that the estimate of ẑ is positive; float64."""
    with jax.enable_x64(True):
        yield Bigrams(), *map(jnp.asarray, tables(0, 96, -1.0))


def log_ratios(policy, reference, trees):
    """h of every tree, each text by itself."""
    return np.array([text_logps(policy, tree) - text_logps(reference, tree) for tree in trees])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain(name, h, liked, kl=0.0, delta=0.0):
    if name == "kto":
        return np.mean(np.where(liked, D * (1 - sigmoid(BETA * (h - kl))), U * (1 - sigmoid(BETA * (kl - h)))))
    if name == "bco":
        return np.mean(np.where(liked, -D * np.log(sigmoid(BETA * h - delta)), -U * np.log(sigmoid(delta - BETA * h))))
    return np.mean(np.where(liked, D * (1 - sigmoid(BETA * h)), U * sigmoid(BETA * h)))


METHODS = {"kto": kto.kto, "bco": kto.bco, "apo_zero_unpaired": kto.apo_zero_unpaired}


def method_of(name, model):
    return METHODS[name](model, beta=BETA, desirable_weight=D, undesirable_weight=U)


MESH = make_mesh()
STATE = np.array([[2.0, 4.0], [-3.0, 2.0]])  # δ = (2/4 - 3/2) / 2


@pytest.mark.parametrize("name", METHODS)
def test_value_and_metrics_are_those_of_the_formula(parts, name):
    model, policy, reference = parts
    trees = labelled_trees(7)
    batch, others = batch_of(trees, MESH, rows=2)
    liked = np.array([t.extras["label"][0] for t in trees])
    h, kl = log_ratios(policy, reference, trees), log_ratios(policy, reference, others)
    assert np.mean(kl) > 0.01, "the clamp must not hide the estimate"
    state = jnp.asarray(STATE)
    (loss, metrics), _, after = jax.jit(lambda b: gradients(method_of(name, model), policy, reference, state, b))(batch)
    np.testing.assert_allclose(loss, plain(name, h, liked, np.mean(kl), -0.5), rtol=1e-10)
    got = mean(metrics)
    np.testing.assert_allclose(got["rewards/chosen"], BETA * h[liked].mean(), rtol=1e-10)
    np.testing.assert_allclose(got["rewards/rejected"], BETA * h[~liked].mean(), rtol=1e-10)
    assert (metrics["logps/chosen"][1], metrics["logps/rejected"][1]) == (liked.sum(), (~liked).sum())
    if name == "kto":
        np.testing.assert_allclose(got["kl"], np.mean(kl), rtol=1e-10)
    if name == "bco":
        np.testing.assert_allclose(got["delta"], -0.5, rtol=1e-12)
        new = [[BETA * h[side].sum(), side.sum()] for side in (liked, ~liked)]
        np.testing.assert_allclose(after, 0.9 * STATE + np.array(new), rtol=1e-10)
    else:
        np.testing.assert_array_equal(after, STATE)


def test_the_mean_comes_before_the_clamp(parts):
    """A negative mean of which a part is positive: clamping first, or parts first, would not give 0."""
    model, policy, reference = parts
    trees = labelled_trees(8)
    batch, others = batch_of(trees, MESH)
    h = -log_ratios(policy, reference, others)
    assert h.mean() < 0 < h.max()
    method = kto.kto(model, beta=BETA)
    (_, metrics), _, _ = jax.jit(lambda b: gradients(method, reference, policy, (), b))(batch)  # the two swapped
    assert metrics["kl"][0] == 0


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.thorough) if n != "kto" else n for n in METHODS])
def test_the_update_does_not_depend_on_the_cut(parts, name):
    """Microbatches of 1, 2, 4 and all rows, one tree a row or several, in another order."""
    model, policy, reference = parts
    trees = labelled_trees(8)
    step = jax.jit(lambda b: gradients(method_of(name, model), policy, reference, jnp.asarray(STATE), b))
    (value, _), want, state = step(batch_of(trees, MESH, length=256, rows=1)[0])
    size = optax.tree.norm(want)
    assert size > 1e-2
    cuts = [{"length": 32, "rows": rows} for rows in (1, 2, 4, 8)] + [
        {"length": 64, "rows": 1, "order": range(7, -1, -1)}
    ]
    for cut in cuts:
        (other, _), grads, after = step(batch_of(trees, MESH, **cut)[0])
        assert abs(other - value) <= 1e-10 * abs(value)
        assert optax.tree.norm(jax.tree.map(jnp.subtract, grads, want)) <= 1e-10 * size
        np.testing.assert_allclose(after, state, rtol=1e-10)


def test_the_baseline_has_no_gradient(parts):
    """The slope along a direction is that of the formula with ẑ held at its value (central differences)."""
    model, policy, reference = parts
    trees = labelled_trees(4)
    batch, others = batch_of(trees, MESH)
    kl = log_ratios(policy, reference, others).mean()
    assert kl > 0
    liked = np.array([t.extras["label"][0] for t in trees])
    direction = np.random.default_rng(3).normal(size=policy.shape)
    value = lambda step: plain("kto", log_ratios(policy + step * direction, reference, trees), liked, kl)  # noqa: E731
    want = (value(1e-5) - value(-1e-5)) / 2e-5
    _, got, _ = jax.jit(lambda b: gradients(method_of("kto", model), policy, reference, (), b))(batch)
    np.testing.assert_allclose(np.sum(np.asarray(got) * direction), want, rtol=1e-7)
    assert abs(want) > 1e-3


@pytest.mark.thorough
def test_a_real_model_too(tiny_config):
    """One that attends: the update is the same for one tree a row and for all of them in one."""
    model = Model(dataclasses.replace(tiny_config, num_hidden_layers=1), remat="none")
    policy = model.init(jax.random.key(0))
    reference = jax.tree.map(lambda p: 1.2 * p, policy)
    step = jax.jit(lambda b: gradients(method_of("kto", model), policy, reference, (), b))
    trees = labelled_trees(6)
    (value, metrics), want, _ = step(batch_of(trees, MESH, length=128)[0])
    (other, _), grads, _ = step(batch_of(trees, MESH, length=32, rows=2)[0])
    assert metrics["kl"][0] > 0
    np.testing.assert_allclose(other, value, rtol=1e-5)
    size = optax.tree.norm(want)
    assert optax.tree.norm(jax.tree.map(jnp.subtract, grads, want)) <= 1e-5 * size
    assert size > 1e-3


def test_cached_and_live_references_and_the_base_of_adapters_agree(parts):
    model, policy, reference = parts
    trees = labelled_trees(6)
    live, _ = batch_of(trees, MESH)
    cached, _ = batch_of(attach(trees, ref_logps=dpo.reference_logps(model, reference, [live])), MESH)
    value = lambda m, p, f, b: gradients(m, p, f, (), b)[0][0]  # noqa: E731
    method = method_of("kto", model)
    # Cached log-probs are float32, as a data file holds them.
    np.testing.assert_allclose(
        value(method, policy, reference, cached), value(method, policy, reference, live), rtol=1e-6
    )
    with pytest.raises(ValueError, match="needs a reference"):
        value(method, policy, None, cached)
    np.testing.assert_allclose(
        value(method_of("apo_zero_unpaired", model), policy, None, cached),
        value(method_of("apo_zero_unpaired", model), policy, reference, live),
        rtol=1e-6,
    )


def test_the_base_of_adapters_is_the_reference(tiny_config):
    model = Model(dataclasses.replace(tiny_config, num_hidden_layers=1), remat="none")
    reference = model.init(jax.random.key(0))
    adapted = dataclasses.replace(model, lora=LoraConfig(4, 8.0))
    adapters = jax.tree.map(lambda x: x + 0.05, lora.init(adapted, jax.random.key(2)))
    whole = union(adapters, reference)
    merged = lora.merge(adapted, whole)[1]
    batch, _ = batch_of(labelled_trees(6), MESH)

    @functools.partial(jax.jit, static_argnums=0)
    def value(model, params, frozen, batch):
        method = method_of("kto", model)
        prepared, _ = method.prepare(params, frozen, (), batch)
        return sum_microbatches(lambda rows: method.loss(params, rows)[0], prepared)

    adapted_loss = value(adapted, whole, None, batch)
    np.testing.assert_allclose(adapted_loss, value(model, merged, reference, batch), rtol=1e-5)
    assert abs(adapted_loss - value(model, reference, reference, batch)) > 1e-3


def test_a_batch_without_mismatched_completions_is_refused(parts):
    model, policy, reference = parts
    batch, _ = batch_of(labelled_trees(4), MESH, with_mismatched=False)
    with pytest.raises(ValueError, match="no mismatched completions"):
        gradients(kto.kto(model, beta=BETA), policy, reference, (), batch)


def test_mismatched_completions_are_never_of_the_same_prompt():
    trees = labelled_trees(9)
    # One prompt has all but one of the others' places: a draw of another row would take it nearly always.
    trees += [Tree.of([5, 6], [[7, i]], label=True) for i in range(10, 40)]
    owners = {}
    for tree in trees:
        owners.setdefault(tree.completions[0].tobytes(), set()).add(tree.prompt.tobytes())
    dataset = Mismatched(batches(trees, batch_size=8, seed=3), trees, trees, seed=3)
    drawn = set()
    for step in range(40):
        rows, _, others = dataset[step]
        assert others.rows.tokens.shape[:2] == rows.tokens.shape[:2]
        own = sorted(tree.prompt.tobytes() for tree in unpack(dataset.batches[step]))
        others = unpack(others)
        assert sorted(tree.prompt.tobytes() for tree in others) == own
        for tree in others:
            assert tree.prompt.tobytes() not in owners[tree.completions[0].tobytes()]
            drawn.add(tree.completions[0].tobytes())
    assert len(drawn) > 30, "from all of the pool"


def test_draws_are_by_seed_step_and_example_alone():
    trees = labelled_trees(20)
    make = lambda size, seed=0, **options: Mismatched(  # noqa: E731
        batches(trees, batch_size=4, seed=0, shapes=[(size, size)], **options), trees, trees, seed
    )
    texts = lambda dataset, step: sorted(t.completions[0].tobytes() for t in unpack(dataset[step].mismatched))  # noqa: E731
    for step in (0, 7):
        assert texts(make(32), step) == texts(make(32), step) == texts(make(128, rows_per_microbatch=4), step)
    assert texts(make(32), 0) != texts(make(32, seed=1), 0)
    source = mismatched(trees)
    assert any(
        not np.array_equal(source.mismatched_tree(0, i).completions[0], source.mismatched_tree(1, i).completions[0])
        for i in range(20)
    )
    fixed = mismatched(trees, by_step=False)
    assert all(
        np.array_equal(fixed.mismatched_tree(0, i).completions[0], fixed.mismatched_tree(5, i).completions[0])
        for i in range(20)
    )


def test_a_mismatched_text_is_cut_to_the_longest_example_and_keeps_what_all_prompts_begin_with():
    prompts = [[1, *range(10, 30)], [1, 40]]
    trees = [Tree.of(prompts[0], [[50]]), Tree.of(prompts[1], [list(range(60, 80))])]  # both of 22 tokens
    tree = mismatched(trees).mismatched_tree(0, 0)
    assert tree.prompt.tolist() == [1, *range(20, 30)]
    assert tree.completions[0].tolist() == list(range(60, 71))
    assert len(tree) == 22


def test_one_prompt_alone_is_an_error():
    trees = [Tree.of([5, 6], [[7, i]], label=True) for i in range(4)]
    with pytest.raises(UserError, match="all examples share one prompt"):
        mismatched(trees)
    # Completions of others do: a held-out part of one prompt can draw from the training examples.
    other = labelled_trees(4)
    tree = Mismatched(evaluation_batches(trees, batch_size=4), trees, other).mismatched_tree(0, 0)
    assert tree.prompt.tolist() == [5, 6]
    # (Cut to the two tokens that the batches' own answers have.)
    assert tree.completions[0].tolist() in [t.completions[0].tolist()[:2] for t in other]


def test_balanced_weights_bring_the_ratio_into_the_bound():
    for liked, others in [(1, 9), (9, 1), (500, 501), (4, 3), (5, 3), (100, 100)]:
        first, second = kto.balanced_weights(liked, others)
        assert 1 <= first * liked / (second * others) * (1 + 1e-12) <= 4 / 3 + 1e-9
        assert min(first, second) == 1
    with pytest.raises(ValueError, match="There must be some of both"):
        kto.balanced_weights(3, 0)


def test_implicit_rewards_come_in_the_order_of_the_examples(parts):
    model, policy, reference = parts
    trees = labelled_trees(5)
    on_mesh = OnMesh(evaluation_batches(trees, batch_size=2, shapes=[(64, 64)]), MESH)
    want = BETA * log_ratios(policy, reference, trees)
    got = dpo.implicit_rewards(model, policy, on_mesh, beta=BETA, frozen=reference)[:, 0]
    np.testing.assert_allclose(got, want, rtol=1e-9)
    cached = attach(trees, ref_logps=dpo.reference_logps(model, reference, on_mesh))
    again = OnMesh(evaluation_batches(cached, batch_size=3, shapes=[(64, 64)]), MESH)
    np.testing.assert_allclose(dpo.implicit_rewards(model, policy, again, beta=BETA)[:, 0], want, rtol=1e-5)


STEPS = 4


def test_bco_resumes_with_its_baseline(parts, tmp_path):
    """Stopped and resumed, bitwise. A baseline that started at zero again would change the next step."""
    model, start, reference = parts
    optimizer = optax.adam(1e-2)
    trees = labelled_trees(12)
    on_mesh = OnMesh(batches(trees, batch_size=4, shapes=[(64, 64)]), MESH)

    def fresh(state):
        return init_state(jnp.copy(start), optimizer, jax.random.key(7), method_state=state)

    method = kto.bco(model, beta=BETA)
    step = make_step(method, optimizer, fresh(delta_state()), frozen=reference)
    seen = []
    for state, metrics in run(step, fresh(delta_state()), on_mesh, steps=STEPS):
        seen.append((jax.device_get(metrics), np.asarray(state.method_state)))
    assert seen[0][0]["delta"] == 0
    assert len({float(metrics["delta"]) for metrics, _ in seen}) == STEPS
    with Checkpoints(tmp_path) as checkpoints:
        for _ in run(step, fresh(delta_state()), on_mesh, steps=2, checkpoints=checkpoints):
            pass
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(fresh(delta_state()))
    np.testing.assert_array_equal(restored.method_state, seen[1][1])
    for (state, metrics), (want, method_state) in zip(run(step, restored, on_mesh, steps=STEPS), seen[2:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(metrics), want)
        np.testing.assert_array_equal(state.method_state, method_state)
    # In evaluation δ is what training left, however the examples are cut.
    evaluate = make_eval(method, frozen=reference)
    cut = lambda size: OnMesh(evaluation_batches(trees, batch_size=size, shapes=[(64, 64)]), MESH)  # noqa: E731
    metrics = [evaluate(state.params, state.method_state, cut(size)) for size in (3, 12)]
    for name, value in metrics[0].items():
        np.testing.assert_allclose(metrics[1][name], value, rtol=1e-5)
    sums = np.asarray(state.method_state)
    np.testing.assert_allclose(metrics[0]["delta"], np.mean(sums[:, 0] / sums[:, 1]), rtol=1e-6)
