"""Warnings of a trust report, in plain words."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from jaxalign.judges.bias import Favour
from jaxalign.judges.pairwise import PairwiseReport
from jaxalign.judges.raters import Agreement, Ceiling
from jaxalign.judges.reliability import Calibration
from jaxalign.stats import Interval

# Acceptable shares.
MINIMUM_CONSISTENCY, MAXIMUM_FAILURES = 0.8, 0.02


def trust_warnings(
    report: PairwiseReport | None,
    *,
    agreement: Agreement | None = None,
    verbosity: Favour | None = None,
    own: Favour | None = None,
    lead: tuple[float, Interval] | None = None,
    ceiling: Ceiling | None = None,
    spots: Mapping[Hashable, Agreement] | None = None,
    calibration: Calibration | None = None,
) -> list[str]:
    """Returns a sentence for each measurement whose whole interval is on the wrong side.

    Args:
        report: The judge in both orders; None if no pair was shown in both.
        agreement: Its :func:`~jaxalign.judges.agreement` with the human labels, without a report.
        verbosity: Its :func:`~jaxalign.judges.verbosity_bias`.
        own: Its :func:`~jaxalign.judges.self_preference`.
        lead: How much more often the judge is right than the policy as a judge of the same pairs, with the paired
            interval. A judge that is not better teaches the policy its own opinion.
        ceiling: Its :func:`~jaxalign.judges.human_ceiling`.
        spots: Its :func:`~jaxalign.judges.blind_spots`.
        calibration: Its :func:`~jaxalign.judges.calibration`.

    Returns:
        The sentences; an empty list if nothing is wrong in what was measured.

    >>> from jaxalign.judges import pairwise_report
    >>> biased = pairwise_report(["first"] * 40, ["first"] * 40)
    >>> for sentence in trust_warnings(biased):
    ...     print(sentence)
    Consistency: only 0 % of the pairs get the same verdict in both orders (interval 0 to 9 %).
    Position bias: the response shown first is favoured by 100 points (82 to 100): always ask in both orders.
    No human labels: whether the judge is right was not measured, only whether it is steady.
    """
    warnings = _order_warnings(report)
    warnings += _favour_warnings("Verbosity bias", "the longer response", verbosity)
    warnings += _favour_warnings("Self-preference", "the judge's own family", own)
    accuracy = report.agreement if report is not None else agreement.accuracy if agreement is not None else None
    if accuracy is None:
        warnings.append("No human labels: whether the judge is right was not measured, only whether it is steady.")
    elif report is not None and report.human_kinds == 1:
        warnings.append(
            "Human labels: all are the same, so agreement cannot be separated from luck: shuffle which response is "
            "first."
        )
    elif report is not None and report.kappa_ci is not None and not report.kappa_ci[0] > 0:
        warnings.append("Agreement: with the human labels it is not shown to be better than luck would give.")
    if lead is not None and not lead[1][0] > 0:
        low, high = lead[1]
        warnings.append(
            f"Circularity: the judge is not shown to be stronger than the policy (right by {100 * lead[0]:+.0f} points"
            f" more often, {100 * low:+.0f} to {100 * high:+.0f}): it can teach style, hardly judgement."
        )
    if ceiling is not None and ceiling.gap_ci[0] <= 0:
        warnings.append(
            f"Ceiling: the judge is not shown to agree with annotators less than they do with each other"
            f" ({100 * ceiling.judge:.0f} % and {100 * ceiling.human:.0f} %): this audit set cannot show more."
        )
    for group, result in (spots or {}).items():
        if accuracy is not None and result.accuracy_ci[1] < accuracy:
            warnings.append(
                f"Blind spot on {group!r}: the judge is right in {100 * result.accuracy:.0f} % of the items"
                f" ({_range(result.accuracy_ci)} %), overall in {100 * accuracy:.0f} %."
            )
    if calibration is not None and calibration.ece > calibration.ece_by_luck:
        direction = "surer" if calibration.overconfidence > 0 else "less sure"
        warnings.append(
            f"Calibration: probabilities are off by {100 * calibration.ece:.0f} points on average, and the judge is"
            f" {direction} than it is right: recalibrate them before using them as soft labels."
        )
    return warnings


def _order_warnings(report: PairwiseReport | None) -> list[str]:
    """Returns the warnings that need verdicts in both orders."""
    if report is None:
        return ["Order: no pair was shown in both orders, so position bias can be neither measured nor averaged out."]
    warnings = []
    if report.consistency_ci[1] < MINIMUM_CONSISTENCY:
        warnings.append(
            f"Consistency: only {100 * report.consistency:.0f} % of the pairs get the same verdict in both orders"
            f" (interval {_range(report.consistency_ci)} %)."
        )
    if report.position_bias_ci[0] > 0 or report.position_bias_ci[1] < 0:
        place = "first" if report.position_bias > 0 else "second"
        warnings.append(
            f"Position bias: the response shown {place} is favoured by"
            f" {_size(report.position_bias, report.position_bias_ci)}: always ask in both orders."
        )
    if report.failures_ci[0] > MAXIMUM_FAILURES:
        warnings.append(
            f"Failures: {100 * report.failures:.0f} % of the verdicts could not be parsed"
            f" ({_range(report.failures_ci)} %): look at the raw answers before using any label."
        )
    return warnings


def _favour_warnings(title: str, kind: str, favour: Favour | None) -> list[str]:
    """Returns the warning of a bias: beyond what human labels explain, or without human labels the plain bias."""
    if favour is None:
        return []
    if favour.excess is None and favour.bias_ci[0] > 0:
        size = _size(favour.bias, favour.bias_ci)
        return [f"{title}: {kind} is favoured by {size}, for whatever reason: human labels are missing."]
    if favour.excess is None or not favour.slope_ci[0] > 0:
        return []
    return [
        f"{title}: {kind} is favoured beyond what the human labels explain (by {100 * favour.bias:+.0f} points in all;"
        f" log-odds {favour.slope:.2g} a unit, {favour.slope_ci[0]:.2g} to {favour.slope_ci[1]:.2g})."
    ]


def _range(interval: Interval) -> str:
    return f"{100 * interval[0]:.0f} to {100 * interval[1]:.0f}"


def _size(value: float, interval: Interval) -> str:
    """Formats a bias without its sign, in points."""
    low, high = sorted(abs(100 * end) for end in interval)
    return f"{100 * abs(value):.0f} points ({low:.0f} to {high:.0f})"
