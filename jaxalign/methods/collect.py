"""Samples completions of an iteration's prompts, and scores them with reward models, functions, or both."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxalign import rewards
from jaxalign.data.batches import attach
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.loop import Batch, per_example
from jaxalign.models.model import Model
from jaxalign.rewards import ensemble
from jaxalign.rollout import Sampling, generate, rollout_trees
from jaxalign.rollout.generate import Stop, pad_left

Scores = Float[np.ndarray, "B K"]
Row = Mapping[str, Any]
# (trees, the rows that their prompts come from) -> one score per completion, or a future of them.
Scorer = Callable[[Sequence[Tree], Sequence[Row]], "Scores | Future[Any]"]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How completions are sampled: ``sampler(params, prompts, key, ids)`` returns a tree for each prompt.

    Attributes:
        model: the policy.
        num_completions: K.
        max_new_tokens: C, the maximum number of tokens of a completion.
        ends: ids that end a completion.
        width: length that prompts are padded to, so that all share a program; by default the longest one's.
        sampling: temperature and filters. Log-probs are those of the untempered, unfiltered policy. Policy gradients
            are unbiased only if completions are sampled from that policy too.
        stop: ends completions by their text.
    """

    model: Model
    num_completions: int
    max_new_tokens: int
    ends: tuple[int, ...]
    width: int | None = None
    sampling: Sampling = Sampling()  # noqa: RUF009  # frozen
    stop: Stop | None = None

    def __call__(self, params: Any, prompts: Sequence[np.ndarray], key: Array, ids: np.ndarray) -> list[Tree]:
        """Returns a tree for each prompt; ``ids`` number the prompts in the random keys."""
        tokens, mask = pad_left(prompts, self.width or max(map(len, prompts)), len(prompts))
        rollout = jax.device_get(
            generate(
                self.model,
                params,
                tokens,
                prompt_mask=mask,
                max_new_tokens=self.max_new_tokens,
                key=key,
                eos_id=self.ends or None,
                stop=self.stop,
                num_completions=self.num_completions,
                example_ids=ids,
                **dataclasses.asdict(self.sampling),
            )
        )
        lengths = rollout.mask.sum(axis=-1)
        last = rollout.tokens[np.arange(len(lengths)), lengths - 1]
        finished = (lengths < self.max_new_tokens) | np.isin(last, self.ends)
        if self.stop is not None:
            finished |= [self.stop(t[m]) is not None for t, m in zip(rollout.tokens, rollout.mask, strict=True)]
        return rollout_trees(prompts, rollout, self.num_completions, finished=finished)


class Collected(NamedTuple):
    """An iteration's examples, with ``scores`` and ``finished`` as extras; its metrics; seconds per phase."""

    trees: list[Tree]
    metrics: dict[str, float]
    seconds: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Collector:
    """Samples and scores the prompts of an iteration: ``collector(params, iteration, key)``.

    While the completions of one chunk of prompts are scored in threads, the device samples those of the next.

    Attributes:
        sampler: (params, prompts, key, ids) -> trees.
        scorers: (weight, scorer) by name; a completion's score is the weighted sum.
        prompts: token ids.
        rows: the row of each prompt in its file, for scorers.
        batch_size: B, prompts per iteration.
        seed: seed of the order of the prompts.
        chunk_size: prompts sampled at a time; by default all.
        keep: selects the examples to learn from by their scores [B, K] (``informative``: DAPO's dynamic sampling). If
            it selects none, all are used.
        rounds: with ``keep``, sample at most this many times B prompts to get B examples.
    """

    sampler: Callable[[Any, Sequence[np.ndarray], Array, np.ndarray], list[Tree]]
    scorers: Mapping[str, tuple[float, Scorer]]
    prompts: Sequence[Any]
    rows: Sequence[Row]
    batch_size: int
    seed: int = 0
    chunk_size: int | None = None
    keep: Callable[[Scores], Bool[np.ndarray, " B"]] | None = None
    rounds: int = 1

    def __call__(self, params: Any, iteration: int, key: Array) -> Collected:
        """Returns the scored examples of an iteration."""
        selected: list[Tree] = []
        first: list[Tree] = []
        metrics: dict[str, list[float]] = {}
        seconds = {"generate": 0.0, "score": 0.0}
        for number in range(self.rounds):
            trees, components = self._round(params, iteration * self.rounds + number, number, key, seconds)
            for name, scores in components.items():
                metrics.setdefault(f"rewards/{name}", []).append(float(np.mean(scores)))
            if self.keep is None:
                selected = trees
                break
            first = first or trees
            chosen = self.keep(np.stack([tree.extras["scores"] for tree in trees]))
            metrics.setdefault("rewards/kept", []).append(float(np.mean(chosen)))
            selected += [tree for tree, is_chosen in zip(trees, chosen, strict=True) if is_chosen]
            if len(selected) >= self.batch_size:
                break
        means = {name: float(np.mean(values)) for name, values in metrics.items()}
        return Collected((selected or first)[: self.batch_size], means, seconds)

    def _round(
        self, params: Any, position: int, number: int, key: Array, seconds: dict[str, float]
    ) -> tuple[list[Tree], dict[str, Scores]]:
        """Samples and scores one set of B prompts; returns the trees with their scores, and the scores by scorer."""
        chosen = prompt_indices(len(self.prompts), self.batch_size, self.seed, position)
        size = self.chunk_size or len(chosen)
        trees: list[Tree] = []
        pending: dict[str, list[Any]] = {name: [] for name in self.scorers}
        for start in range(0, len(chosen), size):
            part = chosen[start : start + size]
            started = time.perf_counter()
            ids = number * self.batch_size + np.arange(start, start + len(part))
            new = self.sampler(params, [np.asarray(self.prompts[i]) for i in part], key, ids)
            seconds["generate"] += time.perf_counter() - started
            started = time.perf_counter()
            for name, (_, scorer) in self.scorers.items():
                pending[name].append(scorer(new, [self.rows[i] for i in part]))
            seconds["score"] += time.perf_counter() - started
            trees += new
        started = time.perf_counter()
        components = {
            name: np.concatenate([_resolve(part) for part in parts]).reshape(len(trees), -1)
            for name, parts in pending.items()
        }
        seconds["score"] += time.perf_counter() - started
        for name, scores in components.items():
            if not np.all(np.isfinite(scores)):
                bad = int(np.argmin(np.isfinite(scores).all(axis=1)))
                raise UserError(
                    f"Reward {name}: the score of prompt {int(chosen[bad]) + 1} is not finite. Check the reward."
                )
        total = sum(weight * components[name] for name, (weight, _) in self.scorers.items())
        return attach(trees, scores=total), components


def prompt_indices(count: int, batch_size: int, seed: int, iteration: int) -> np.ndarray:
    """Returns the indices of an iteration's prompts, a function of (seed, iteration). Each epoch has a new order.

    >>> both = [prompt_indices(4, 2, 0, iteration) for iteration in (0, 1)]
    >>> sorted(int(i) for part in both for i in part)
    [0, 1, 2, 3]
    """
    order = grain.MapDataset.range(count).shuffle(seed).repeat()
    return np.array([order[at] for at in range(iteration * batch_size, (iteration + 1) * batch_size)])


def model_scorer(
    model: Model,
    params: Any,
    batch: Callable[[Sequence[Tree], int], Batch],
    *,
    size: int,
    heads: Callable[[Any], Any] = ensemble.mean,
) -> Scorer:
    """Returns a scorer that runs a reward model, which must share the policy's tokenizer.

    Args:
        model: the reward model.
        params: its parameters. NumPy arrays stay on the host except during the pass.
        batch: packs trees, such as ``Packing.batch``.
        size: maximum number of trees at a time.
        heads: combines the model's M scores into one.
    """

    def score(trees: Sequence[Tree], rows: Sequence[Row]) -> Scores:
        del rows
        packed = batch(attach(trees, index=np.arange(len(trees))), size)
        return np.asarray(heads(per_example(Model.scores, model, params, [packed])))

    return score


def text_scorer(
    reward: rewards.Reward, tokenizer: Any, *, name: str | None = None, executor: Executor | None = None
) -> Scorer:
    """Returns a scorer that calls a function of texts (see ``jaxalign.rewards``) in threads while the device works.

    Special tokens are omitted from completions, but not from prompts.
    """

    def score(trees: Sequence[Tree], rows: Sequence[Row]) -> Future[Any]:
        texts = [
            (tokenizer.decode(tree.prompt), tokenizer.decode(c, skip_special_tokens=True), row)
            for tree, row in zip(trees, rows, strict=True)
            for c in tree.completions
        ]
        prompts, completions, repeated_rows = map(list, zip(*texts, strict=True))
        return rewards.submit(reward, prompts, completions, repeated_rows, name=name, executor=executor)

    return score


def informative(scores: Scores) -> Bool[np.ndarray, " B"]:
    """Returns whether the scores of each group differ (DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 11).

    A group of equal scores has no advantage, and therefore no gradient.

    >>> informative(np.array([[0.0, 1.0], [1.0, 1.0]]))
    array([ True, False])
    """
    return np.ptp(scores, axis=1) > 0


def overlong_penalty(max_new_tokens: int, *, cache: int) -> Scorer:
    """Returns a scorer that penalises long completions (DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 13).

    The score is 0 up to C - cache tokens, and falls linearly to -1 at C tokens.

    >>> penalty = overlong_penalty(8, cache=4)
    >>> penalty([Tree.of([1], [[2] * 4, [2] * 6, [2] * 8])], [{}])
    array([[-0. , -0.5, -1. ]])
    """

    def score(trees: Sequence[Tree], rows: Sequence[Row]) -> Scores:
        del rows
        lengths = np.array([[len(c) for c in tree.completions] for tree in trees])
        return -np.clip((lengths - (max_new_tokens - cache)) / cache, 0, 1)

    return score


def _resolve(scores: Any) -> np.ndarray:
    return np.asarray(scores.result() if isinstance(scores, Future) else scores, np.float64).reshape(-1)
