"""The trust report: everything this package can measure of a judge, from columns of verdicts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.errors import UserError
from jaxalign.judges.audit_warnings import trust_warnings
from jaxalign.judges.bias import Favour, self_preference, verbosity_bias
from jaxalign.judges.pairwise import PairwiseReport, Verdict, combine_orders, pairwise_report
from jaxalign.judges.raters import (
    Agreement,
    Ceiling,
    RaterAgreement,
    agreement,
    annotator_agreement,
    blind_spots,
    human_ceiling,
)
from jaxalign.judges.raters import rater_agreement as between_raters
from jaxalign.judges.reliability import Calibration, calibration
from jaxalign.stats import DEFAULT, Bootstrap, Interval, estimate, ratio

OUTCOME = {"first": 1.0, "second": 0.0, "tie": 0.5}


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """One judge's columns, a value per pair; verdicts name the position shown, everything else the responses.

    Args:
        first_order: the verdict with the responses as they stand, None for a failure.
        second_order: with the responses exchanged.
        twice: whether a pair was shown in both orders; None if all were.
        human: the human label, None where there is none.
        length_difference: of the first response minus the second, in any unit; None to leave verbosity out.
        own: which response is of the judge's family ("first", "second", "tie" for both, None for neither).
        probabilities: P(the first response is better).
        annotators: labels of single humans, by name.
        groups: what each pair is about.
        keys: what identifies each pair, to line up several judges.
        combined: the verdict on each pair, naming responses, where it is more than both orders put together (a vote of
            principles or judges).
        ordered: whether there are verdicts of single orders; scores and votes have none.
        labelled_only: whether these are the pairs that got a label: ties and failures are gone.
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
        """The verdict of the orders that were asked about, naming responses."""
        if self.combined is not None:
            return list(self.combined)
        if not len(self.first_order):
            return []
        both = combine_orders(self.first_order, self.second_order)
        if self.twice is None:
            return both
        rows = zip(self.first_order, both, self.twice, strict=True)
        return [combined if twice else one for one, combined, twice in rows]


@dataclasses.dataclass(frozen=True)
class JudgeAudit:
    """What was measured of one judge; None for what its columns do not allow."""

    pairs: int
    in_both_orders: int
    report: PairwiseReport | None
    """Of the pairs shown in both orders."""
    agreement: Agreement | None
    """Of the verdicts of all pairs with the human labels."""
    verbosity: Favour | None = None
    own: Favour | None = None
    calibration: Calibration | None = None
    ceiling: Ceiling | None = None
    spots: dict[Hashable, Agreement] | None = None
    by_probability: Agreement | None = None
    """Of the side that the probability takes with the human labels, where there are probabilities."""
    ordered: bool = True
    """Whether single orders were asked about; of scores and votes, consistency and position bias mean nothing."""
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TrustReport:
    """Every judge, and what only several raters can tell."""

    judges: dict[str, JudgeAudit]
    between_judges: RaterAgreement | None = None
    between_humans: RaterAgreement | None = None

    def plain(self) -> dict[str, Any]:
        """The same as values that JSON can hold: NaN is null, tables of counts are lists."""
        return _plain(self)


def audit(columns: Mapping[str, Verdicts], *, policy: str | None = None, bootstrap: Bootstrap = DEFAULT) -> TrustReport:
    """The trust report of one judge or several on the same pairs.

    Args:
        columns: each judge's verdicts, by its name.
        policy: which of the judges is the policy itself, asked about the same pairs: the others are then warned of
            where they are not shown to be stronger.
        bootstrap: confidence, resamples and seed of all intervals.

    Returns:
        the report; ``warnings`` of each judge says in plain words what to worry about.

    Raises:
        UserError: if there are no verdicts, columns differ in length, or ``policy`` names no judge.

    >>> found = audit({"a": Verdicts(["first", "first"], ["second", "first"], human=["first", "second"])})
    >>> found.judges["a"].report.consistency, found.judges["a"].agreement.accuracy
    (0.5, 0.5)
    """
    if not columns:
        raise UserError("there is no judge to audit: give the verdicts of at least one")
    if policy is not None and policy not in columns:
        raise UserError(f"policy is {policy!r}, and the judges are {', '.join(columns)}: name one of them")
    reports = {name: _pairwise(mine, bootstrap) for name, mine in columns.items()}
    judges = {}
    for name, mine in columns.items():
        lead = _lead(mine, columns[policy], bootstrap) if policy is not None and policy != name else None
        judges[name] = _audit(mine, reports[name], lead, bootstrap)
    first = next(iter(columns.values()))
    humans = annotator_agreement(first.annotators, bootstrap=bootstrap) if len(first.annotators) > 1 else None
    return TrustReport(judges, _between(columns, bootstrap), humans)


def _pairwise(mine: Verdicts, bootstrap: Bootstrap) -> PairwiseReport | None:
    kept = [i for i in range(len(mine.first_order)) if mine.twice is None or mine.twice[i]]
    if not kept:
        return None
    human = None if mine.human is None else [mine.human[i] for i in kept]
    one, two = ([column[i] for i in kept] for column in (mine.first_order, mine.second_order))
    return pairwise_report(one, two, human, bootstrap=bootstrap)


def _lead(mine: Verdicts, policy: Verdicts, bootstrap: Bootstrap) -> tuple[float, Interval] | None:
    """How much more often a judge is right than the policy, on the pairs with a human label that both have judged."""
    if mine.human is None:
        return None
    theirs = dict(zip(_keys(policy), policy.winners, strict=True))
    rows = zip(_keys(mine), mine.winners, mine.human, strict=True)
    gaps = [(won == truth) - (theirs[key] == truth) for key, won, truth in rows if truth is not None and key in theirs]
    if not gaps:
        return None
    values, counts = np.unique(gaps, return_counts=True)
    return estimate(ratio(values, np.ones(len(values))), counts, bootstrap, bounds=(-1, 1), span=2)


def _keys(mine: Verdicts) -> Sequence[Hashable]:
    return range(len(mine.first_order)) if mine.keys is None else mine.keys


def _audit(
    mine: Verdicts, report: PairwiseReport | None, lead: tuple[float, Interval] | None, bootstrap: Bootstrap
) -> JudgeAudit:
    winners = mine.winners
    labelled = [i for i, label in enumerate(mine.human or ()) if label is not None]
    human = [mine.human[i] for i in labelled] if mine.human is not None else []
    judged = [winners[i] for i in labelled]
    agreed = agreement(judged, human, bootstrap=bootstrap) if labelled else None
    verbosity = own = found = ceiling = spots = by_probability = None
    if mine.length_difference is not None and any(mine.length_difference):
        known = mine.human if labelled else None
        verbosity = verbosity_bias(winners, mine.length_difference, known, bootstrap=bootstrap)
    if mine.own is not None and any(side in ("first", "second") for side in mine.own):
        own = self_preference(winners, mine.own, mine.human if labelled else None, bootstrap=bootstrap)
    if mine.probabilities is not None and any(mine.probabilities[i] is not None for i in labelled):
        said = [mine.probabilities[i] for i in labelled]
        found = calibration(said, [OUTCOME[str(label)] for label in human], bootstrap=bootstrap)
        sides = [None if p is None else ("tie" if p == 0.5 else "first" if p > 0.5 else "second") for p in said]
        by_probability = agreement(sides, human, bootstrap=bootstrap)
    if len(mine.annotators) > 1:
        ceiling = human_ceiling(winners, mine.annotators, bootstrap=bootstrap)
    if mine.groups is not None and labelled:
        spots = blind_spots(judged, human, [mine.groups[i] for i in labelled], bootstrap=bootstrap)
    warnings = trust_warnings(
        report,
        agreed=agreed,
        verbosity=verbosity,
        own=own,
        lead=lead,
        ceiling=ceiling,
        spots=spots,
        probabilities=found,
    )
    if mine.labelled_only:
        warnings.insert(
            0, "Labelled pairs only: ties and failures are gone from them, so audit the run they came from."
        )
    twice = len(winners) if mine.twice is None else sum(mine.twice)
    measured = (verbosity, own, found, ceiling, spots, by_probability)
    return JudgeAudit(len(winners), twice, report, agreed, *measured, mine.ordered, tuple(warnings))


def _between(columns: Mapping[str, Verdicts], bootstrap: Bootstrap) -> RaterAgreement | None:
    """On the pairs that all judges have judged."""
    if len(columns) < 2:
        return None
    tables = {}
    for name, mine in columns.items():
        tables[name] = dict(zip(_keys(mine), mine.winners, strict=True))
    common = [key for key in next(iter(tables.values())) if all(key in table for table in tables.values())]
    if not common:
        return None
    return between_raters({name: [t[key] for key in common] for name, t in tables.items()}, bootstrap=bootstrap)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        if any(isinstance(key, tuple) for key in value):
            return [[*key, _plain(part)] for key, part in value.items()]
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    return value
