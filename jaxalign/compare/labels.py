"""Annotations: answers of the fine-tuned model to training instructions, and what people and the judge say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxalign.compare.start import Start
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.judges.pairwise import combine_orders
from jaxalign.testbed.annotators import prefer
from jaxalign.testbed.world import Instruction


class Comparisons(NamedTuple):
    """Two answers to each of N training instructions, sampled from the fine-tuned model, and their gold rewards."""

    instructions: list[Instruction]
    trees: list[Tree]
    rewards: np.ndarray


SHOWN = ("pairs", "ceiling", "weights")
"""The settings that decide which answers annotators see."""


def comparisons(start: Start) -> Comparisons:
    """Two different answers for each comparison, under the ceiling if there is one; the same for all annotators."""
    return start.once("comparisons", SHOWN, lambda: draw(start))


def draw(start: Start) -> Comparisons:
    """The comparisons, sampled.

    Raises:
        UserError: if too few answers are under the ceiling.
    """
    random, sample, wanted = start.random("comparisons"), start.sampler(2), start.setting.pairs
    instructions: list[Instruction] = []
    trees: list[Tree] = []
    rewards: list[list[float]] = []
    for attempt in range(20):
        drawn = [start.world.train[int(i)] for i in random.integers(len(start.world.train), size=wanted)]
        key = jax.random.fold_in(jax.random.key(start.seed), attempt)
        sampled = sample(start.sft, [*map(start.prompt, drawn)], key, np.arange(wanted))
        for each, tree in zip(drawn, sampled, strict=True):
            values = [start.gold(each, answer) for answer in tree.completions]
            covered = start.setting.ceiling is None or max(values) <= start.setting.ceiling
            if covered and not np.array_equal(tree.completions[0], tree.completions[1]) and len(trees) < wanted:
                instructions.append(each)
                trees.append(Tree.of(tree.prompt, tree.completions))
                rewards.append(values)
        if len(trees) == wanted:
            return Comparisons(instructions, trees, np.array(rewards))
    raise UserError(
        f"only {len(trees)} of {wanted} comparisons could be drawn under a ceiling of {start.setting.ceiling}: raise it"
    )


def as_pairs(trees: Sequence[Tree], first: np.ndarray) -> list[Tree]:
    """The trees with the preferred answer first."""
    return [
        tree if wins else Tree.of(tree.prompt, tree.completions[::-1]) for tree, wins in zip(trees, first, strict=True)
    ]


def peoples_pairs(start: Start) -> list[Tree]:
    """The comparisons as people decide them."""
    shown = comparisons(start)
    first, second = shown.rewards.T
    wins = prefer(first, second, start.random("people"), temperature=start.setting.temperature)
    return as_pairs(shown.trees, wins)


def judges_pairs(start: Start) -> list[Tree]:
    """The comparisons as the AI judge decides them, asked in both orders; without those it contradicts itself on."""
    shown, random = comparisons(start), start.random("judge")
    one, two = shown.rewards.T
    words = [np.array([len(tree.completions[k]) - 1 for tree in shown.trees]) for k in (0, 1)]
    forth = start.setting.judge(one, two, random, words=(words[0], words[1]))
    back = start.setting.judge(two, one, random, words=(words[1], words[0]))
    verdicts = combine_orders(forth, back)
    kept = [i for i, verdict in enumerate(verdicts) if verdict in ("first", "second")]
    if not kept:
        raise UserError("the judge contradicts itself on every comparison: lower setting.judge.position")
    return as_pairs([shown.trees[i] for i in kept], np.array([verdicts[i] == "first" for i in kept]))


def thumbs(start: Start) -> list[Tree]:
    """A thumb (``label``) for the first answer of each comparison."""
    shown = comparisons(start)
    up = start.setting.thumbs(shown.rewards[:, 0], start.random("thumbs"))
    return [
        Tree.of(tree.prompt, tree.completions[:1], label=liked) for tree, liked in zip(shown.trees, up, strict=True)
    ]
