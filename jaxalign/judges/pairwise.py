"""One judge in both presentation orders: consistency, position bias, failures, and agreement with humans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from jaxalign.errors import UserError
from jaxalign.judges.raters import as_list, estimate_mean, same, same_length
from jaxalign.stats import DEFAULT, FAILURE, Bootstrap, Codes, Interval, estimate, kappa

Verdict: TypeAlias = Literal["first", "second", "tie"]
VerdictColumn: TypeAlias = Sequence[Verdict | None]
FIRST, SECOND, TIE = range(3)
NAMES: tuple[Verdict, ...] = ("first", "second", "tie")
OPPOSITE: dict[Verdict | None, Verdict | None] = {"first": "second", "second": "first", "tie": "tie", None: None}
# Names of verdicts in judges' answers and in files.
VERDICTS_BY_NAME: dict[str, Verdict] = {"a": "first", "1": "first", "b": "second", "2": "second"}
VERDICTS_BY_NAME |= {name: name for name in NAMES}
# The wins of the first response.
WINS = {"first": 1.0, "second": 0.0, "tie": 0.5}
_CODE = {"first": FIRST, "second": SECOND, "tie": TIE, None: FAILURE}


@dataclass(frozen=True)
class PairwiseReport:
    """Measurements of one judge in both orders. Intervals are by bootstrap over the pairs, each with both verdicts.

    Attributes:
        pairs: Number of pairs.
        consistency: Share of all pairs whose two verdicts were parsed and mean the same: one response, or a tie.
        consistency_ci: Its interval, as for all fields that follow.
        position_bias: Share of "first" minus share of "second" over the parsed verdicts. 0 is fair; NaN if none parsed.
        failures: Share of the verdicts, two per pair, that are missing or could not be parsed. Like ties they stay in
            the denominators of consistency, accuracy and agreement.
        ties: Share of ties among all verdicts.
        accuracy_first: Share of human-labelled pairs on which the verdict in the first order is the human label.
        accuracy_second: The same of the second order, its verdict mapped back to the responses.
        agreement: Share of human-labelled pairs on which the combined verdict (:func:`combine_orders`) is the human
            label.
        kappa: Cohen's κ of the combined verdict and the human label.
        human_kinds: Number of different human labels. If it is 1, κ says nothing.
    """

    pairs: int
    consistency: float
    consistency_ci: Interval
    position_bias: float
    position_bias_ci: Interval
    failures: float
    failures_ci: Interval
    ties: float
    ties_ci: Interval
    accuracy_first: float | None = None
    accuracy_first_ci: Interval | None = None
    accuracy_second: float | None = None
    accuracy_second_ci: Interval | None = None
    agreement: float | None = None
    agreement_ci: Interval | None = None
    kappa: float | None = None
    kappa_ci: Interval | None = None
    human_kinds: int = 0


def pairwise_report(
    first_order: VerdictColumn,
    second_order: VerdictColumn,
    human: VerdictColumn | None = None,
    *,
    bootstrap: Bootstrap = DEFAULT,
) -> PairwiseReport:
    """Computes consistency Σ_i [v_i = swap(v'_i)] / n, position bias (#first - #second) / #parsed, and accuracy.

    Source: Zheng et al. 2023, arXiv:2306.05685, sec. 3.3-3.4 (position bias, and the conservative use of both orders).

    Args:
        first_order: A verdict for each pair: "first", "second", "tie", or None for a failure, ``[n]``.
        second_order: Verdicts on the same pairs with the responses exchanged. Verdicts name the position shown, so a
            consistent judge says "first" here where it said "second" there.
        human: "first", "second" or "tie" as the first order shows the responses. A pair with None is omitted from
            accuracy, agreement and kappa only.
        bootstrap: Settings of the intervals.

    Returns:
        The report.

    Raises:
        UserError: If the lists differ in length, are empty, or contain another verdict.

    >>> report = pairwise_report(["first", "first", "tie", None], ["second", "first", "tie", "first"], ["first"] * 4)
    >>> report.consistency, report.failures, report.accuracy_first, report.accuracy_second, report.agreement
    (0.5, 0.125, 0.5, 0.25, 0.25)
    >>> round(report.position_bias, 3)
    0.429
    """
    columns = {
        "first_order": parse_labels("first_order", first_order),
        "second_order": parse_labels("second_order", second_order),
        "human": parse_labels("human", [None] * len(first_order) if human is None else human),
    }
    same_length(columns)
    outcomes, counts = np.unique(np.stack(list(columns.values()), axis=1), axis=0, return_counts=True)
    one, two, truth = outcomes.T
    back = swap(two)
    shown = np.stack([one, two])
    parsed = (shown != FAILURE).sum(0)
    leaning = (shown == FIRST).sum(0) - (shown == SECOND).sum(0)
    report = (
        int(counts.sum()),
        *estimate_mean(same(one, back), counts, bootstrap),
        *estimate_mean(leaning, counts, bootstrap, (-1, 1), denominators=parsed),
        *estimate_mean(2 - parsed, counts, bootstrap, denominators=2),
        *estimate_mean((shown == TIE).sum(0), counts, bootstrap, denominators=2),
    )
    labelled = truth != FAILURE
    if not labelled.any():
        return PairwiseReport(*report)
    both, counts, labels = _combine(one, two)[labelled], counts[labelled], truth[labelled]
    sides = (one[labelled], back[labelled], both)
    first, second, agreed = (estimate_mean(same(codes, labels), counts, bootstrap) for codes in sides)
    cohen = estimate(kappa(both, labels), counts, bootstrap, bounds=(-1, 1))
    return PairwiseReport(*report, *first, *second, *agreed, *cohen, len(np.unique(labels)))


def combine_orders(first_order: VerdictColumn, second_order: VerdictColumn) -> list[Verdict | None]:
    """Combines both orders: v if v = swap(v'), a tie if the two differ, a failure if one failed.

    Source: Zheng et al. 2023, arXiv:2306.05685, sec. 3.4, the conservative approach.

    Args:
        first_order: As for :func:`pairwise_report`, ``[n]``.
        second_order: As for :func:`pairwise_report`, ``[n]``.

    Returns:
        Verdicts that name the responses as the first order shows them, ``[n]``.

    Raises:
        UserError: As in :func:`pairwise_report`.

    >>> combine_orders(["first", "first", "tie", "first"], ["second", "first", "tie", None])
    ['first', 'tie', 'tie', None]
    """
    one, two = parse_labels("first_order", first_order), parse_labels("second_order", second_order)
    same_length({"first_order": one, "second_order": two})
    return [None if code == FAILURE else NAMES[code] for code in _combine(one, two)]


def parse_labels(name: str, verdicts: Any) -> Codes:
    """Returns verdicts as codes. ``name`` is the argument's name in the message."""
    listed = as_list(name, verdicts)
    for i, verdict in enumerate(listed):
        if verdict not in _CODE:
            raise UserError(f"{name}, row {i + 1}: {verdict!r} is not a verdict. Give first, second, tie, or None.")
    return np.array([_CODE[verdict] for verdict in listed], np.int64)


def favoured_side(gap: float, margin: float = 0.0) -> Verdict:
    """Returns which response is better by how much more the first one scores. Gaps up to the margin are ties."""
    return "tie" if abs(gap) <= margin else "first" if gap > 0 else "second"


def swap(codes: Codes) -> Codes:
    """Returns the verdicts with positions exchanged. A failure stays one."""
    return np.array([SECOND, FIRST, TIE, FAILURE])[codes]


def _combine(one: Codes, two: Codes) -> Codes:
    back = swap(two)
    failed = (one == FAILURE) | (back == FAILURE)
    return np.where(failed, FAILURE, np.where(one == back, one, TIE))
