"""Iterations of online methods: stop and resume bitwise, scoring during sampling, mistakes, early stops, pairs."""

import dataclasses
import functools
import itertools
import threading

import jax
import numpy as np
import pytest

from jaxalign.checkpoint import Checkpoints
from jaxalign.data.trees import Packed, Tree
from jaxalign.errors import UserError
from jaxalign.methods import best_of_n, experience, online_dpo, rollouts
from jaxalign.methods.collect import Collector, informative, model_scorer, prompt_indices, text_scorer
from jaxalign.methods.reward import from_language_model
from jaxalign.models.params import moving_average
from tests.methods import online_task as task
from tests.packing import unpack
from tests.test_loop import as_numpy


class Letters:
    """A tokenizer whose text is the ids."""

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(str(int(i)) for i in ids if not (skip_special_tokens and i == task.END))


def refresh(reference, params, iteration):
    policy = params.get("policy", params)
    return moving_average(reference, policy, iteration, rate=0.1)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["ppo", "online_dpo"])
def test_resume_between_iterations_is_bitwise(name, tmp_path):
    """Controller, running scores, a moving reference, keys, the order of prompts: all of it is in the state."""
    options = {"target": 1.0} if name == "ppo" else {}
    again = functools.partial(task.run, name, 0, refresh=refresh, live=True, **options)
    whole = []
    for done in again(4):
        whole.append((as_numpy(done.state), done.metrics, [tree.prompt for tree in done.trees]))
    with Checkpoints(tmp_path) as checkpoints:
        *_, done = again(2)
        checkpoints.save(done.state, position=2)
    with Checkpoints(tmp_path) as checkpoints:
        other = task.start(name, 1, reference=task.MODEL.init(jax.random.key(3)), **options)
        state, position = checkpoints.restore(other)
    assert position == int(state.method_state.iteration) == 2
    for number, done in enumerate(again(4, state=state), start=2):
        want, metrics, prompts = whole[number]
        jax.tree.map(np.testing.assert_array_equal, as_numpy(done.state), want)
        assert done.metrics == metrics
        jax.tree.map(np.testing.assert_array_equal, [tree.prompt for tree in done.trees], prompts)
    assert number == 3
    assert whole[0][2][0].tolist() != whole[1][2][0].tolist()
    if name == "ppo":
        assert whole[0][0].method_state.kl.beta != whole[3][0].method_state.kl.beta
        assert whole[3][0].method_state.scores.number == 4 * 128


def collector(scorer, **options):
    random = np.random.default_rng(0)

    def sample(params, prompts, key, ids):
        texts = [[random.integers(3, 16, 2).astype(np.int32) for _ in range(2)] for _ in prompts]
        return [Tree.of(p, t, finished=[True, True]) for p, t in zip(prompts, texts, strict=True)]

    rows = [{"number": i} for i in range(12)]
    return Collector(sample, {"mine": (2.0, scorer)}, task.PROMPTS[:12], rows, 6, **options)


def test_rewards_are_computed_while_the_next_chunk_is_sampled():
    sampled_again, order = threading.Event(), []

    def slow(prompts, completions, rows):
        first = not order
        order.append([row["number"] for row in rows])
        if first:
            assert sampled_again.wait(20), "the second chunk was not sampled while the first was scored"
        return [len(c) for c in completions]

    made = collector(text_scorer(slow, Letters()), chunk_size=3)
    sample = made.sampler

    def watched(params, prompts, key, ids):
        if ids[0] == 3:
            sampled_again.set()
        return sample(params, prompts, key, ids)

    collected = dataclasses.replace(made, sampler=watched)(None, 0, jax.random.key(0))
    for tree in collected.trees:
        texts = [Letters().decode(c) for c in tree.completions]
        np.testing.assert_array_equal(tree.extras["scores"], [2.0 * len(text) for text in texts])
    drawn = prompt_indices(12, 6, 0, 0)
    assert sorted(n for part in order for n in part) == sorted(np.repeat(drawn, 2).tolist())


@pytest.mark.parametrize("what", ["nan", "raise"])
def test_a_reward_that_fails_names_the_row(what):
    def bad(prompts, completions, rows):
        if what == "raise":
            raise RuntimeError("no network")
        return [float("nan") if i == 3 else 1.0 for i in range(len(completions))]

    words = "row 4 .*the score is nan" if what == "nan" else "raised RuntimeError: no network"
    with pytest.raises(UserError, match=words):
        collector(text_scorer(bad, Letters(), name="mine"))(None, 0, jax.random.key(0))
    broken = lambda trees, rows: np.where(np.arange(len(trees)) == 2, np.inf, 0)[:, None] * np.ones((1, 2))  # noqa: E731
    with pytest.raises(UserError, match=f"prompt {prompt_indices(12, 6, 0, 0)[2] + 1} is not finite"):
        collector(broken)(None, 0, jax.random.key(0))


def test_prompts_come_by_epochs_in_new_orders():
    epochs = [np.concatenate([prompt_indices(12, 5, 3, i) for i in range(12)])[e * 12 : e * 12 + 12] for e in range(5)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 5


def test_dynamic_sampling_tries_further_prompts_for_groups_that_differ():
    def score(trees, rows):
        return np.array([[row["number"] % 3 == 0, 0.0] for row in rows])

    collected = collector(score, keep=informative, rounds=3)(None, 0, jax.random.key(0))
    assert 4 <= len(collected.trees) <= 6
    assert all(np.ptp(tree.extras["scores"]) > 0 for tree in collected.trees)
    assert 0.2 < collected.metrics["rewards/kept"] < 0.5
    none = collector(lambda trees, rows: np.zeros((len(trees), 2)), keep=informative, rounds=2)
    assert len(none(None, 0, jax.random.key(0)).trees) == 6


def test_scores_of_a_reward_model_are_those_of_its_head():
    model, params = from_language_model(task.MODEL, task.MODEL.init(jax.random.key(0)), jax.random.key(1))
    trees = list(collector(None).sampler(None, task.PROMPTS[:4], None, None))
    packing = rollouts.Packing(model.mesh, (32, 32), 2)
    on_host = jax.device_get(params)
    got = model_scorer(model, on_host, packing.batch, size=6)(trees, [{}] * 4)
    for tree, scores in zip(trees, got, strict=True):
        for completion, score in zip(tree.completions, scores, strict=True):
            one = rollouts.Packing(model.mesh, (32, 32), 1).batch([Tree.of(tree.prompt, [completion])])
            want = model.scores(params, jax.tree.map(lambda x: x[0], one.rows))[0, 0, 0, 0]
            np.testing.assert_allclose(score, want, rtol=1e-5, atol=1e-6)


def test_sampled_completions_know_whether_they_ended():
    trees = task.sampler(3)(task.MODEL.init(jax.random.key(0)), task.PROMPTS[:40], jax.random.key(0), np.arange(40))
    ended = [c[-1] == task.END for tree in trees for c in tree.completions]
    assert np.concatenate([tree.extras["finished"] for tree in trees]).tolist() == ended
    assert 0 < np.mean(ended) < 1
    assert all(len(c) == task.LENGTH or c[-1] == task.END for tree in trees for c in tree.completions)


@pytest.mark.thorough
def test_epochs_end_early_where_the_policy_has_moved_too_far():
    setting, _, packing, step = task.programs("grpo")
    state = task.start("grpo", 0)
    collect = Collector(task.sampler(4), {"true": (1.0, task.score)}, task.PROMPTS, [{}] * 169, 32)
    trees = collect(state.params, 0, jax.random.key(0)).trees
    examples, method_state, _ = task.prepared("grpo", 0)(state.params, state.method_state, trees)
    both = {"step_fn": step, "packing": packing, "weights": setting.online.weights}
    both |= {"num_minibatches": 2, "size": 32, "epochs": 4}

    def steps(**options):
        fresh = dataclasses.replace(task.start("grpo", 0), method_state=jax.tree.map(lambda x: x + 0, method_state))
        return rollouts.update(fresh, examples, jax.random.key(0), **both, **options).metrics["steps"]

    assert (steps(), steps(max_kl=10.0), steps(max_kl=1e-9)) == (8, 8, 2)


def test_every_example_is_in_one_minibatch_of_an_epoch():
    parts = rollouts.minibatches(11, 4, jax.random.key(0))
    assert sorted(map(len, parts)) == [2, 3, 3, 3]
    assert sorted(np.concatenate(parts).tolist()) == list(range(11))
    assert [p.tolist() for p in parts] != [p.tolist() for p in rollouts.minibatches(11, 4, jax.random.key(1))]


@pytest.mark.parametrize(
    ("metrics", "limits", "words"),
    [
        ({"objective/kl": 11.0}, {"max_kl": 10.0}, "is 11 nats per completion .* more than 10"),
        ({"objective/kl": float("nan")}, {}, "is nan nats"),
        (
            {"policy/entropy_avg": 0.01},
            {"min_entropy": 0.1},
            "entropy is 0.01 nats per token, less than 0.1: .* collapsed",
        ),
        ({"policy/ratio_max": 90.0}, {"max_ratio": 50.0}, "changed 90-fold"),
        ({"loss": float("nan")}, {}, "The loss is not finite"),
    ],
)
def test_guards(metrics, limits, words):
    with pytest.raises(UserError, match=words):
        experience.guard(metrics, **limits)


def test_running_moments_are_those_of_everything_seen():
    values = np.random.default_rng(0).normal(3, 2, (5, 7)).astype(np.float32)
    moments = experience.init_state().scores
    for batch in values:
        moments = experience.observe(moments, batch, np.arange(7) < 5)
    seen = values[:, :5]
    np.testing.assert_allclose(moments.mean, seen.mean(), rtol=1e-6)
    np.testing.assert_allclose(experience.deviation(moments), seen.std(ddof=1), rtol=1e-5)
    shaped = experience.standardised(seen, moments)
    np.testing.assert_allclose((shaped.mean(), shaped.std(ddof=1)), (0, 1), atol=1e-5)
    same = experience.observe(experience.init_state().scores, np.full(4, 2.0), np.ones(4, bool))
    assert experience.scaled(np.float32(2.0), same) == 2.0


def test_a_pair_is_the_best_and_the_worst_of_what_was_sampled():
    """The third prompt ties and is dropped; the pairs' log-probs under the reference are those of the plain pass."""
    texts, scores = [[3, 4], [5], [6, 7, 8]], [[0.5, -1.0, 2.0], [3.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    logps = [np.zeros(len(text), np.float32) for text in texts]
    trees = [
        Tree.of([9, i], texts, token_extras={"old_logps": logps}, scores=row, finished=[True] * 3)
        for i, row in enumerate(scores, 3)
    ]
    params = task.MODEL.init(jax.random.key(0))
    packing = rollouts.Packing(task.MODEL.mesh, (64, 64), 3)
    method = online_dpo.online_dpo(task.MODEL, beta=0.1)
    prepare = rollouts.make_prepare(method, packing, size=4, length=3, frozen={"reference": params})
    examples, _, metrics = prepare(params, experience.init_state(), trees)
    assert metrics["rewards/tied"] == pytest.approx(1 / 3)
    chosen_and_rejected = [[c.tolist() for c in tree.completions] for tree in examples.trees]
    assert chosen_and_rejected == [[[6, 7, 8], [5]], [[3, 4], [5]]]
    for tree, ref_logps in zip(examples.trees, examples.inputs.ref_logps, strict=True):
        for completion, value in zip(tree.completions, ref_logps, strict=True):
            text = np.concatenate([tree.prompt, completion])
            plain = jax.nn.log_softmax(task.MODEL.logits(params, text[None])[0])
            want = sum(plain[at - 1, text[at]] for at in range(2, len(text)))
            np.testing.assert_allclose(value, want, rtol=1e-5)
    batch = rollouts.minibatch(examples, [1, 0], packing, room=2)
    order = [tree.prompt.tolist() for tree in examples.trees]
    for tree in unpack(Packed(jax.device_get(batch.rows), int(batch.used))):
        np.testing.assert_array_equal(
            tree.extras["ref_logps"], examples.inputs.ref_logps[order.index(tree.prompt.tolist())]
        )


def test_rows_and_rectangles_convert_both_ways():
    """The picture at the top of ``rollouts``: the values a to g, in two examples of two completions."""
    trees = [Tree.of([9], [[1, 1], [2]]), Tree.of([9, 9], [[4], [3, 3, 3]])]
    packed, _ = rollouts.Packing(task.MODEL.mesh, (16, 16), 2).pack(rollouts.number_places(trees, 3))
    np.testing.assert_array_equal(packed.extras["token"][0, 0, :7], [6, 9, 10, 11, 0, 1, 3])
    rectangle = rollouts.rows_to_rectangle(packed, packed.target, (3, 2, 3))
    assert rectangle.tolist() == [[[1, 1, 0], [2, 0, 0]], [[4, 0, 0], [3, 3, 3]], [[0] * 3] * 2]
    np.testing.assert_array_equal(rollouts.rectangle_to_rows(packed, rectangle), packed.target)
    completions = rollouts.rows_to_rectangle(packed, packed.last, (2, 2, 3))
    np.testing.assert_array_equal(rollouts.rectangle_to_rows(packed, completions), packed.last)


def test_best_of_n():
    random = np.random.default_rng(0)
    scores = random.normal(size=(3, 9))
    trees = [Tree.of([3], [[4 + k] for k in range(9)], scores=row) for row in scores]
    chosen = best_of_n.best_of(trees, 4)
    assert [int(t.completions[0][0]) - 4 for t in chosen] == scores[:, :4].argmax(1).tolist()
    subsets = [max(row[list(pick)]) for row in scores[:1] for pick in itertools.combinations(range(9), 3)]
    np.testing.assert_allclose(best_of_n.expected_best(scores[:1], 3), np.mean(subsets))
    with pytest.raises(ValueError, match="Best of 12 needs 12"):
        best_of_n.best_of(trees, 12)
