"""A task with a known reward, five seeds: the reward model comes to its noise ceiling, its probabilities true."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from jaxalign.data.batches import batches, evaluation_batches
from jaxalign.data.trees import Tree
from jaxalign.judges.reliability import calibration
from jaxalign.loop import OnMesh, init_state, make_step, run
from jaxalign.methods import reward
from jaxalign.models.model import Model

VOCABULARY, STEPS = 16, 200

pytestmark = pytest.mark.learning


def gold(completion):
    """The known reward: 4 × the share of even tokens."""
    return 4 * np.mean(np.asarray(completion) % 2 == 0)


def labelled_pairs(count, random):
    """Pairs in the order of a Bradley-Terry annotator of the known reward, and how likely each label was."""
    trees, likely = [], []
    for _ in range(count):
        prompt, first, second = (random.integers(3, VOCABULARY, random.integers(2, 7)) for _ in range(3))
        probability = 1 / (1 + np.exp(gold(second) - gold(first)))
        if random.random() >= probability:
            first, second, probability = second, first, 1 - probability
        trees.append(Tree.of(prompt, [first, second]))
        likely.append(probability)
    return trees, np.array(likely)


@pytest.fixture(scope="module")
def outcomes(tiny_config):
    """Of each seed: (accuracy on labels, its ceiling, accuracy on the known reward, calibration)."""
    model = Model(dataclasses.replace(tiny_config, vocab_size=VOCABULARY, initializer_range=0.05))
    scorer, _ = reward.from_language_model(model, model.init(jax.random.key(0)), jax.random.key(0))
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0, 3e-3, 10, STEPS))
    step = None
    outcomes = []
    for seed in range(5):
        random = np.random.default_rng(seed)
        train, _ = labelled_pairs(128 * STEPS, random)  # each is seen once
        held, likely = labelled_pairs(2000, random)
        _, params = reward.from_language_model(model, model.init(jax.random.key(seed)), jax.random.key(100 + seed))
        state = init_state(params, optimizer, jax.random.key(seed))
        step = step or make_step(reward.pairs(scorer), optimizer, state)
        options = {"batch_size": 128, "shapes": [(64, 48)], "rows_per_microbatch": 32}
        for state, _ in run(  # noqa: B007
            step, state, OnMesh(batches(train, seed=seed, **options), scorer.mesh), steps=STEPS
        ):
            pass
        on_mesh = OnMesh(evaluation_batches(held, **options), scorer.mesh)
        scores = reward.completion_scores(scorer, state.params, on_mesh)[..., 0].astype(np.float64)
        margin = scores[:, 0] - scores[:, 1]
        true = np.array([np.subtract(*map(gold, tree.completions)) for tree in held])
        flip = np.where(np.arange(len(held)) % 2, -1, 1)
        probabilities = (1 / (1 + np.exp(-margin * flip))).tolist()
        outcomes.append(
            (
                np.mean((np.sign(margin) + 1) / 2),
                np.mean(np.maximum(likely, 1 - likely)),
                np.mean(np.sign(margin[true != 0]) == np.sign(true[true != 0])),
                calibration(probabilities, (flip > 0).astype(int)),
            )
        )
        print(
            f"seed {seed}: accuracy {outcomes[-1][0]:.3f}, ceiling {outcomes[-1][1]:.3f}, "
            f"of the known reward {outcomes[-1][2]:.3f}, "
            f"calibration error {outcomes[-1][3].ece:.3f} (by luck below {outcomes[-1][3].ece_by_luck:.3f})"
        )
    return outcomes


def test_accuracy_is_within_three_points_of_the_noise_ceiling(outcomes):
    for accuracy, ceiling, _, _ in outcomes:
        assert accuracy >= ceiling - 0.03


def test_the_order_of_the_known_reward_is_found(outcomes):
    assert min(known for _, _, known, _ in outcomes) > 0.9


def test_probabilities_are_frequencies(outcomes):
    """A perfectly calibrated model stays below ``ece_by_luck`` 19 times of 20."""
    assert sum(measured.ece <= measured.ece_by_luck for *_, measured in outcomes) >= 4
