"""Annotations: answers of the fine-tuned model to training instructions, labelled by people and by the AI judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxalign.compare.start import Start
from jaxalign.data.batches import attach
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.judges.pairwise import combine_orders
from jaxalign.testbed.annotators import prefer

# The settings on which the comparisons depend.
COMPARISON_SETTINGS = ("pairs", "ceiling", "weights")


class Comparisons(NamedTuple):
    """Two sampled answers to each of N training instructions, and their gold rewards ``[N, 2]``."""

    trees: list[Tree]
    rewards: np.ndarray


def comparisons(start: Start) -> Comparisons:
    """Returns the comparisons, which all annotators share."""
    return start.cached("comparisons", COMPARISON_SETTINGS, draw_comparisons)


def draw_comparisons(start: Start) -> Comparisons:
    """Samples two different answers of the fine-tuned model for each comparison, both at or below the ceiling.

    Raises:
        UserError: If 20 rounds do not give enough comparisons.
    """
    random, sample, count = start.random("comparisons"), start.sampler(2), start.setting.pairs
    trees: list[Tree] = []
    rewards: list[list[float]] = []
    for attempt in range(20):
        drawn = [start.world.train[int(i)] for i in random.integers(len(start.world.train), size=count)]
        key = jax.random.fold_in(jax.random.key(start.seed), attempt)
        sampled = sample(start.sft, [*map(start.prompt, drawn)], key, np.arange(count))
        for instruction, tree in zip(drawn, sampled, strict=True):
            values = [start.gold(instruction, answer) for answer in tree.completions]
            is_covered = start.setting.ceiling is None or max(values) <= start.setting.ceiling
            if is_covered and not np.array_equal(tree.completions[0], tree.completions[1]):
                trees.append(Tree.of(tree.prompt, tree.completions))
                rewards.append(values)
        if len(trees) >= count:
            return Comparisons(trees[:count], np.array(rewards[:count]))
    raise UserError(
        f"Only {len(trees)} of {count} comparisons have two different answers at or below the ceiling "
        f"({start.setting.ceiling}). Raise the ceiling."
    )


def pairs_by_people(start: Start) -> list[Tree]:
    """Returns the comparisons with the answer first that people prefer."""
    trees, rewards = comparisons(start)
    wins = prefer(rewards[:, 0], rewards[:, 1], start.random("people"), temperature=start.setting.temperature)
    return _preferred_first(trees, wins)


def pairs_by_judge(start: Start) -> list[Tree]:
    """Returns the comparisons with the answer first that the AI judge prefers.

    The judge sees both orders. Comparisons on which it contradicts itself are omitted.

    Raises:
        UserError: If these are all comparisons.
    """
    (trees, rewards), judge, random = comparisons(start), start.setting.judge, start.random("judge")
    one, two = rewards.T
    words = [np.array([len(tree.completions[k]) - 1 for tree in trees]) for k in (0, 1)]
    verdicts = combine_orders(
        judge(one, two, random, words=(words[0], words[1])), judge(two, one, random, words=(words[1], words[0]))
    )
    decided = [i for i, verdict in enumerate(verdicts) if verdict in ("first", "second")]
    if not decided:
        raise UserError("The judge contradicts itself on every comparison. Lower its position bias (judge.position).")
    return _preferred_first([trees[i] for i in decided], [verdicts[i] == "first" for i in decided])


def thumbs(start: Start) -> list[Tree]:
    """Returns the first answer of each comparison with a thumb, True for up, as its ``label``."""
    trees, rewards = comparisons(start)
    return attach(
        [tree.select([0]) for tree in trees], label=start.setting.thumbs(rewards[:, 0], start.random("thumbs"))
    )


def _preferred_first(trees: Sequence[Tree], first_wins: Sequence[bool] | np.ndarray) -> list[Tree]:
    return [tree if wins else tree.select([1, 0]) for tree, wins in zip(trees, first_wins, strict=True)]
