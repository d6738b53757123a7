"""How well scores tell liked answers from the others: the area under the ROC curve, with its interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Separation:
    """The area under the ROC curve, P(a liked answer scores above another one), ties half; NaN without both kinds.

    Attributes:
        auc: of all pairs of a liked and another answer.
        auc_ci: 95% by resampling prompts, as answers to one prompt are not independent.
        liked, others: how many answers of each kind.
        prompts: how many prompts they answer.
    """

    auc: float
    auc_ci: tuple[float, float]
    liked: int
    others: int
    prompts: int


def separation(
    scores: Sequence[float], liked: Sequence[bool], prompts: Sequence[Hashable], seed: int = 0
) -> Separation:
    """The separation of answers ``[N]`` by their scores (Mann and Whitney 1947), bootstrapped over their prompts.

    >>> found = separation([2.0, 1.0, 1.0, 0.0], [True, True, False, False], ["a", "b", "c", "d"])
    >>> found.auc
    0.875
    """
    values, label = np.asarray(scores, float), np.asarray(liked, bool)
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    owner = np.array([numbers[prompt] for prompt in prompts], int)
    # Places in the order of scores; a liked answer leads those before its place, and half of those that share it.
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)

    def area(weight: np.ndarray) -> float:
        up = np.bincount(place, weight * label, len(sizes))
        down = np.bincount(place, weight * ~label, len(sizes))
        total = up.sum() * down.sum()
        return float(up @ (np.cumsum(down) - down / 2) / total) if total else float("nan")

    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=RESAMPLES)
    found = [area(draw[owner].astype(float)) for draw in draws]
    low, high = np.nanquantile(found, [0.025, 0.975]) if not np.all(np.isnan(found)) else (np.nan, np.nan)
    count = int(label.sum())
    return Separation(area(np.ones(len(values))), (float(low), float(high)), count, len(values) - count, len(numbers))
