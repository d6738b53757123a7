"""What a trust report means, in plain words."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from jaxalign.judges.bias import Favour, VerbosityBias
from jaxalign.judges.bootstrap import Interval
from jaxalign.judges.pairwise import PairwiseReport
from jaxalign.judges.raters import Agreement, Ceiling
from jaxalign.judges.reliability import Calibration


def trust_warnings(
    report: PairwiseReport,
    *,
    verbosity: VerbosityBias | None = None,
    own: Favour | None = None,
    policy: PairwiseReport | None = None,
    ceiling: Ceiling | None = None,
    spots: Mapping[Hashable, Agreement] | None = None,
    probabilities: Calibration | None = None,
    most_failures: float = 0.02,
    least_consistency: float = 0.8,
) -> list[str]:
    """What to worry about: a sentence for each measurement whose whole interval is on the wrong side.

    Args:
        report: the judge in both orders.
        verbosity: its :func:`~jaxalign.judges.verbosity_bias`.
        own: its :func:`~jaxalign.judges.self_preference`.
        policy: the same report of the policy itself as a judge of the same pairs: a judge that is no better teaches
            the policy its own opinion.
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
    found += _favours("Verbosity bias", "the longer response", verbosity)
    found += _favours("Self-preference", "the judge's own family", own)
    if report.agreement is None:
        found.append("No human labels: whether the judge is right was not measured, only whether it is steady.")
    elif report.kappa_ci is not None and not report.kappa_ci[0] > 0:
        found.append("Agreement: with the human labels it is no better than luck would give.")
    found += _circularity(report, policy)
    if ceiling is not None and ceiling.gap_ci[0] <= 0:
        found.append(
            f"Ceiling: the judge agrees with annotators as often as they do with each other"
            f" ({_percent(ceiling.judge)} and {_percent(ceiling.human)}): this audit set cannot show more."
        )
    for group, result in (spots or {}).items():
        if report.agreement is not None and result.accuracy_ci[1] < report.agreement:
            found.append(
                f"Blind spot on {group!r}: the judge is right in {_percent(result.accuracy)} of the items"
                f" ({_range(result.accuracy_ci)} %), overall in {_percent(report.agreement)}."
            )
    if probabilities is not None and probabilities.ece > probabilities.ece_by_luck:
        way = "surer" if probabilities.overconfidence > 0 else "less sure"
        found.append(
            f"Calibration: probabilities are off by {_points(probabilities.ece)} points on average, and the judge is"
            f" {way} than it is right: recalibrate them before using them as soft labels."
        )
    return found


def _favours(title: str, what: str, favour: Favour | None) -> list[str]:
    """Against humans where they are known; otherwise the plain bias, with what it may hide."""
    if favour is None:
        return []
    if favour.excess is not None and favour.excess_ci is not None:
        value, interval, beside = favour.excess, favour.excess_ci, "more than by humans"
    else:
        value, interval, beside = favour.bias, favour.bias_ci, "for whatever reason: there are no human labels"
    if not interval[0] > 0:
        return []
    return [f"{title}: {what} is favoured by {_points(value)} points ({_sizes(interval)}), {beside}."]


def _circularity(report: PairwiseReport, policy: PairwiseReport | None) -> list[str]:
    if policy is None or policy.agreement is None or report.agreement_ci is None or report.agreement is None:
        return []
    if report.agreement_ci[0] > policy.agreement:
        return []
    return [
        f"Circularity: the judge is not shown to be stronger than the policy ({_percent(report.agreement)} and"
        f" {_percent(policy.agreement)} right): it can teach style, hardly judgement."
    ]


def _off_zero(interval: Interval) -> bool:
    return interval[0] > 0 or interval[1] < 0


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _range(interval: Interval) -> str:
    return f"{100 * interval[0]:.0f} to {100 * interval[1]:.0f}"


def _points(value: float) -> str:
    return f"{100 * abs(value):.0f}"


def _sizes(interval: Interval) -> str:
    low, high = sorted(abs(100 * end) for end in interval)
    return f"{low:.0f} to {high:.0f}"
