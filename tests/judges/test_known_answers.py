"""The measurements on published verdicts, against the figures in the authors' own files; and small cases by hand."""

import csv
import inspect
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from jaxalign import judges
from jaxalign.errors import UserError
from jaxalign.judges import (
    Bootstrap,
    agreement,
    annotator_agreement,
    blind_spots,
    calibration,
    combine_orders,
    human_ceiling,
    local,
    pairwise_report,
    rater_agreement,
    self_preference,
    trust_warnings,
    verbosity_bias,
)


def test_every_public_function_has_a_doctest():
    functions = [f for f in vars(judges).values() if inspect.isfunction(f)]
    functions += [f for f in vars(local).values() if inspect.isfunction(f) and f.__module__ == local.__name__]
    functions = [f for f in functions if not f.__name__.startswith("_")]
    assert len(functions) > 8
    assert [f.__name__ for f in functions if ">>>" not in f.__doc__] == []


@pytest.fixture(scope="module")
def llmbar(shared_data):
    """GPT-4's verdicts by position shown, in both orders; the human labels; the authors' statistics."""
    folder = shared_data / "llmbar" / "MT-Bench" / "GPT-4" / "Vanilla_NoRules"
    rows = json.loads((folder / "result.json").read_text())
    statistics = json.loads((folder / "statistics.json").read_text())
    name = {"1": "first", "2": "second", 1: "first", 2: "second"}
    swapped = {"first": "second", "second": "first"}
    first = [name[row["results"][0]["swap = False"]["winner"]] for row in rows]
    # `winner` names the response; where the order was swapped it stood in the other position.
    second = [swapped[name[row["results"][0]["swap = True"]["winner"]]] for row in rows]
    return rows, first, second, [name[row["label"]] for row in rows], statistics


def test_llmbar(llmbar):
    rows, first, second, human, statistics = llmbar
    positions = {"Output (a)": "first", "Output (b)": "second"}  # the raw completions name positions
    assert second == [positions[row["results"][0]["swap = True"]["completion"][0]] for row in rows]
    report = pairwise_report(first, second, human)
    assert report.pairs == 200
    assert statistics["correct_False"] == f"{report.accuracy_first * 200:.0f} / 200 = 79.5%"
    assert statistics["correct_True"] == f"{report.accuracy_second * 200:.0f} / 200 = 82.5%"
    assert statistics["equal"] == f"{report.consistency * 200:.0f} / 200 = 87.0%"
    assert statistics["correct_both"] == f"{report.agreement * 200:.0f} / 200 = 74.5%"
    assert (report.accuracy_first, report.accuracy_second, report.consistency) == (159 / 200, 165 / 200, 174 / 200)
    assert (report.failures, report.ties) == (0, 0)
    back = [{"first": "second", "second": "first"}[verdict] for verdict in second]
    assert agreement(first, back).kappa == pytest.approx(statistics["kappa_agreement"], abs=1e-12)
    # The judge's wins for the first position: 102 of 200 in one order, 98 in the other.
    assert report.position_bias == (first.count("first") + second.count("first") - 200) / 200
    for field in ("consistency", "accuracy_first", "accuracy_second", "agreement"):
        low, high = getattr(report, field + "_ci")
        share = getattr(report, field)
        wald = 1.96 * math.sqrt(share * (1 - share) / 200)
        assert (low, high) == pytest.approx((share - wald, share + wald), abs=0.012)


@pytest.mark.parametrize(
    ("file", "humans", "accuracy", "kappa"), [("gpt4", 0.970, 0.936, 0.873), ("mistralguard", 0.892, 0.767, 0.571)]
)
def test_xstest(shared_data, file, humans, accuracy, kappa):
    with (shared_data / "xstest" / f"xstest_v2_completions_{file}_gpteval.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    one, two, final, judge = (
        [row[c] for row in rows] for c in ("annotation_1", "annotation_2", "final_label", "gpt4_label")
    )
    assert len(rows) == 450
    between = agreement(one, two)
    assert round(between.kappa, 3) == humans
    assert between.accuracy == sum(row["agreement"] == "True" for row in rows) / 450
    result = agreement(judge, final)
    assert round(result.accuracy, 3) == accuracy
    assert round(result.kappa, 3) == kappa
    assert result.kappa_ci[0] < result.kappa < result.kappa_ci[1]
    assert rater_agreement({"one": one, "two": two}).kappa == pytest.approx(between.kappa, abs=1e-12)
    ceiling = human_ceiling(judge, {"one": one, "two": two})
    assert ceiling.human == between.accuracy
    assert ceiling.gap_ci[0] > 0  # GPT-4 is below the annotators' agreement in both files
    spots = blind_spots(judge, final, [row["type"] for row in rows])
    assert sum(sum(spot.counts.values()) for spot in spots.values()) == 450
    assert next(iter(spots.values())).accuracy == min(spot.accuracy for spot in spots.values())


def kappa_by_hand(a, b):
    labels = set(a) | set(b)
    observed = np.mean([x == y for x, y in zip(a, b, strict=True)])
    expected = sum(np.mean([x == k for x in a]) * np.mean([y == k for y in b]) for k in labels)
    return (observed - expected) / (1 - expected)


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_symmetric_and_blind_to_names(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    b[:30] = a[:30]
    result, other = agreement(a, b), agreement(b, a)
    assert result.kappa == pytest.approx(kappa_by_hand(a, b), abs=1e-12)
    assert (result.accuracy, result.kappa) == pytest.approx((other.accuracy, other.kappa))
    names = [("x", 1), frozenset(), "tie", 2.5]
    renamed = agreement([names[i] for i in a], [names[i] for i in b])
    assert (renamed.accuracy, renamed.kappa, renamed.kappa_ci) == (result.accuracy, result.kappa, result.kappa_ci)
    assert sum(result.counts.values()) == 60


def test_a_failure_is_not_a_label():
    result = agreement([None, None, "a", float("nan")], [None, "a", "a", "a"])
    assert (result.accuracy, result.failures) == (0.25, 3)
    assert result.counts == {(None, None): 1, (None, "a"): 2, ("a", "a"): 1}
    # p_e: a has "a" in 1/4, b in 3/4
    assert result.kappa == pytest.approx((1 / 4 - 3 / 16) / (1 - 3 / 16))
    nothing = agreement([None], [None])
    assert (nothing.accuracy, nothing.kappa) == (0, 0)


def test_kappa_where_luck_explains_everything():
    result = agreement(["a"] * 10, ["a"] * 10)
    assert result.accuracy == 1
    assert math.isnan(result.kappa)


def test_an_interval_is_never_of_width_zero():
    """No failure among n says that failures are rarer than 1 - 0.025^(1/n), not that there are none."""
    report = pairwise_report(["first"] * 50, ["second"] * 50, ["first"] * 50)
    rare = 1 - 0.025 ** (1 / 50)
    assert report.failures_ci == report.ties_ci == pytest.approx((0, rare))
    for field in ("consistency", "accuracy_first", "accuracy_second", "agreement"):
        assert getattr(report, field) == 1
        assert getattr(report, field + "_ci") == pytest.approx((1 - rare, 1))
    assert report.position_bias_ci == pytest.approx((-2 * rare, 2 * rare))
    perfect = agreement([0, 1] * 25, [0, 1] * 25)
    assert perfect.kappa_ci == pytest.approx((1 - 2 * rare, 1))


def test_failures_stay_in_every_denominator_and_never_become_labels():
    report = pairwise_report(["first", None, None, "tie"], ["second", "second", None, None], ["first"] * 4)
    assert report.failures == 4 / 8
    assert report.consistency == 0.25  # not 1 of 1; and failed twice is not consistent
    assert report.accuracy_first == 0.25
    assert report.accuracy_second == 0.5
    assert report.agreement == 0.25
    assert report.ties == 1 / 8
    assert report.position_bias == (1 - 2) / 4
    failed = pairwise_report([None] * 3, [None] * 3)
    assert failed.consistency == 0
    assert math.isnan(failed.position_bias)
    assert failed.agreement is None


def test_pairs_without_a_human_label_leave_accuracy_only():
    report = pairwise_report(["first", "second"], ["second", "first"], ["first", None])
    assert (report.accuracy_first, report.accuracy_second, report.agreement, report.consistency) == (1, 1, 1, 1)
    assert pairwise_report(["first"], ["first"], [None]).agreement is None


def test_combined_verdicts():
    table = {
        ("first", "second"): "first",
        ("second", "first"): "second",
        ("tie", "tie"): "tie",
        ("first", "first"): "tie",
        ("first", "tie"): "tie",
        ("tie", "first"): "tie",
        ("first", None): None,
        (None, None): None,
    }
    one, two = zip(*table, strict=True)
    assert combine_orders(one, two) == list(table.values())


def test_bias_counts():
    winners, human = ["first", "second", "tie", None, "first"], ["first", "first", "tie", "first", "second"]
    result = verbosity_bias(winners, [10, -10, 5, 5, 0], human)
    assert (result.pairs, result.wins, result.losses, result.bias) == (4, 0.5, 0, 0.5)
    assert result.excess == 0.5 - 1 / 4  # humans: the longer one in 2, the shorter in 1 of 4
    family = self_preference(winners, ["first", "second", None, "tie", "second"], human)
    assert (family.pairs, family.wins, family.losses) == (3, 2 / 3, 1 / 3)
    assert family.excess == pytest.approx(1 / 3 - 1 / 3)


def test_calibration_by_hand():
    result = calibration([0.1, 0.3, 0.8, 1.0, None], [0, 1, 0.5, 1, 1], bins=2)
    assert result.brier == pytest.approx((0.01 + 0.49 + 0.09 + 0) / 4)
    assert result.ece == pytest.approx((abs(0.4 - 1) + abs(1.8 - 1.5)) / 4)
    assert result.failures == 1
    assert [bin.size for bin in result.bins] == [2, 2]
    assert (result.bins[1].probability, result.bins[1].outcome) == pytest.approx((0.9, 0.75))
    # sides: ½-0.1, ½-0.3, 0.3, ½; right by ½, -½, 0, ½
    assert result.overconfidence == pytest.approx((0.4 - 0.5 + 0.2 + 0.5 + 0.3 - 0 + 0.5 - 0.5) / 4)


def test_the_example_of_the_documentation_runs(capsys):
    text = (Path(__file__).parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")
    example = re.search(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)[1]
    exec(compile(example, "docs/judges.md", "exec"), {})
    assert "not shown to be better than luck" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: agreement([1], [1, 2]), "labels_a has 1, labels_b has 2 entries"),
        (lambda: agreement([], []), "labels_a has 0"),
        (lambda: agreement([1, []], [1, 2]), "labels_a, row 2: the label is of type list"),
        (lambda: agreement([1], [1], bootstrap=Bootstrap(confidence=95)), "confidence between 0 and 1"),
        (lambda: pairwise_report(["first", "A"], ["first"] * 2), "first_order, row 2: 'A' is not a verdict"),
        (lambda: pairwise_report(["first"], ["first"] * 2), "first_order has 1, second_order has 2"),
        (lambda: pairwise_report(["first"], ["first"], ["win"]), "human, row 1"),
        (lambda: rater_agreement({"a": [1]}), "Give the labels of at least two"),
        (lambda: human_ceiling([1], {"a": [1]}), "Give the labels of at least two"),
        (lambda: verbosity_bias(["first"], [0]), "length_difference is 0 in every pair"),
        (lambda: verbosity_bias(["first"], [float("nan")]), "not finite"),
        (lambda: verbosity_bias(["first"], ["long"]), "not a list of numbers"),
        (lambda: verbosity_bias(["first"], [1, 2]), "winners has 1"),
        (lambda: self_preference(["first"], [None]), "own: no pair has exactly one response of the family"),
        (lambda: calibration([1.5], [1]), "probabilities, row 1: 1.5 is not between 0 and 1"),
        (lambda: calibration([0.5, 0.5], [1, None]), "outcomes, row 2: None"),
        (lambda: calibration([None], [1]), "probabilities: all are failures"),
        (lambda: calibration([0.5], [1], bins=0), "bins is 0"),
    ],
)
def test_mistakes_are_refused_with_a_sentence(call, words):
    with pytest.raises(UserError) as error:
        call()
    assert words in str(error.value)


def test_a_good_judge_raises_no_warning():
    human = ["first", "second"] * 50
    back = ["second", "first"] * 50
    report = pairwise_report(human, back, human)
    even = verbosity_bias(human, [1, 1, -1, -1] * 25, human)
    assert trust_warnings(report, verbosity=even, lead=(0.5, (0.4, 0.6))) == []


def test_judges_that_err_are_not_called_biased():
    """Where humans prefer what is shorter, coin flips and noisy copies of humans look biased in comparison."""
    random = np.random.default_rng(0)
    longer = random.normal(size=400)
    human = ["second" if d > 0 else "first" for d in longer]
    own = ["first" if d > 0 else "second" for d in longer]
    flips = [("first", "second")[i] for i in random.integers(2, size=400)]
    noisy = [h if random.random() < 0.8 else f for h, f in zip(human, flips, strict=True)]
    report = pairwise_report(human, [{"first": "second", "second": "first"}[h] for h in human], human)
    for judge in (flips, noisy):
        length, family = verbosity_bias(judge, longer, human), self_preference(judge, own, human)
        assert length.excess_ci[0] > 0.1
        assert family.excess_ci[0] > 0.1
        assert trust_warnings(report, verbosity=length, own=family) == []
    likes = [
        "first" if d > 0 or (h == "first" and random.random() < 0.5) else "second"
        for d, h in zip(longer, human, strict=True)
    ]
    warnings = " ".join(trust_warnings(report, verbosity=verbosity_bias(likes, longer, flips)))
    assert "Verbosity bias: the longer response is favoured beyond what the human labels explain" in warnings


def test_labels_of_one_kind_say_nothing_of_luck():
    report = pairwise_report(["first"] * 50, ["second"] * 50, ["first"] * 50)
    (warning,) = trust_warnings(report)
    assert warning.startswith("Human labels: all are the same")


def test_annotators_who_leave_items_out_do_not_disagree():
    random = np.random.default_rng(0)
    truth = random.integers(2, size=300)
    people = {f"p{k}": [None if i % 3 == k else int(t) for i, t in enumerate(truth)] for k in range(3)}
    assert annotator_agreement(people).accuracy == 1
    assert annotator_agreement(people).kappa == pytest.approx(1)
    ceiling = human_ceiling([int(t) for t in truth], people)
    assert (ceiling.judge, ceiling.human, ceiling.gap) == (1, 1, 0)
    half = human_ceiling([int(t) if i % 2 else None for i, t in enumerate(truth)], people)
    assert half.judge == pytest.approx(0.5), "a judge's failure is wrong"
    with pytest.raises(UserError, match="no item was labelled by two of them"):
        annotator_agreement({"a": [1, None], "b": [None, 1]})


def test_warnings_name_each_fault():
    human = ["first", "second"] * 100
    report = pairwise_report(["first"] * 180 + [None] * 20, ["first"] * 200, human)
    longer = verbosity_bias(["first"] * 100 + ["second"] * 100, [1] * 100 + [-1] * 100, human)
    family = self_preference(["first"] * 200, ["first"] * 200)
    ceiling = human_ceiling(human, {"a": human, "b": human})
    spots = blind_spots(["first"] * 180 + ["tie"] * 20, human, ["law"] * 180 + ["maths"] * 20)
    able = pairwise_report(human, ["second", "first"] * 100, human)
    sure = calibration([0.99] * 200, [1, 0] * 100)
    warnings = trust_warnings(
        report, verbosity=longer, own=family, lead=(0.0, (-0.1, 0.1)), ceiling=ceiling, calibration=sure
    ) + trust_warnings(able, spots=spots)
    titles = [sentence.partition(":")[0] for sentence in warnings]
    assert titles == [
        "Consistency", "Position bias", "Failures", "Verbosity bias", "Self-preference", "Agreement", "Circularity",
        "Ceiling", "Calibration", "Blind spot on 'maths'", "Blind spot on 'law'",
    ]  # fmt: skip
    assert all("nan" not in sentence for sentence in warnings)
