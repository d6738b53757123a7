"""One judge, both presentation orders: consistency, position bias, failures, and agreement with humans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from jaxalign.errors import UserError
from jaxalign.judges.raters import as_list, same_length
from jaxalign.stats import DEFAULT, FAILURE, Bootstrap, Codes, Interval, estimate, kappa, ratio

Verdict: TypeAlias = Literal["first", "second", "tie"]
Verdicts: TypeAlias = Sequence[Verdict | None]
FIRST, SECOND, TIE = range(3)
NAMES: tuple[Verdict, ...] = ("first", "second", "tie")
OPPOSITE: dict[Verdict | None, Verdict | None] = {"first": "second", "second": "first", "tie": "tie", None: None}
_CODE = {"first": FIRST, "second": SECOND, "tie": TIE, None: FAILURE}


@dataclass(frozen=True)
class PairwiseReport:
    """What one judge did in both orders. Intervals are by bootstrap over the pairs, each with both verdicts."""

    pairs: int
    consistency: float
    """Share of all pairs with two parsed verdicts that mean the same: the same response, or a tie twice."""
    consistency_ci: Interval
    position_bias: float
    """Share of "first" minus share of "second" over the parsed verdicts; 0 is fair, NaN if nothing parsed."""
    position_bias_ci: Interval
    failures: float
    """Share of the verdicts, two per pair, that could not be had or parsed. Like ties they stay in the denominators of
    consistency, accuracy and agreement."""
    failures_ci: Interval
    ties: float
    """Share of ties among all verdicts."""
    ties_ci: Interval
    accuracy_first: float | None = None
    """Share of human-labelled pairs on which the verdict in the first order names the human's label."""
    accuracy_first_ci: Interval | None = None
    accuracy_second: float | None = None
    """The same of the second order, its verdict mapped back to the responses."""
    accuracy_second_ci: Interval | None = None
    agreement: float | None = None
    """Share of human-labelled pairs on which the combined verdict (:func:`combine_orders`) is the human's label."""
    agreement_ci: Interval | None = None
    kappa: float | None = None
    """Cohen's κ of the combined verdict and the human label."""
    kappa_ci: Interval | None = None
    human_kinds: int = 0
    """How many different human labels there are; κ tells nothing where it is 1."""


def pairwise_report(
    first_order: Verdicts, second_order: Verdicts, human: Verdicts | None = None, *, bootstrap: Bootstrap = DEFAULT
) -> PairwiseReport:
    """Consistency Σ_i [v_i = swap(v'_i)] / n, position bias (#first - #second) / #parsed, and accuracy against humans.

    Source: Zheng et al. 2023, arXiv:2306.05685, sec. 3.3-3.4 (position bias, and the conservative use of both orders).

    Args:
        first_order: a verdict per pair, "first", "second", "tie", or None for a failure, ``[n]``.
        second_order: the same pairs shown the other way round; verdicts name the position shown, so a judge that
            keeps its mind says "first" here where it said "second" there.
        human: "first", "second" or "tie" as the first order shows the responses; None where a pair has no label, which
            takes it out of accuracy, agreement and kappa only.
        bootstrap: confidence, resamples and seed of the intervals.

    Returns:
        the report.

    Raises:
        UserError: if the lists differ in length, are empty, or hold another verdict.

    >>> report = pairwise_report(["first", "first", "tie", None], ["second", "first", "tie", "first"], ["first"] * 4)
    >>> report.consistency, report.failures, report.accuracy_first, report.accuracy_second, report.agreement
    (0.5, 0.125, 0.5, 0.25, 0.25)
    >>> round(report.position_bias, 3)
    0.429
    """
    columns = [parse_labels("first_order", first_order), parse_labels("second_order", second_order)]
    columns.append(np.full(len(columns[0]), FAILURE) if human is None else parse_labels("human", human))
    same_length(dict(zip(("first_order", "second_order", "human"), columns, strict=True)))
    outcomes, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    one, two, truth = outcomes.T
    back = swap(two)
    shown = np.stack([one, two])
    parsed = (shown != FAILURE).sum(0)

    def share(match: Any, of: Any = 1, **options: Any) -> tuple[float, Interval]:
        return estimate(ratio(match, of * np.ones(len(one))), counts, bootstrap, **{"bounds": (0, 1), **options})

    leaning = (shown == FIRST).sum(0) - (shown == SECOND).sum(0)
    report = (
        int(counts.sum()),
        *share(same(one, back)),
        *share(leaning, parsed, bounds=(-1, 1), span=2),
        *share(2 - parsed, 2),
        *share((shown == TIE).sum(0), 2),
    )
    labelled = truth != FAILURE
    if human is None or not labelled.any():
        return PairwiseReport(*report)
    both = _combine(one, two)
    cohen = estimate(kappa(both[labelled], truth[labelled]), counts[labelled], bootstrap, bounds=(-1, 1))

    def right(verdict: Codes) -> tuple[float, Interval]:
        match = same(verdict, truth)[labelled]
        return estimate(ratio(match, np.ones(len(match))), counts[labelled], bootstrap, bounds=(0, 1))

    kinds = len(np.unique(truth[labelled]))
    return PairwiseReport(*report, *right(one), *right(back), *right(both), *cohen, kinds)


def combine_orders(first_order: Verdicts, second_order: Verdicts) -> list[Verdict | None]:
    """One verdict per pair out of both orders: v if v = swap(v'), a tie if the two differ, a failure if one failed.

    Source: Zheng et al. 2023, arXiv:2306.05685, sec. 3.4, the conservative approach.

    Args:
        first_order, second_order: as for :func:`pairwise_report`, ``[n]``.

    Returns:
        verdicts that name the responses as the first order shows them, ``[n]``.

    Raises:
        UserError: for what :func:`pairwise_report` refuses.

    >>> combine_orders(["first", "first", "tie", "first"], ["second", "first", "tie", None])
    ['first', 'tie', 'tie', None]
    """
    one, two = parse_labels("first_order", first_order), parse_labels("second_order", second_order)
    same_length({"first_order": one, "second_order": two})
    return [None if code == FAILURE else NAMES[code] for code in _combine(one, two)]


def parse_labels(name: str, verdicts: Any) -> Codes:
    """Verdicts as codes."""
    listed = as_list(name, verdicts)
    for i, verdict in enumerate(listed):
        if verdict not in _CODE:
            raise UserError(f"{name}, row {i + 1}: {verdict!r} is no verdict: give first, second, tie, or None")
    return np.array([_CODE[verdict] for verdict in listed], np.int64)


def swap(codes: Codes) -> Codes:
    """The same verdicts with positions exchanged; a failure stays one."""
    return np.array([SECOND, FIRST, TIE, FAILURE])[codes]


def same(a: Codes, b: Codes) -> Any:
    """Where both are parsed and equal."""
    return (a == b) & (a != FAILURE)


def _combine(one: Codes, two: Codes) -> Codes:
    back = swap(two)
    failed = (one == FAILURE) | (back == FAILURE)
    return np.where(failed, FAILURE, np.where(one == back, one, TIE))
