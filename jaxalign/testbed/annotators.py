"""Simulated annotators: people who compare answers, people who rate single answers, and a judge with chosen biases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from jaxalign.judges.pairwise import Verdict


def prefer(
    first: ArrayLike, second: ArrayLike, random: np.random.Generator, *, temperature: float = 0.5
) -> Bool[np.ndarray, " n"]:
    """Draws whether the first of two answers is preferred: P = σ((r₁ - r₂) / temperature).

    Args:
        first: Gold rewards r₁ of the first answers, ``[n]``.
        second: Gold rewards r₂ of the second answers, ``[n]``.
        random: Generator of random numbers.
        temperature: Noise of the choices, in units of gold reward.

    Returns:
        True where the first answer is preferred.

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

    Args:
        reference: r₀, the gold reward at which both thumbs are equally likely
        loss_aversion: λ, the weight of a loss relative to that of a gain
        temperature: noise of the thumbs, in units of gold reward
    """

    reference: float = 0.5
    loss_aversion: float = 2.25
    temperature: float = 0.5

    def __call__(self, rewards: ArrayLike, random: np.random.Generator) -> Bool[np.ndarray, " n"]:
        """Draws a thumb for each answer; True is up.

        Args:
            rewards: Gold rewards of the answers, ``[n]``.
            random: Generator of random numbers.
        """
        gain = np.asarray(rewards) - self.reference
        value = np.where(gain >= 0, gain, self.loss_aversion * gain)
        return random.random(value.shape) < _sigmoid(value / self.temperature)


@dataclass(frozen=True)
class Judge:
    """An AI judge with noise and biases, which are in units of gold reward.

    The answer with the larger value of this sum wins. If both differ by less than ``margin``, the verdict is a tie::

        quality + length · words / 10 + position · [shown first] + own · [of its family] + noise

    Args:
        noise: standard deviation of the noise of a comparison
        position: bias for the answer shown first
        length: bias for ten more words
        own: bias for answers of the judge's own family
        margin: differences below it are ties
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
        """Draws a verdict for each pair.

        Args:
            first: Gold rewards of the answers shown first, ``[n]``.
            second: Gold rewards of the other answers, ``[n]``.
            random: Generator of the noise.
            words: Numbers of words of the first and of the second answers.
            family: Whether the first and the second answers are of the judge's own family.
        """
        difference = np.asarray(first, np.float64) - np.asarray(second, np.float64) + self.position
        difference = difference + self.length * (np.asarray(words[0]) - np.asarray(words[1])) / 10
        difference = difference + self.own * (np.asarray(family[0], float) - np.asarray(family[1], float))
        difference = difference + self.noise * random.normal(size=difference.shape)
        names: tuple[Verdict, ...] = ("second", "tie", "first")
        return [names[int(np.sign(value)) + 1 if abs(value) >= self.margin else 1] for value in difference]


def _sigmoid(x: ArrayLike) -> Float[np.ndarray, "..."]:
    # With tanh, because exp(-x) overflows for large negative x.
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64)))
