"""Simulated annotators: people who compare, people who give a thumb, and a judge with biases of one's choosing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from jaxalign.judges.pairwise import Verdict


def prefer(
    first: ArrayLike, second: ArrayLike, random: np.random.Generator, *, temperature: float = 0.5
) -> Bool[np.ndarray, " n"]:
    """Whether the first of two answers is preferred: P = σ((r₁ - r₂) / temperature), r the gold rewards.

    Source: Bradley and Terry 1952, https://doi.org/10.2307/2334029.

    >>> prefer([2.0], [-2.0], np.random.default_rng(0), temperature=0.01)
    array([ True])
    """
    return random.random(np.shape(first)) < _sigmoid((np.asarray(first) - np.asarray(second)) / temperature)


@dataclass(frozen=True)
class Thumbs:
    """Thumbs up with P = σ(v(r - r₀) / temperature), where v(x) = x for gains and λx for losses.

    Source: the value function of Tversky and Kahneman 1992, https://doi.org/10.1007/BF00122574, linear (their α = 1),
    with λ as they measured it.
    """

    reference: float = 0.5
    loss_aversion: float = 2.25
    temperature: float = 0.5

    def __call__(self, rewards: ArrayLike, random: np.random.Generator) -> Bool[np.ndarray, " n"]:
        """A thumb for each answer, by its gold reward."""
        gain = np.asarray(rewards) - self.reference
        value = np.where(gain >= 0, gain, self.loss_aversion * gain)
        return random.random(value.shape) < _sigmoid(value / self.temperature)


@dataclass(frozen=True)
class Judge:
    """An AI judge that sees quality with noise and biases: the answer with the larger

        quality + length · words / 10 + position · [shown first] + own · [of its family] + noise

    wins; ``tie`` if the two are nearer than ``margin``. Biases are in units of gold reward.
    """

    noise: float = 0.25
    position: float = 0.0
    length: float = 0.0
    own: float = 0.0
    margin: float = 0.0

    def __call__(
        self,
        first: ArrayLike,
        second: ArrayLike,
        random: np.random.Generator,
        *,
        words: tuple[ArrayLike, ArrayLike] = (0, 0),
        family: tuple[ArrayLike, ArrayLike] = (False, False),
    ) -> list[Verdict]:
        """A verdict for each pair, by gold rewards of the answer shown first and the other.

        Args:
            first, second: the gold rewards, ``[n]``.
            random: of the noise.
            words: how long the two are.
            family: whether they are of the judge's own family.
        """
        difference = np.asarray(first, np.float64) - np.asarray(second, np.float64) + self.position
        difference = difference + self.length * (np.asarray(words[0]) - np.asarray(words[1])) / 10
        difference = difference + self.own * (np.asarray(family[0], float) - np.asarray(family[1], float))
        difference = difference + self.noise * random.normal(size=difference.shape)
        names: Sequence[Verdict] = ("second", "tie", "first")
        return [names[int(np.sign(value)) + 1 if abs(value) >= self.margin else 1] for value in difference]


def _sigmoid(x: ArrayLike) -> Float[np.ndarray, "..."]:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64)))
