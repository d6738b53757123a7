"""Agreement of two raters and of several, and the ceiling that human disagreement sets for a judge."""

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
    """Agreement of two raters. The intervals are by bootstrap over the items.

    Attributes:
        accuracy: Share of all items on which both give the same label.
        accuracy_ci: Its interval.
        kappa: Cohen's κ; NaN if both raters give one and the same label to all items.
        kappa_ci: Its interval.
        counts: Number of items by pair of labels (of a, of b). Failures are None.
        failures: Number of items on which a, b or both failed. They stay in every denominator.
    """

    accuracy: float
    accuracy_ci: Interval
    kappa: float
    kappa_ci: Interval
    counts: dict[tuple[Hashable, Hashable], int]
    failures: int


@dataclass(frozen=True)
class RaterAgreement:
    """Agreement of several raters: the mean over all pairs of raters."""

    accuracy: float
    accuracy_ci: Interval
    kappa: float
    kappa_ci: Interval
    pairs: dict[tuple[str, str], Agreement]


@dataclass(frozen=True)
class Ceiling:
    """A judge compared with annotators who disagree with each other.

    Attributes:
        judge: Mean accuracy of the judge against each annotator.
        judge_ci: Its interval.
        human: Mean accuracy of one annotator against another.
        human_ci: Its interval.
        gap: human - judge, over the same items.
        gap_ci: Its interval, which is paired.
    """

    judge: float
    judge_ci: Interval
    human: float
    human_ci: Interval
    gap: float
    gap_ci: Interval


def agreement(labels_a: Labels, labels_b: Labels, *, bootstrap: Bootstrap = DEFAULT) -> Agreement:
    """Computes accuracy p_o = Σ_i [a_i = b_i] / n and Cohen's κ = (p_o - p_e) / (1 - p_e), p_e = Σ_k p_a(k) p_b(k).

    A tie is a label. None or NaN is a failure: it agrees with nothing, not even with another failure, and stays in n.
    Source: Cohen 1960, https://doi.org/10.1177/001316446002000104, eq. 1.

    Args:
        labels_a: A label for each item, any hashable, ``[n]``.
        labels_b: The other rater's labels, ``[n]``.
        bootstrap: Settings of the intervals.

    Returns:
        Accuracy, kappa, their intervals, and the table of counts.

    Raises:
        UserError: If the lists differ in length, are empty, or contain something unhashable.

    >>> result = agreement(["yes", "no", "no", None], ["yes", "no", "yes", "no"])
    >>> result.accuracy, round(result.kappa, 3), result.failures
    (0.5, 0.2, 1)
    >>> result.counts[("no", "yes")]
    1
    """
    (a, b), outcomes, counts = tabulate({"labels_a": labels_a, "labels_b": labels_b})
    accuracy, accuracy_ci = estimate_mean(same(a, b), counts, bootstrap)
    value, kappa_ci = estimate(kappa(a, b), counts, bootstrap, bounds=(-1, 1))
    if accuracy == 1 and not math.isnan(value):
        # All resamples agree fully. The lower end of kappa then follows from that of the accuracy.
        luck = float(np.sum((np.bincount(a, counts) / sum(counts)) ** 2))
        kappa_ci = ((accuracy_ci[0] - luck) / (1 - luck), 1.0)
    failures = sum(n for outcome, n in zip(outcomes, counts, strict=True) if None in outcome)
    table = {(first, second): n for (first, second), n in zip(outcomes, counts, strict=True)}
    return Agreement(accuracy, accuracy_ci, value, kappa_ci, table, failures)


def rater_agreement(raters: Mapping[str, Labels], *, bootstrap: Bootstrap = DEFAULT) -> RaterAgreement:
    """Computes accuracy and κ of :func:`agreement`, averaged over all pairs of raters.

    This is the inter-judge agreement. For human annotators, who leave items out, use :func:`annotator_agreement`.
    Source of the mean of pairwise kappas: Light 1971, https://doi.org/10.1037/h0031643.

    Args:
        raters: The labels of two raters or more by name, ``[n]`` each.
        bootstrap: Settings of the intervals. Items are resampled for all raters at once.

    Returns:
        The means with intervals, and the agreement of each pair.

    Raises:
        UserError: If there are fewer than two raters, or as in :func:`agreement`.

    >>> result = rater_agreement({"ann": [1, 2, 2], "bob": [1, 2, 1], "cy": [1, 2, 2]})
    >>> round(result.accuracy, 3), result.pairs["ann", "cy"].accuracy
    (0.778, 1.0)
    """
    return _mean_agreement(raters, bootstrap, lambda a, b: np.ones(len(a), bool))


def annotator_agreement(annotators: Mapping[str, Labels], *, bootstrap: Bootstrap = DEFAULT) -> RaterAgreement:
    """Computes human-human agreement: :func:`rater_agreement` of every two over the items that both have labelled.

    An item without a label does not count as a disagreement of annotators. A judge's failure does, in
    :func:`rater_agreement`.

    Args:
        annotators: The labels of two humans or more by name, ``[n]`` each, None where there is none.
        bootstrap: Settings of the intervals.

    Returns:
        The means with intervals, and the agreement of each pair that has a common item.

    Raises:
        UserError: If no two have labelled a common item, or as in :func:`rater_agreement`.

    >>> result = annotator_agreement({"ann": [1, 2, None], "bob": [1, None, 2], "cy": [None, 2, 2]})
    >>> result.accuracy, len(result.pairs)
    (1.0, 3)
    """
    return _mean_agreement(annotators, bootstrap, _both_labelled)


def _mean_agreement(raters: Mapping[str, Labels], bootstrap: Bootstrap, mask_of: Mask) -> RaterAgreement:
    """Averages over pairs of raters. ``mask_of`` returns the outcomes that count, from two raters' codes."""
    tables, outcomes, counts = tabulate(raters)
    couples = _couples(dict(zip(raters, tables, strict=True)), mask_of)
    coded = list(couples.values())

    def mean_kappa(weight: Floats) -> Floats:
        return np.mean([kappa(a, b)(weight * mask) for a, b, mask in coded], axis=0)

    accuracy = estimate(_mean_accuracy(coded), counts, bootstrap, bounds=(0, 1))
    kappas = estimate(mean_kappa, counts, bootstrap, bounds=(-1, 1))
    columns = dict(zip(raters, zip(*outcomes, strict=True), strict=True))
    pairs = {}
    for (one, two), (_, _, mask) in couples.items():
        repeats = counts * mask
        labels = ([x for x, n in zip(columns[name], repeats, strict=True) for _ in range(n)] for name in (one, two))
        pairs[one, two] = agreement(*labels, bootstrap=bootstrap)
    return RaterAgreement(*accuracy, *kappas, pairs)


def human_ceiling(judge: Labels, annotators: Mapping[str, Labels], *, bootstrap: Bootstrap = DEFAULT) -> Ceiling:
    """Computes how far a judge is below the annotators: gap = mean accuracy human-human - mean accuracy judge-human.

    A gap of 0 is the ceiling: accuracy cannot separate such a judge from an annotator. Each annotator counts on the
    items that they have labelled.

    Args:
        judge: The judge's labels, ``[n]``. None is a failure, and wrong.
        annotators: The labels of two humans or more by name, ``[n]`` each, None where there is none.
        bootstrap: Settings of the intervals.

    Returns:
        Both means and the gap, with intervals.

    Raises:
        UserError: If there are fewer than two annotators, or as in :func:`agreement`.

    >>> result = human_ceiling([1, 2, 1, 1], {"ann": [1, 2, 2, 1], "bob": [1, 2, 2, 2]})
    >>> result.judge, result.human, result.gap
    (0.625, 0.75, 0.125)
    """
    named = {f"annotator {name}": labels for name, labels in annotators.items()}
    (judged, *humans), _, counts = tabulate({"judge": judge, **named})
    of_humans = _mean_accuracy(list(_couples(dict(zip(named, humans, strict=True)), _both_labelled).values()))
    # A failure of the judge counts as wrong, so only the annotator's label decides which items count.
    of_judge = _mean_accuracy([(judged, human, human != FAILURE) for human in humans if np.any(human != FAILURE)])
    gap = estimate(lambda w: of_humans(w) - of_judge(w), counts, bootstrap, bounds=(-1, 1), span=2)
    judges = estimate(of_judge, counts, bootstrap, bounds=(0, 1))
    return Ceiling(*judges, *estimate(of_humans, counts, bootstrap, bounds=(0, 1)), *gap)


def blind_spots(
    labels: Labels, human: Labels, groups: Sequence[Hashable], *, bootstrap: Bootstrap = DEFAULT
) -> dict[Hashable, Agreement]:
    """Computes the :func:`agreement` of a judge with the human labels within each group of items.

    Args:
        labels: The judge's labels, ``[n]``.
        human: The human labels, ``[n]``.
        groups: The group of each item, such as its topic, ``[n]``.
        bootstrap: Settings of the intervals.

    Returns:
        The agreement in each group, the lowest accuracy first.

    Raises:
        UserError: As in :func:`agreement`.

    >>> spots = blind_spots([1, 1, 2, 1], [1, 1, 1, 2], ["maths", "maths", "law", "law"])
    >>> {group: result.accuracy for group, result in spots.items()}
    {'law': 0.0, 'maths': 1.0}
    """
    columns = {"labels": labels, "human": human, "groups": groups}
    columns = {name: as_list(name, column) for name, column in columns.items()}
    same_length(columns)
    by_group: dict[Hashable, list[tuple[Hashable, Hashable]]] = {}
    for label, truth, group in zip(*columns.values(), strict=True):
        by_group.setdefault(group, []).append((label, truth))
    spots = {group: agreement(*zip(*rows, strict=True), bootstrap=bootstrap) for group, rows in by_group.items()}
    return dict(sorted(spots.items(), key=lambda item: item[1].accuracy))


def tabulate(raters: Mapping[str, Labels]) -> tuple[list[Codes], list[tuple[Hashable, ...]], list[int]]:
    """Returns each rater's code in every distinct outcome over all raters, the outcomes, and their counts."""
    columns = {name: as_list(name, labels) for name, labels in raters.items()}
    same_length(columns)
    table = Counter(zip(*columns.values(), strict=True))
    outcomes = list(table)
    known = dict.fromkeys(label for row in outcomes for label in row if label is not None)
    code_of = {None: FAILURE, **{label: i for i, label in enumerate(known)}}
    codes = [np.array([code_of[label] for label in column]) for column in zip(*outcomes, strict=True)]
    return codes, outcomes, list(table.values())


def same_length(columns: Mapping[str, Any]) -> None:
    """Raises UserError unless all columns have the same number of entries, and at least one."""
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) != 1 or not max(sizes.values()):
        listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise UserError(f"{listed} entries. Give one for each item, with the items in the same order.")


def as_list(name: str, labels: Any) -> list[Any]:
    """Returns labels as a list of hashables, with None for failures."""
    listed = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    for i, label in enumerate(listed):
        try:
            hash(label)
        except TypeError:
            kind = type(label).__name__
            raise UserError(f"{name}, row {i + 1}: the label is of type {kind}. Give a hashable label.") from None
    return [None if isinstance(label, float) and math.isnan(label) else label for label in listed]


def same(a: Codes, b: Codes) -> Any:
    """Returns where two labels are equal and neither is a failure."""
    return (a == b) & (a != FAILURE)


def estimate_mean(
    values: Any, counts: Any, bootstrap: Bootstrap, bounds: Interval = (0, 1), *, denominators: Any = 1
) -> tuple[float, Interval]:
    """Estimates Σ n·value / Σ n·denominator over outcomes that occurred n times, with its interval.

    Args:
        values: A number for each outcome, ``[M]``.
        counts: How often each outcome occurred, ``[M]``.
        bootstrap: Settings of the interval.
        bounds: Smallest and largest possible value of the mean.
        denominators: A number for each outcome, ``[M]``, or one number for all.
    """
    mean = ratio(values, denominators * np.ones(len(counts)))
    return estimate(mean, counts, bootstrap, bounds=bounds, span=bounds[1] - bounds[0])


def _couples(coded: Mapping[str, Codes], mask_of: Mask) -> dict[tuple[str, str], tuple[Codes, Codes, Any]]:
    """Returns the codes of every two raters with a common item, and the outcomes that count."""
    if len(coded) < 2:
        raise UserError(f"Agreement needs two raters, not {len(coded)}. Give the labels of at least two.")
    masks = {(one, two): mask_of(coded[one], coded[two]) for one, two in combinations(coded, 2)}
    couples = {(a, b): (coded[a], coded[b], mask) for (a, b), mask in masks.items() if np.any(mask)}
    if not couples:
        raise UserError("annotators: no item was labelled by two of them. Omit this measurement.")
    return couples


def _both_labelled(a: Codes, b: Codes) -> Any:
    return (a != FAILURE) & (b != FAILURE)


def _mean_accuracy(couples: Sequence[tuple[Codes, Codes, Any]]) -> Callable[[Floats], Floats]:
    """Returns the statistic of the accuracy averaged over pairs of raters, each over the outcomes of its mask."""
    statistics = [ratio(mask & same(a, b), mask) for a, b, mask in couples]
    return lambda weight: np.asarray(np.mean([statistic(weight) for statistic in statistics], axis=0))
