"""What a trust report means, in plain words."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from jaxalign.judges.bias import Favour
from jaxalign.judges.pairwise import PairwiseReport
from jaxalign.judges.raters import Agreement, Ceiling
from jaxalign.judges.reliability import Calibration
from jaxalign.stats import Interval


def trust_warnings(
    report: PairwiseReport | None,
    *,
    agreed: Agreement | None = None,
    verbosity: Favour | None = None,
    own: Favour | None = None,
    lead: tuple[float, Interval] | None = None,
    ceiling: Ceiling | None = None,
    spots: Mapping[Hashable, Agreement] | None = None,
    probabilities: Calibration | None = None,
    most_failures: float = 0.02,
    least_consistency: float = 0.8,
) -> list[str]:
    """What to worry about: a sentence for each measurement whose whole interval is on the wrong side.

    Args:
        report: the judge in both orders; None if no pair was shown in both.
        agreed: its :func:`~jaxalign.judges.agreement` with the human labels, where there is no report.
        verbosity: its :func:`~jaxalign.judges.verbosity_bias`.
        own: its :func:`~jaxalign.judges.self_preference`.
        lead: how much more often it is right than the policy itself as a judge of the same pairs, with the paired
            interval: a judge that is no better teaches the policy its own opinion.
        ceiling: its :func:`~jaxalign.judges.human_ceiling`.
        spots: its :func:`~jaxalign.judges.blind_spots`.
        probabilities: its :func:`~jaxalign.judges.calibration`.
        most_failures, least_consistency: what is still acceptable.

    Returns:
        the sentences; none if nothing was found in what was measured.

    >>> from jaxalign.judges import pairwise_report
    >>> biased = pairwise_report(["first"] * 40, ["first"] * 40)
    >>> for sentence in trust_warnings(biased):
    ...     print(sentence)
    Consistency: only 0 % of the pairs get the same verdict in both orders (interval 0 to 9 %).
    Position bias: the response shown first is favoured by 100 points (82 to 100): always ask in both orders.
    No human labels: whether the judge is right was not measured, only whether it is steady.
    """
    found = _of_orders(report, most_failures, least_consistency)
    found += _favours("Verbosity bias", "the longer response", verbosity)
    found += _favours("Self-preference", "the judge's own family", own)
    right = report.agreement if report is not None else agreed.accuracy if agreed is not None else None
    if right is None:
        found.append("No human labels: whether the judge is right was not measured, only whether it is steady.")
    elif report is not None and report.human_kinds == 1:
        found.append(
            "Human labels: all are the same, so agreement cannot be told from luck: shuffle which response is first."
        )
    elif report is not None and report.kappa_ci is not None and not report.kappa_ci[0] > 0:
        found.append("Agreement: with the human labels it is not shown to be better than luck would give.")
    if lead is not None and not lead[1][0] > 0:
        found.append(
            f"Circularity: the judge is not shown to be stronger than the policy (right by {_signed(lead[0])} points"
            f" more often, {_signed(lead[1][0])} to {_signed(lead[1][1])}): it can teach style, hardly judgement."
        )
    if ceiling is not None and ceiling.gap_ci[0] <= 0:
        found.append(
            f"Ceiling: the judge is not shown to agree with annotators less than they do with each other"
            f" ({_percent(ceiling.judge)} and {_percent(ceiling.human)}): this audit set cannot show more."
        )
    for group, result in (spots or {}).items():
        if right is not None and result.accuracy_ci[1] < right:
            found.append(
                f"Blind spot on {group!r}: the judge is right in {_percent(result.accuracy)} of the items"
                f" ({_range(result.accuracy_ci)} %), overall in {_percent(right)}."
            )
    if probabilities is not None and probabilities.ece > probabilities.ece_by_luck:
        way = "surer" if probabilities.overconfidence > 0 else "less sure"
        found.append(
            f"Calibration: probabilities are off by {_points(probabilities.ece)} points on average, and the judge is"
            f" {way} than it is right: recalibrate them before using them as soft labels."
        )
    return found


def _of_orders(report: PairwiseReport | None, most_failures: float, least_consistency: float) -> list[str]:
    """What only both orders can tell."""
    if report is None:
        return ["Order: no pair was shown in both orders: position bias cannot be seen and not be averaged out."]
    found = []
    if report.consistency_ci[1] < least_consistency:
        found.append(
            f"Consistency: only {_percent(report.consistency)} of the pairs get the same verdict in both orders"
            f" (interval {_range(report.consistency_ci)} %)."
        )
    if _off_zero(report.position_bias_ci):
        place = "first" if report.position_bias > 0 else "second"
        found.append(
            f"Position bias: the response shown {place} is favoured by {_points(report.position_bias)} points"
            f" ({_sizes(report.position_bias_ci)}): always ask in both orders."
        )
    if report.failures_ci[0] > most_failures:
        found.append(
            f"Failures: {_percent(report.failures)} of the verdicts could not be parsed"
            f" ({_range(report.failures_ci)} %): look at the raw answers before using any label."
        )
    return found


def _favours(title: str, what: str, favour: Favour | None) -> list[str]:
    """Beyond what human labels explain, where they are known; otherwise the plain bias, with what it may hide."""
    if favour is None:
        return []
    if favour.excess is None:
        if not favour.bias_ci[0] > 0:
            return []
        sizes = f"{_points(favour.bias)} points ({_sizes(favour.bias_ci)})"
        return [f"{title}: {what} is favoured by {sizes}, for whatever reason: there are no human labels."]
    if not favour.slope_ci[0] > 0:
        return []
    return [
        f"{title}: {what} is favoured beyond what the human labels explain (by {_signed(favour.bias)} points in all;"
        f" log-odds {favour.slope:.2g} a unit, {favour.slope_ci[0]:.2g} to {favour.slope_ci[1]:.2g})."
    ]


def _off_zero(interval: Interval) -> bool:
    return interval[0] > 0 or interval[1] < 0


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _range(interval: Interval) -> str:
    return f"{100 * interval[0]:.0f} to {100 * interval[1]:.0f}"


def _points(value: float) -> str:
    return f"{100 * abs(value):.0f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.0f}"


def _sizes(interval: Interval) -> str:
    low, high = sorted(abs(100 * end) for end in interval)
    return f"{low:.0f} to {high:.0f}"
