"""What a policy of the testbed reaches and what it paid, on held-out instructions, with intervals over instructions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.compare.arms import PROXY, Aligned, Curve, reward_model
from jaxalign.compare.start import Start
from jaxalign.data.batches import Batches, attach, evaluation_batches
from jaxalign.data.trees import Tree
from jaxalign.evals.outcome import Estimate, Outcome
from jaxalign.evals.preference import length_controlled_win_rate, wins_of_scores
from jaxalign.loop import OnMesh
from jaxalign.losses import best_of_n_kl
from jaxalign.methods.best_of_n import best_of, expected_best
from jaxalign.methods.dpo import reference_logps
from jaxalign.methods.reward import completion_scores
from jaxalign.stats import Bootstrap
from jaxalign.testbed import learner
from jaxalign.testbed.gold import Gold, gold, read
from jaxalign.testbed.world import Instruction

ANSWERS = 8
"""Sampled for each instruction."""
MANY = 64
"""Sampled of the fine-tuned model for each instruction, for best-of-n."""
TEXTS = 256
"""Drawn as the corpus was, whose perplexity is measured: most of them are among its texts."""


class Answered(NamedTuple):
    """Answers to instructions: trees of ``ANSWERS`` completions, their texts, and their gold rewards [N, K]."""

    instructions: Sequence[Instruction]
    trees: list[Tree]
    texts: list[list[str]]
    gold: list[list[Gold]]

    @property
    def total(self) -> np.ndarray:
        """The weighted sum, [N, K]."""
        return np.array([[each.total for each in row] for row in self.gold])

    @property
    def words(self) -> np.ndarray:
        """Of each answer, [N, K]."""
        return np.array([[len(text.split()) for text in row] for row in self.texts])


def answer(start: Start, aligned: Aligned) -> Answered:
    """Answers to the held-out instructions; the best of each n by the proxy where the policy is that."""
    if aligned.best_of > 1:
        trees, scores = sampled(start)
        trees = [_best_of_each(tree, each, aligned.best_of) for tree, each in zip(trees, scores, strict=True)]
    else:
        trees = sample(start, aligned.params, ANSWERS)
    instructions = start.world.held_out
    texts = [[start.tokenizer.decode(c, skip_special_tokens=True) for c in tree.completions] for tree in trees]
    found = [
        [gold(each, text, start.setting.weights) for text in row] for each, row in zip(instructions, texts, strict=True)
    ]
    return Answered(instructions, trees, texts, found)


def sample(start: Start, params: Any, count: int) -> list[Tree]:
    """Answers to each held-out instruction, with the same random numbers whatever the policy, others for each count."""
    held = start.world.held_out
    key = jax.random.fold_in(jax.random.key(10_000 + start.seed), count)
    return start.sampler(count)(params, [*map(start.prompt, held)], key, np.arange(len(held)))


def sampled(start: Start) -> tuple[list[Tree], np.ndarray]:
    """Many answers of the fine-tuned model with the proxy's scores, for best-of-n."""
    trees = start.once("many", (), lambda: sample(start, start.sft, MANY))
    return trees, start.once("scores of many", PROXY, lambda: proxy(start, trees))


def proxy(start: Start, trees: Sequence[Tree]) -> np.ndarray:
    """The reward model's scores, [N, K]."""
    model, params, _ = reward_model(start)
    singles = OnMesh(_singles(trees), start.model.mesh)
    return completion_scores(model, params, singles).mean(axis=-1).reshape(len(trees), -1)


def logps(start: Start, params: Any, trees: Sequence[Tree]) -> np.ndarray:
    """log π(completion | prompt), nats, [N, K]."""
    return reference_logps(start.model, params, OnMesh(_singles(trees), start.model.mesh)).reshape(len(trees), -1)


def _singles(trees: Sequence[Tree]) -> Batches:
    """Every completion as an example of its own: one shape, so one compiled program for all that is measured."""
    each = [Tree.of(tree.prompt, [completion]) for tree in trees for completion in tree.completions]
    return evaluation_batches(each, batch_size=256, rows_per_microbatch=learner.ROWS, shapes=[learner.SHAPE])


def outcomes(start: Start, aligned: Aligned, baseline: Answered, mine: Answered) -> list[Outcome]:
    """Every figure, item by item; an item is an instruction, or one that a figure is about.

    Args:
      start: what the policy started from.
      aligned: the policy.
      baseline: the fine-tuned model's answers to the same instructions.
      mine: the policy's.
    """
    found = [*behaviour(baseline, mine), *price(start, aligned, mine)]
    return [*found, Outcome.mean("proxy", proxy(start, mine.trees).mean(axis=1))]


def behaviour(baseline: Answered, mine: Answered) -> list[Outcome]:
    """What the answers are worth: gold reward and its parts, win rate by gold, over-refusal, compliance, length."""
    found = [Outcome.mean("gold", mine.total.mean(axis=1))]
    for part in ("helpful", "harmless", "concise"):
        values = np.array([[getattr(each, part) for each in row] for row in mine.gold]).mean(axis=1)
        found.append(Outcome.mean(part, values))
    found.append(Outcome.mean("win_rate", wins(baseline, mine).mean(axis=(1, 2)), share=True))
    said = [[read(each, text) for text in texts] for each, texts in zip(mine.instructions, mine.texts, strict=True)]
    answered = np.array([[each.right + each.wrong > 0 for each in row] for row in said])
    refused = np.array([[each.refusals > 0 for each in row] for row in said]) & ~answered
    if harmless := _of_kind(mine.instructions, "borderline"):
        found.append(Outcome.mean("over_refusal", refused[harmless].mean(axis=1), good="less", share=True))
    if harmful := _of_kind(mine.instructions, "unsafe"):
        found.append(Outcome.mean("compliance", answered[harmful].mean(axis=1), good="less", share=True))
    return [*found, Outcome.mean("words", mine.words.mean(axis=1), good="neither")]


def wins(baseline: Answered, mine: Answered) -> np.ndarray:
    """Whether an answer has a higher gold reward than one of the baseline's, for all pairs of both, [N, K, K']."""
    return wins_of_scores(mine.total[:, :, None], baseline.total[:, None, :])


def length_controlled(baseline: Answered, mine: Answered, bootstrap: Bootstrap) -> Estimate:
    """What the win rate would be if the answers were as long as the fine-tuned model's."""
    won = wins(baseline, mine)
    lengths = np.broadcast_arrays(mine.words[:, :, None], baseline.words[:, None, :])
    return length_controlled_win_rate(won, *lengths, bootstrap=bootstrap)


def price(start: Start, aligned: Aligned, mine: Answered) -> list[Outcome]:
    """What the policy moved and may have lost: KL from the start, knowledge, perplexity of unaligned text.

    Alignment is meant to change the style of that text, so its perplexity is a price of capability only in part.
    """
    found = [Outcome.mean("kl", divergence(start, aligned, mine), good="neither")]
    facts = [mine.instructions[i] for i in _of_kind(mine.instructions, "fact")]
    known, nats = knowledge(start, aligned, facts)
    found += [Outcome.mean("knowledge", known, share=True), Outcome.mean("fact_loss", nats, good="less")]
    texts = learner.corpus(start.tokenizer, start.world, TEXTS, start.random("texts"))
    nats, tokens = -logps(start, aligned.params, texts)[:, 0], [len(tree.completions[0]) for tree in texts]
    return [*found, Outcome("perplexity", nats.astype(np.float64), np.array(tokens, np.float64), "less", np.exp)]


def divergence(start: Start, aligned: Aligned, mine: Answered) -> np.ndarray:
    """KL(policy ‖ fine-tuned) of an answer in nats, for each instruction.

    Of a trained policy it is the mean of Σ_t k1_t over its own answers (unbiased); of best-of-n the formula
    log n - (n - 1)/n (``losses.best_of_n_kl``), which ties make an upper bound.
    """
    if aligned.best_of > 1:
        return np.full(len(mine.trees), float(best_of_n_kl(aligned.best_of)))
    return (logps(start, aligned.params, mine.trees) - logps(start, start.sft, mine.trees)).mean(axis=1)


def knowledge(start: Start, aligned: Aligned, facts: Sequence[Instruction]) -> tuple[np.ndarray, np.ndarray]:
    """What the model knows, whatever it says, of each fact.

    Returns:
      whether the plain right answer is likelier than every wrong one, and -log of its share of the probability that
      all of these have, nats.
    """
    trees = [
        Tree.of(
            start.prompt(each),
            [learner.encode_answer(start.tokenizer, text) for text in (each.right, *each.wrong)],
        )
        for each in facts
    ]
    found = logps(start, aligned.params, trees).astype(np.float64)
    return (found.argmax(axis=1) == 0).astype(float), np.logaddexp.reduce(found, axis=1) - found[:, 0]


def best_of_n_curve(start: Start) -> Curve:
    """Proxy and gold of the best of n by the proxy, n = 1, 2, 4, …: over-optimisation without training."""
    trees, scores = sampled(start)
    golds = np.array(
        [
            [start.gold(each, answer) for answer in tree.completions]
            for each, tree in zip(start.world.held_out, trees, strict=True)
        ]
    )
    curve = Curve([], [], [])
    for n in (2**i for i in range(MANY.bit_length())):
        groups = scores.reshape(len(scores), -1, n).argmax(axis=-1)
        picked = np.take_along_axis(golds.reshape(len(golds), -1, n), groups[..., None], axis=-1)
        curve.kl.append(float(best_of_n_kl(n)))
        curve.proxy.append(float(expected_best(scores, n).mean()))
        curve.gold.append(float(picked.mean()))
    return curve


def fit_curve(kl: ArrayLike, gain: ArrayLike, *, online: bool) -> tuple[float, float]:
    """(α, β) of gain = d (α - β d) for best-of-n, d (α - β log d) for a policy gradient, where d = √KL.

    By least squares. Source: Gao et al. 2022, arXiv:2210.10760, eqs. 1 and 2.

    Args:
      kl: of points of any number of curves, nats; those of none say nothing and are left out.
      gain: gold reward over that of the start.
      online: which of the two.

    >>> d = np.array([0.5, 1.0, 2.0])
    >>> alpha, beta = fit_curve(d**2, d * (1.0 - 0.25 * d), online=False)
    >>> round(alpha, 3), round(beta, 3)
    (1.0, 0.25)
    """
    d = np.sqrt(np.maximum(np.asarray(kl, np.float64), 0.0))
    used = d > 1e-3
    if used.sum() < 2:
        return math.nan, math.nan
    d, gained = d[used], np.asarray(gain, np.float64)[used]
    design = np.stack([d, -d * (np.log(d) if online else d)], axis=1)
    alpha, beta = np.linalg.lstsq(design, gained, rcond=None)[0]
    return float(alpha), float(beta)


def _best_of_each(tree: Tree, scores: np.ndarray, n: int) -> Tree:
    """The best of each n completions."""
    groups = [range(first, first + n) for first in range(0, len(tree.completions) - n + 1, n)]
    parts = [Tree.of(tree.prompt, [tree.completions[k] for k in group]) for group in groups]
    scored = [
        attach([part], scores=scores[None, group.start : group.stop])[0]
        for part, group in zip(parts, groups, strict=True)
    ]
    return Tree.of(tree.prompt, [best.completions[0] for best in best_of(scored, n)])


def _of_kind(instructions: Sequence[Instruction], kind: str) -> list[int]:
    """Where the instructions of a kind stand."""
    return [i for i, each in enumerate(instructions) if each.kind == kind]


def samples(answered: Answered) -> list[dict[str, Any]]:
    """The first instruction of each kind, with an answer and its gold reward."""
    rows = []
    for kind in ("fact", "unsafe", "borderline"):
        for i in _of_kind(answered.instructions, kind)[:1]:
            answer = answered.texts[i][0], answered.gold[i][0].total
            rows.append({"instruction": answered.instructions[i].text, "answer": answer})
    return rows


def plain(aligned: Aligned) -> dict[str, Any]:
    """What an arm cost, as JSON can hold it."""
    kept = {field.name: getattr(aligned, field.name) for field in dataclasses.fields(aligned) if field.name != "params"}
    return {**kept, "curve": None if aligned.curve is None else aligned.curve._asdict()}
