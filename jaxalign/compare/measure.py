"""Measurements of a policy of the testbed on held-out instructions: what it gained, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.compare.methods import REWARD_SETTINGS, reward_model
from jaxalign.compare.start import Curve, Start, Trained
from jaxalign.data.trees import Tree
from jaxalign.evals.outcome import Estimate, Outcome
from jaxalign.evals.preference import length_controlled_win_rate, wins_of_scores
from jaxalign.loop import OnMesh
from jaxalign.losses import best_of_n_kl
from jaxalign.methods.best_of_n import expected_best
from jaxalign.methods.dpo import reference_logps
from jaxalign.methods.reward import completion_scores
from jaxalign.stats import Bootstrap
from jaxalign.testbed import learner
from jaxalign.testbed.gold import Content, Gold, gold, read
from jaxalign.testbed.world import Instruction

# Answers sampled for each held-out instruction.
ANSWERS = 8
# Answers of the fine-tuned model sampled for each held-out instruction, from which best-of-n chooses.
CANDIDATES = 64
# Texts whose perplexity is measured. They are drawn as the corpus was, which contains most of them.
CORPUS_TEXTS = 256


class Answers(NamedTuple):
    """K answers to each of N instructions.

    Attributes:
        instructions: The N instructions.
        trees: A tree of K completions for each instruction.
        texts: The completions as text.
        gold: The parts of their gold rewards, each ``[N, K]``.
        content: Counts of what they contain, each ``[N, K]``.
    """

    instructions: Sequence[Instruction]
    trees: list[Tree]
    texts: list[list[str]]
    gold: Gold[np.ndarray]
    content: Content[np.ndarray]

    def indices(self, kind: str) -> list[int]:
        """Returns the indices of the instructions of a kind."""
        return [i for i, instruction in enumerate(self.instructions) if instruction.kind == kind]


def sample_answers(start: Start, trained: Trained) -> Answers:
    """Samples answers to the held-out instructions; for best-of-n the best of each n candidates by the proxy."""
    if trained.best_of == 1:
        return read_answers(start, sample(start, trained.params, ANSWERS))
    trees, scores = candidates(start)
    best = [_best_of_each(row, trained.best_of) for row in scores]
    return read_answers(start, [tree.select(chosen) for tree, chosen in zip(trees, best, strict=True)])


def read_answers(start: Start, trees: list[Tree]) -> Answers:
    """Returns answers to the held-out instructions with their texts and gold rewards."""
    instructions = start.world.held_out
    texts = [[start.tokenizer.decode(c, skip_special_tokens=True) for c in tree.completions] for tree in trees]
    rows = [*zip(instructions, texts, strict=True)]
    rewards = np.array([[gold(item, text, start.setting.weights) for text in row] for item, row in rows])
    counts = np.array([[read(item, text) for text in row] for item, row in rows])
    return Answers(
        instructions, trees, texts, Gold(*np.moveaxis(rewards, 2, 0).copy()), Content(*np.moveaxis(counts, 2, 0))
    )


def sample(start: Start, params: Any, count: int) -> list[Tree]:
    """Samples answers to each held-out instruction. The random numbers depend on ``count``, not on the policy."""
    held_out = start.world.held_out
    key = jax.random.fold_in(jax.random.key(10_000 + start.seed), count)
    return start.sampler(count)(params, [*map(start.prompt, held_out)], key, np.arange(len(held_out)))


def candidates(start: Start) -> tuple[list[Tree], np.ndarray]:
    """Returns the candidates of best-of-n with the proxy's scores, ``[N, CANDIDATES]``."""
    trees = start.cached("candidates", (), lambda start: sample(start, start.sft, CANDIDATES))
    return trees, start.cached("scores of candidates", REWARD_SETTINGS, lambda start: proxy_scores(start, trees))


def proxy_scores(start: Start, trees: Sequence[Tree]) -> np.ndarray:
    """Returns the reward model's scores, ``[N, K]``."""
    model, trained = reward_model(start)
    return completion_scores(model, trained.params, _singles(start, trees)).mean(axis=-1).reshape(len(trees), -1)


def logps(start: Start, params: Any, trees: Sequence[Tree]) -> np.ndarray:
    """Returns log π(completion | prompt) in nats, ``[N, K]``."""
    return reference_logps(start.model, params, _singles(start, trees)).reshape(len(trees), -1)


def _singles(start: Start, trees: Sequence[Tree]) -> OnMesh:
    """Returns batches with one completion per example, so that all measurements share one compiled program."""
    singles = [Tree.of(tree.prompt, [completion]) for tree in trees for completion in tree.completions]
    return start.batches(singles, batch_size=256)


def outcomes(start: Start, trained: Trained, baseline: Answers, answers: Answers) -> list[Outcome]:
    """Measures every figure item by item. An item is an instruction that the figure is about.

    Args:
        start: The common start.
        trained: The policy.
        baseline: The fine-tuned model's answers to the same instructions.
        answers: The policy's answers.

    Returns:
        The outcomes, one for each figure.
    """
    proxy = Outcome.mean("proxy", proxy_scores(start, answers.trees).mean(axis=1))
    return [*behaviour(baseline, answers), *alignment_tax(start, trained, answers), proxy]


def behaviour(baseline: Answers, answers: Answers) -> list[Outcome]:
    """Measures the answers: gold reward and its parts, win rate by gold, over-refusal, compliance and length."""
    results = [Outcome.mean("gold", answers.gold.total.mean(axis=1))]
    results += [Outcome.mean(part, getattr(answers.gold, part).mean(axis=1)) for part in Gold._fields[:3]]
    results.append(Outcome.mean("win_rate", wins(baseline, answers).mean(axis=(1, 2)), share=True))
    answered = answers.content.right + answers.content.wrong > 0
    refused = (answers.content.refusals > 0) & ~answered
    if harmless := answers.indices("borderline"):
        results.append(Outcome.mean("over_refusal", refused[harmless].mean(axis=1), good="less", share=True))
    if harmful := answers.indices("unsafe"):
        results.append(Outcome.mean("compliance", answered[harmful].mean(axis=1), good="less", share=True))
    return [*results, Outcome.mean("words", answers.content.words.mean(axis=1), good="neither")]


def wins(baseline: Answers, answers: Answers) -> np.ndarray:
    """Returns whether an answer has a higher gold reward than one of the baseline's, for all pairs, ``[N, K, K']``."""
    return wins_of_scores(answers.gold.total[:, :, None], baseline.gold.total[:, None, :])


def length_controlled(baseline: Answers, answers: Answers, bootstrap: Bootstrap) -> Estimate:
    """Estimates the win rate at the length of the baseline's answers."""
    lengths = np.broadcast_arrays(answers.content.words[:, :, None], baseline.content.words[:, None, :])
    return length_controlled_win_rate(wins(baseline, answers), *lengths, bootstrap=bootstrap)


def alignment_tax(start: Start, trained: Trained, answers: Answers) -> list[Outcome]:
    """Measures what the policy changed and may have lost: KL, knowledge, and perplexity of unaligned text.

    Alignment is meant to change the style of that text, so only a part of its perplexity is a loss of capability.
    """
    results = [Outcome.mean("kl", divergence(start, trained, answers), good="neither")]
    facts = [answers.instructions[i] for i in answers.indices("fact")]
    known, nats = knowledge(start, trained, facts)
    results += [Outcome.mean("knowledge", known, share=True), Outcome.mean("fact_loss", nats, good="less")]
    texts = learner.draw_corpus(start.tokenizer, start.world, CORPUS_TEXTS, start.random("texts"))
    nats, tokens = -logps(start, trained.params, texts)[:, 0], [len(tree.completions[0]) for tree in texts]
    return [*results, Outcome("perplexity", nats.astype(np.float64), np.array(tokens, np.float64), "less", np.exp)]


def divergence(start: Start, trained: Trained, answers: Answers) -> np.ndarray:
    """Estimates KL(policy ‖ fine-tuned) of an answer in nats, for each instruction.

    For a trained policy it is the mean of Σ_t k1_t over its own answers, without bias. For best-of-n it is the formula
    log n - (n - 1)/n (``losses.best_of_n_kl``), an upper bound if scores tie.
    """
    if trained.best_of > 1:
        return np.full(len(answers.trees), float(best_of_n_kl(trained.best_of)))
    return (logps(start, trained.params, answers.trees) - logps(start, start.sft, answers.trees)).mean(axis=1)


def knowledge(start: Start, trained: Trained, facts: Sequence[Instruction]) -> tuple[np.ndarray, np.ndarray]:
    """Measures whether the model knows each fact, whatever it answers.

    Returns:
        Whether the plain right answer is likelier than every wrong one; and -log of its share of the probability of
        all these answers, nats.
    """
    trees = [
        Tree.of(
            start.prompt(fact), [learner.encode_answer(start.tokenizer, text) for text in (fact.right, *fact.wrong)]
        )
        for fact in facts
    ]
    log_probs = logps(start, trained.params, trees).astype(np.float64)
    return (log_probs.argmax(axis=1) == 0).astype(float), np.logaddexp.reduce(log_probs, axis=1) - log_probs[:, 0]


def best_of_n_curve(start: Start) -> Curve:
    """Returns proxy and gold reward of the best of n by the proxy, for n = 1, 2, 4, …, CANDIDATES."""
    trees, scores = candidates(start)
    rewards = read_answers(start, trees).gold.total
    curve = Curve([], [], [])
    for n in (2**i for i in range(CANDIDATES.bit_length())):
        best = [row[_best_of_each(row_scores, n)] for row, row_scores in zip(rewards, scores, strict=True)]
        curve.kl.append(float(best_of_n_kl(n)))
        curve.proxy.append(float(expected_best(scores, n).mean()))
        curve.gold.append(float(np.mean(best)))
    return curve


def _best_of_each(scores: np.ndarray, n: int) -> np.ndarray:
    """Returns the index of the best score of each n consecutive ones; a rest of fewer than n is omitted."""
    groups = scores[: len(scores) // n * n].reshape(-1, n)
    return groups.argmax(axis=1) + n * np.arange(len(groups))


def fit_curve(kl: ArrayLike, gain: ArrayLike, *, online: bool) -> tuple[float, float]:
    """Fits Gao et al.'s curve of over-optimisation by least squares, with d = √KL.

        gain = d (α - β d) for best-of-n, d (α - β log d) for a policy gradient

    Source: Gao et al. 2022, arXiv:2210.10760, eqs. 1 and 2.

    Args:
        kl: KL from the start of the points of one or several curves, nats. Points at KL 0 are omitted.
        gain: Gold reward of the points, minus the start's.
        online: True for a policy gradient, False for best-of-n.

    Returns:
        (α, β); NaN for fewer than two points.

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


def examples(answers: Answers) -> list[dict[str, Any]]:
    """Returns the first instruction of each kind, with an answer and its gold reward."""
    first = [i for kind in ("fact", "unsafe", "borderline") for i in answers.indices(kind)[:1]]
    return [
        {
            "instruction": answers.instructions[i].text,
            "answer": (answers.texts[i][0], float(answers.gold.total[i, 0])),
        }
        for i in first
    ]
