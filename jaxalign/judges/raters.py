"""How far two raters agree, how far several do, and whether a judge has reached the humans' own ceiling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np

from jaxalign.errors import UserError
from jaxalign.stats import DEFAULT, FAILURE, Bootstrap, Codes, Floats, Interval, estimate, kappa, ratio

Labels: TypeAlias = Sequence[Hashable]
Mask: TypeAlias = Callable[[Codes, Codes], Any]


@dataclass(frozen=True)
class Agreement:
    """How far two raters agree; the intervals are by bootstrap over the items."""

    accuracy: float
    """Share of all items on which both give the same label."""
    accuracy_ci: Interval
    kappa: float
    """Cohen's κ; NaN where both give one and the same label to everything, so that luck explains it all."""
    kappa_ci: Interval
    counts: dict[tuple[Hashable, Hashable], int]
    """How often each pair of labels (of a, of b) occurs; failures are None."""
    failures: int
    """Items on which a, b or both failed. They stay in every denominator."""


@dataclass(frozen=True)
class RaterAgreement:
    """How far several raters agree: the mean over all pairs of raters."""

    accuracy: float
    accuracy_ci: Interval
    kappa: float
    kappa_ci: Interval
    pairs: dict[tuple[str, str], Agreement]


@dataclass(frozen=True)
class Ceiling:
    """A judge measured against annotators who do not agree among themselves."""

    judge: float
    """Mean accuracy of the judge against each annotator."""
    judge_ci: Interval
    human: float
    """Mean accuracy of one annotator against another: what a further annotator would reach."""
    human_ci: Interval
    gap: float
    """human - judge, over the same items; its interval is paired."""
    gap_ci: Interval


def agreement(labels_a: Labels, labels_b: Labels, *, bootstrap: Bootstrap = DEFAULT) -> Agreement:
    """Accuracy p_o = Σ_i [a_i = b_i] / n and Cohen's kappa κ = (p_o - p_e) / (1 - p_e), p_e = Σ_k p_a(k) p_b(k).

    Ties are a label like others. None, or NaN, is a failure: it agrees with nothing, not even with another failure,
    and stays in n. Source: Cohen 1960, https://doi.org/10.1177/001316446002000104, eq. 1.

    Args:
        labels_a, labels_b: a label per item, any hashable, ``[n]``.
        bootstrap: confidence, resamples and seed of the intervals.

    Returns:
        accuracy, kappa, their intervals, and the table of counts.

    Raises:
        UserError: if the two differ in length, are empty, or hold something unhashable.

    >>> result = agreement(["yes", "no", "no", None], ["yes", "no", "yes", "no"])
    >>> result.accuracy, round(result.kappa, 3), result.failures
    (0.5, 0.2, 1)
    >>> result.counts[("no", "yes")]
    1
    """
    tables, outcomes, counts = tabulate({"labels_a": labels_a, "labels_b": labels_b})
    a, b = tables
    accuracy, accuracy_ci = estimate(_same(a, b), counts, bootstrap, bounds=(0, 1))
    value, kappa_ci = estimate(kappa(a, b), counts, bootstrap, bounds=(-1, 1))
    if accuracy == 1 and not math.isnan(value):  # every resample agrees fully: what accuracy may yet be, kappa may too
        luck = float(np.sum((np.bincount(a, counts) / sum(counts)) ** 2))
        kappa_ci = ((accuracy_ci[0] - luck) / (1 - luck), 1.0)
    failures = sum(n for outcome, n in zip(outcomes, counts, strict=True) if None in outcome)
    table = {(first, second): n for (first, second), n in zip(outcomes, counts, strict=True)}
    return Agreement(accuracy, accuracy_ci, value, kappa_ci, table, failures)


def rater_agreement(raters: Mapping[str, Labels], *, bootstrap: Bootstrap = DEFAULT) -> RaterAgreement:
    """Inter-rater agreement: accuracy and κ of :func:`agreement`, averaged over all pairs of raters.

    Of judges it is the inter-judge agreement; for human annotators, who leave items out, see
    :func:`annotator_agreement`. Source for the mean of pairwise kappas: Light 1971, https://doi.org/10.1037/h0031643.

    Args:
        raters: the labels of two raters or more by their names, ``[n]`` each.
        bootstrap: confidence, resamples and seed of the intervals.

    Returns:
        the means with intervals (items are resampled, for all raters at once), and each pair's agreement.

    Raises:
        UserError: if there are fewer than two raters, or for what :func:`agreement` refuses.

    >>> result = rater_agreement({"ann": [1, 2, 2], "bob": [1, 2, 1], "cy": [1, 2, 2]})
    >>> round(result.accuracy, 3), result.pairs["ann", "cy"].accuracy
    (0.778, 1.0)
    """
    return _between(raters, bootstrap, lambda a, b: np.ones(len(a), bool))


def annotator_agreement(annotators: Mapping[str, Labels], *, bootstrap: Bootstrap = DEFAULT) -> RaterAgreement:
    """Human-human agreement: :func:`rater_agreement` of each two over the items that both have labelled.

    An item that an annotator left out says nothing of how far annotators agree; a judge's failure, there, does.

    Args:
        annotators: the labels of two humans or more by their names, ``[n]`` each, None where there is none.
        bootstrap: confidence, resamples and seed of the intervals.

    Returns:
        the means with intervals, and each pair's agreement; pairs without a common item are left out.

    Raises:
        UserError: if no two have labelled one item, or for what :func:`rater_agreement` refuses.

    >>> result = annotator_agreement({"ann": [1, 2, None], "bob": [1, None, 2], "cy": [None, 2, 2]})
    >>> result.accuracy, len(result.pairs)
    (1.0, 3)
    """
    return _between(annotators, bootstrap, _both)


def _between(raters: Mapping[str, Labels], bootstrap: Bootstrap, counted: Mask) -> RaterAgreement:
    """``counted``: of two raters' codes, the outcomes that say something of their agreement."""
    if len(raters) < 2:
        raise UserError(f"raters: there are {len(raters)}: give the labels of at least two")
    tables, outcomes, counts = tabulate(raters)
    places = [(i, j) for i, j in combinations(range(len(raters)), 2) if np.any(counted(tables[i], tables[j]))]
    if not places:
        raise UserError("annotators: no item was labelled by two of them: there is nothing to compare")
    couples = [(tables[i], tables[j], counted(tables[i], tables[j])) for i, j in places]

    def mean_kappa(weight: Floats) -> Floats:
        return np.mean([kappa(a, b)(weight * mask) for a, b, mask in couples], axis=0)

    accuracy = estimate(_mean_same(couples), counts, bootstrap, bounds=(0, 1))
    kappas = estimate(mean_kappa, counts, bootstrap, bounds=(-1, 1))
    names, pairs = list(raters), {}
    for (i, j), (_, _, mask) in zip(places, couples, strict=True):
        kept = [(row[i], row[j]) for row, n, yes in zip(outcomes, counts, mask, strict=True) if yes for _ in range(n)]
        pairs[names[i], names[j]] = agreement(*zip(*kept, strict=True), bootstrap=bootstrap)
    return RaterAgreement(*accuracy, *kappas, pairs)


def human_ceiling(judge: Labels, annotators: Mapping[str, Labels], *, bootstrap: Bootstrap = DEFAULT) -> Ceiling:
    """How far a judge is below what a further annotator would reach: gap = mean accuracy human-human - judge-human.

    A judge at the ceiling cannot be told from an annotator by its accuracy: above it, agreement means nothing. Each
    annotator counts on the items that they have labelled.

    Args:
        judge: the judge's labels, ``[n]``; None is a failure, and wrong.
        annotators: the labels of two humans or more by their names, ``[n]`` each, None where there is none.
        bootstrap: confidence, resamples and seed of the intervals.

    Returns:
        both means and the gap, each with its interval.

    Raises:
        UserError: if there are fewer than two annotators, or for what :func:`agreement` refuses.

    >>> result = human_ceiling([1, 2, 1, 1], {"ann": [1, 2, 2, 1], "bob": [1, 2, 2, 2]})
    >>> result.judge, result.human, result.gap
    (0.625, 0.75, 0.125)
    """
    if len(annotators) < 2:
        raise UserError(f"annotators: there are {len(annotators)}: a ceiling needs the labels of at least two")
    (judged, *humans), _, counts = tabulate({"judge": judge, **{f"annotator {n}": v for n, v in annotators.items()}})
    couples = [(a, b, _both(a, b)) for a, b in combinations(humans, 2) if np.any(_both(a, b))]
    if not couples:
        raise UserError("annotators: no item was labelled by two of them: leave the ceiling out")
    # A failure of the judge is no item that it left out.
    of_judge = _mean_same([(judged, human, human != FAILURE) for human in humans if np.any(human != FAILURE)])
    of_humans = _mean_same(couples)
    gap = estimate(lambda w: of_humans(w) - of_judge(w), counts, bootstrap, bounds=(-1, 1), span=2)
    judges = estimate(of_judge, counts, bootstrap, bounds=(0, 1))
    return Ceiling(*judges, *estimate(of_humans, counts, bootstrap, bounds=(0, 1)), *gap)


def blind_spots(
    labels: Labels, human: Labels, groups: Sequence[Hashable], *, bootstrap: Bootstrap = DEFAULT
) -> dict[Hashable, Agreement]:
    """Where a judge goes wrong: :func:`agreement` with the human labels within each group of items.

    Args:
        labels, human: the judge's and the human labels, ``[n]``.
        groups: what each item is about, or any other cut, ``[n]``.
        bootstrap: confidence, resamples and seed of the intervals.

    Returns:
        the agreement in each group, the worst accuracy first.

    Raises:
        UserError: for what :func:`agreement` refuses.

    >>> spots = blind_spots([1, 1, 2, 1], [1, 1, 1, 2], ["maths", "maths", "law", "law"])
    >>> {group: result.accuracy for group, result in spots.items()}
    {'law': 0.0, 'maths': 1.0}
    """
    rows = {"labels": as_list("labels", labels), "human": as_list("human", human), "groups": as_list("groups", groups)}
    same_length(rows)
    found = {}
    for group in dict.fromkeys(rows["groups"]):
        mine = [i for i, other in enumerate(rows["groups"]) if other == group]
        found[group] = agreement(
            [rows["labels"][i] for i in mine], [rows["human"][i] for i in mine], bootstrap=bootstrap
        )
    return dict(sorted(found.items(), key=lambda item: item[1].accuracy))


def tabulate(raters: Mapping[str, Labels]) -> tuple[list[Codes], list[tuple[Hashable, ...]], list[int]]:
    """The distinct outcomes over all raters: each rater's code in every outcome, the outcomes, their counts."""
    columns = {name: as_list(name, labels) for name, labels in raters.items()}
    same_length(columns)
    table = Counter(zip(*columns.values(), strict=True))
    outcomes = list(table)
    known = {label: i for i, label in enumerate(dict.fromkeys(x for row in outcomes for x in row if x is not None))}
    codes = [[FAILURE if row[i] is None else known[row[i]] for row in outcomes] for i in range(len(columns))]
    return [np.array(code) for code in codes], outcomes, list(table.values())


def same_length(columns: Mapping[str, Any]) -> None:
    """Raises unless all have the same number of entries, and at least one."""
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) != 1 or not max(sizes.values()):
        told = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise UserError(f"{told} entries: give one for each item, the same items in the same order")


def as_list(name: str, labels: Any) -> list[Any]:
    """Labels as a list of hashables, failures as None."""
    listed = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    for i, label in enumerate(listed):
        try:
            hash(label)
        except TypeError:
            raise UserError(
                f"{name}, row {i + 1}: a label of type {type(label).__name__}: give one that is hashable"
            ) from None
    return [None if isinstance(label, float) and math.isnan(label) else label for label in listed]


def _same(a: Codes, b: Codes) -> Any:
    return ratio((a == b) & (a != FAILURE), np.ones(len(a)))


def _both(a: Codes, b: Codes) -> Any:
    """Where both gave a label."""
    return (a != FAILURE) & (b != FAILURE)


def _mean_same(couples: Sequence[tuple[Codes, Codes, Any]]) -> Callable[[Floats], Floats]:
    """The mean over pairs of raters of how often they agree, each where its mask counts."""
    each = [ratio(mask & (a == b) & (a != FAILURE), mask) for a, b, mask in couples]
    return lambda weight: np.asarray(np.mean([one(weight) for one in each], axis=0))
