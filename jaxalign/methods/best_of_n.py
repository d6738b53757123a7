"""Best-of-n sampling: the answer is the best of n completions. It is the baseline for training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxalign.data.trees import Tree


def best_of(trees: Sequence[Tree], n: int) -> list[Tree]:
    """Returns each prompt's best completion of its first n, as trees of one completion.

    Args:
        trees: trees with ``scores`` per completion.
        n: the number of completions to choose from.

    Raises:
        ValueError: If a tree has fewer than n completions.
    """
    if any(len(tree.completions) < n for tree in trees):
        raise ValueError(f"Best of {n} needs {n} completions of every prompt.")
    return [tree.select([int(np.argmax(tree.extras["scores"][:n]))]) for tree in trees]


def expected_best(scores: Float[np.ndarray, "B N"], n: int) -> Float[np.ndarray, " B"]:
    """Estimates the mean score of the best of n from N >= n samples of each prompt, without bias.

    Σ_i s_(i) C(i - 1, n - 1) / C(N, n), s_(1) <= … <= s_(N): the mean of the maximum over all subsets of n
    (Nakano et al. 2021, arXiv:2112.09332, app. I).

    >>> expected_best(np.array([[0.0, 1.0, 2.0]]), 2)
    array([1.66666667])
    """
    return np.sort(scores, axis=1) @ _rank_weights(scores.shape[1], n)


def _rank_weights(count: int, n: int) -> Float[np.ndarray, " N"]:
    """Returns C(i - 1, n - 1) / C(N, n) for ranks i = 1..N."""
    weights = np.zeros(count)
    weights[-1] = n / count
    # From rank i + 1 to rank i by the ratio of the two: the binomial coefficients themselves would overflow.
    for i in range(count - 1, n - 1, -1):
        weights[i - 1] = weights[i] * (i - n + 1) / i
    return weights
