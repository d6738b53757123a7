"""The trust report: all measurements of judges, from columns of verdicts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.errors import UserError
from jaxalign.judges import raters
from jaxalign.judges.audit_warnings import trust_warnings
from jaxalign.judges.bias import Favour, self_preference, verbosity_bias
from jaxalign.judges.pairwise import WINS, PairwiseReport, Verdict, combine_orders, favoured_side, pairwise_report
from jaxalign.judges.reliability import Calibration, calibration
from jaxalign.stats import DEFAULT, Bootstrap, Interval


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """One judge's columns, a value for each pair. Verdicts name the position shown, all other columns the responses.

    Args:
        first_order: The verdict with the responses in the given order; None for a failure.
        second_order: The verdict with the responses exchanged.
        twice: Whether a pair was shown in both orders; None if all were.
        human: The human label; None where there is none.
        length_difference: Length of the first response minus that of the second, in any unit. None omits verbosity.
        own: Which response is of the judge's family ("first", "second", "tie" for both, None for neither).
        probabilities: P(the first response is better).
        annotators: Labels of single humans, by name.
        groups: The group of each pair, such as its topic.
        keys: The identity of each pair, which lines up several judges.
        combined: The verdict on each pair, naming responses, if it is more than both orders combined (a vote of
            principles or judges).
        ordered: Whether there are verdicts of single orders. Scores and votes have none.
        labelled_only: Whether the pairs are those that got a label, without ties and failures.
    """

    first_order: Sequence[Verdict | None]
    second_order: Sequence[Verdict | None]
    twice: Sequence[bool] | None = None
    human: Sequence[Verdict | None] | None = None
    length_difference: Sequence[float] | None = None
    own: Sequence[Verdict | None] | None = None
    probabilities: Sequence[float | None] | None = None
    annotators: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    groups: Sequence[Hashable] | None = None
    keys: Sequence[Hashable] | None = None
    combined: Sequence[Verdict | None] | None = None
    ordered: bool = True
    labelled_only: bool = False

    @property
    def winners(self) -> list[Verdict | None]:
        """The verdict of the orders that were shown, naming responses."""
        if self.combined is not None:
            return list(self.combined)
        if not len(self.first_order):
            return []
        both = combine_orders(self.first_order, self.second_order)
        shown_twice = [True] * len(both) if self.twice is None else self.twice
        rows = zip(self.first_order, both, shown_twice, strict=True)
        return [combined if twice else one for one, combined, twice in rows]

    @property
    def pair_keys(self) -> Sequence[Hashable]:
        """The keys, or the positions of the pairs without keys."""
        return range(len(self.first_order)) if self.keys is None else self.keys


@dataclasses.dataclass(frozen=True)
class JudgeAudit:
    """Measurements of one judge. A field is None if the judge's columns do not allow the measurement.

    Attributes:
        pairs: Number of pairs.
        in_both_orders: Number of pairs that were shown in both orders.
        report: Report of the pairs that were shown in both orders.
        agreement: Agreement of the verdicts on all pairs with the human labels.
        verbosity: Preference for the longer response.
        own: Preference for the judge's own family.
        calibration: Calibration of the probabilities against the human labels.
        ceiling: Comparison with the annotators.
        spots: Agreement with the human labels by group.
        by_probability: Agreement of the side that the probability favours with the human labels.
        ordered: Whether single orders were shown. Otherwise consistency and position bias mean nothing.
        warnings: Sentences about what is wrong.
    """

    pairs: int
    in_both_orders: int
    report: PairwiseReport | None
    agreement: raters.Agreement | None
    verbosity: Favour | None = None
    own: Favour | None = None
    calibration: Calibration | None = None
    ceiling: raters.Ceiling | None = None
    spots: dict[Hashable, raters.Agreement] | None = None
    by_probability: raters.Agreement | None = None
    ordered: bool = True
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TrustReport:
    """The audit of every judge, and the agreement between judges and between humans."""

    judges: dict[str, JudgeAudit]
    between_judges: raters.RaterAgreement | None = None
    between_humans: raters.RaterAgreement | None = None

    def plain(self) -> dict[str, Any]:
        """Returns the report as values for JSON: NaN is null, tables of counts are lists."""
        return _plain(self)


def audit(columns: Mapping[str, Verdicts], *, policy: str | None = None, bootstrap: Bootstrap = DEFAULT) -> TrustReport:
    """Audits one judge or several on the same pairs.

    Args:
        columns: Each judge's verdicts, by its name.
        policy: The judge that is the policy itself, asked about the same pairs. The other judges get a warning if they
            are not shown to be stronger.
        bootstrap: Settings of all intervals.

    Returns:
        The report. ``warnings`` of each judge contains sentences in plain words.

    Raises:
        UserError: If verdicts are missing, columns differ in length, or ``policy`` is not one of the judges.

    >>> report = audit({"a": Verdicts(["first", "first"], ["second", "first"], human=["first", "second"])})
    >>> report.judges["a"].report.consistency, report.judges["a"].agreement.accuracy
    (0.5, 0.5)
    """
    if not columns:
        raise UserError("columns has no judge to audit. Give the verdicts of at least one.")
    if policy is not None and policy not in columns:
        raise UserError(f"policy is {policy!r}, and the judges are {', '.join(columns)}. Name one of them.")
    judges = {}
    for name, verdicts in columns.items():
        lead = _lead(verdicts, columns[policy], bootstrap) if policy is not None and policy != name else None
        judges[name] = _audit_judge(verdicts, lead, bootstrap)
    annotators = next(iter(columns.values())).annotators
    humans = raters.annotator_agreement(annotators, bootstrap=bootstrap) if len(annotators) > 1 else None
    return TrustReport(judges, _agreement_between(columns, bootstrap), humans)


def _both_orders_report(verdicts: Verdicts, bootstrap: Bootstrap) -> PairwiseReport | None:
    """Returns the report of the pairs that were shown in both orders."""
    size = len(verdicts.first_order)
    shown = [i for i in range(size) if verdicts.twice is None or verdicts.twice[i]]
    if not shown:
        return None
    columns = (verdicts.first_order, verdicts.second_order, [None] * size if verdicts.human is None else verdicts.human)
    return pairwise_report(*([column[i] for i in shown] for column in columns), bootstrap=bootstrap)


def _lead(verdicts: Verdicts, policy: Verdicts, bootstrap: Bootstrap) -> tuple[float, Interval] | None:
    """Estimates how much more often a judge is right than the policy, on labelled pairs that both have judged."""
    if verdicts.human is None:
        return None
    by_policy = dict(zip(policy.pair_keys, policy.winners, strict=True))
    rows = zip(verdicts.pair_keys, verdicts.winners, verdicts.human, strict=True)
    gaps = [
        (winner == label) - (by_policy[key] == label)
        for key, winner, label in rows
        if label is not None and key in by_policy
    ]
    if not gaps:
        return None
    values, counts = np.unique(gaps, return_counts=True)
    return raters.estimate_mean(values, counts, bootstrap, (-1, 1))


def _audit_judge(verdicts: Verdicts, lead: tuple[float, Interval] | None, bootstrap: Bootstrap) -> JudgeAudit:
    """Makes every measurement that a judge's columns allow."""
    report = _both_orders_report(verdicts, bootstrap)
    winners = verdicts.winners
    labelled = [i for i, label in enumerate(verdicts.human or ()) if label is not None]

    def select(column: Sequence[Any] | None) -> list[Any]:
        return [] if column is None else [column[i] for i in labelled]

    human = verdicts.human if labelled else None
    judged, labels, probabilities = select(winners), select(human), select(verdicts.probabilities)
    parts: dict[str, Any] = {"agreement": None}
    by_probability = None
    if labelled:
        parts["agreement"] = raters.agreement(judged, labels, bootstrap=bootstrap)
    if verdicts.length_difference is not None and any(verdicts.length_difference):
        parts["verbosity"] = verbosity_bias(winners, verdicts.length_difference, human, bootstrap=bootstrap)
    if verdicts.own is not None and any(side in ("first", "second") for side in verdicts.own):
        parts["own"] = self_preference(winners, verdicts.own, human, bootstrap=bootstrap)
    if any(p is not None for p in probabilities):
        outcomes = [WINS[label] for label in labels]
        parts["calibration"] = calibration(probabilities, outcomes, bootstrap=bootstrap)
        sides = [None if p is None else favoured_side(p - 0.5) for p in probabilities]
        by_probability = raters.agreement(sides, labels, bootstrap=bootstrap)
    if len(verdicts.annotators) > 1:
        parts["ceiling"] = raters.human_ceiling(winners, verdicts.annotators, bootstrap=bootstrap)
    if verdicts.groups is not None and labelled:
        parts["spots"] = raters.blind_spots(judged, labels, select(verdicts.groups), bootstrap=bootstrap)
    warnings = trust_warnings(report, lead=lead, **parts)
    if verdicts.labelled_only:
        warnings.insert(0, "Labelled pairs only: ties and failures are gone, so audit the run that made them.")
    parts |= {"by_probability": by_probability, "ordered": verdicts.ordered, "warnings": tuple(warnings)}
    in_both_orders = len(winners) if verdicts.twice is None else sum(verdicts.twice)
    return JudgeAudit(len(winners), in_both_orders, report, **parts)


def _agreement_between(columns: Mapping[str, Verdicts], bootstrap: Bootstrap) -> raters.RaterAgreement | None:
    """Returns the agreement between judges, on the pairs that all of them have judged."""
    if len(columns) < 2:
        return None
    tables = {name: dict(zip(v.pair_keys, v.winners, strict=True)) for name, v in columns.items()}
    common = [key for key in next(iter(tables.values())) if all(key in table for table in tables.values())]
    if not common:
        return None
    return raters.rater_agreement({name: [t[key] for key in common] for name, t in tables.items()}, bootstrap=bootstrap)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        value = vars(value)
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        if any(isinstance(key, tuple) for key in value):
            return [[*key, _plain(part)] for key, part in value.items()]
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    return value
