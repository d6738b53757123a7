"""Judges with planted faults: the audit finds each planted value, and its intervals cover as often as they say."""

import numpy as np
import pytest

from jaxalign.judges import (
    Bootstrap,
    agreement,
    calibration,
    combine_orders,
    pairwise_report,
    rater_agreement,
    self_preference,
    verbosity_bias,
)

# Log-odds of naming the response shown first: skill · (is it the better one, ±1) + length · Δ + place; Δ ~ N(0, 1).
JUDGES = {
    "fair": {"skill": 1.5, "length": 0.0, "place": 0.0, "tie": 0.0, "failure": 0.0},
    "position": {"skill": 1.0, "length": 0.0, "place": 0.8, "tie": 0.05, "failure": 0.02},
    "verbose": {"skill": 0.8, "length": 0.9, "place": 0.0, "tie": 0.0, "failure": 0.05},
    "all at once": {"skill": 0.7, "length": 0.5, "place": -0.6, "tie": 0.1, "failure": 0.15},
    "noise": {"skill": 0.0, "length": 0.0, "place": 0.0, "tie": 0.2, "failure": 0.1},
}
FIELDS = (
    *("position_bias", "failures", "ties", "consistency"),
    *("accuracy_first", "accuracy_second", "agreement", "kappa"),
)
NAMES = np.array(["first", "second", "tie", None], object)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def simulate(rng, size, *, skill, length, place, tie, failure):
    """Human labels, differences in length, and verdicts by position shown in both orders."""
    better = rng.choice([1, -1], size)
    difference = rng.normal(size=size)
    verdicts = []
    for side in (1, -1):
        first = rng.random(size) < sigmoid(side * (skill * better + length * difference) + place)
        code = np.where(rng.random(size) < tie, 2, np.where(first, 0, 1))
        verdicts.append(NAMES[np.where(rng.random(size) < failure, 3, code)].tolist())
    return NAMES[(1 - better) // 2].tolist(), difference, *verdicts


def truth(*, skill, length, place, tie, failure):
    """What the audit would find on infinitely many pairs: by quadrature over Δ, no simulation."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    quality = skill + length * nodes  # of the better response's side; the other half of the pairs is its mirror
    one = weights @ np.array([sigmoid(quality + place), sigmoid(-quality - place)]).T  # says better, worse
    two = weights @ np.array([sigmoid(quality - place), sigmoid(-quality + place)]).T
    right, wrong = (weights @ (sigmoid(s * quality + place) * sigmoid(s * quality - place)) for s in (1, -1))
    # The better response is shown first in the first order half of the time, and then second in the second order.
    named_first = (one[0] + two[1]) / 2
    decided, parsed = 1 - tie, 1 - failure
    both = (decided * parsed) ** 2
    luck = both * (right + wrong) / 2  # humans prefer each response in half of the pairs
    return {
        "position_bias": decided * (2 * named_first - 1),
        "failures": failure,
        "ties": parsed * tie,
        "consistency": parsed**2 * (decided**2 * (right + wrong) + tie**2),
        "accuracy_first": parsed * decided * (one[0] + two[0]) / 2,
        "accuracy_second": parsed * decided * (one[0] + two[0]) / 2,
        "agreement": both * right,
        "kappa": (both * right - luck) / (1 - luck),
    }


def inside(value, interval):
    return interval[0] <= value <= interval[1]


@pytest.mark.parametrize("name", JUDGES)
def test_the_audit_finds_what_was_planted(name):
    """20 seeds of 400 pairs: each planted value is in its interval in 16 at least, and the estimates centre on it."""
    planted, seeds = JUDGES[name], 20
    expected = {**truth(**planted), "slope": planted["length"]}
    hits = dict.fromkeys(expected, 0)
    estimates = {field: [] for field in expected}
    for seed in range(seeds):
        human, difference, one, two = simulate(np.random.default_rng(seed), 400, **planted)
        report = pairwise_report(one, two, human, bootstrap=Bootstrap(resamples=1000))
        verbosity = verbosity_bias(one, difference, human, bootstrap=Bootstrap(resamples=300))
        for field, value in expected.items():
            source = verbosity if field == "slope" else report
            hits[field] += int(inside(value, getattr(source, field + "_ci")))
            estimates[field].append(getattr(source, field))
    for field, value in expected.items():
        error = np.std(estimates[field], ddof=1) / np.sqrt(seeds)
        assert abs(np.mean(estimates[field]) - value) <= 3.5 * error, field
    assert min(hits.values()) >= 16, hits


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["position", "all at once"])
def test_intervals_cover_as_often_as_they_say(name):
    """600 audits of 250 pairs: 95 % intervals hold the truth in 92 to 98 % of them (3.4 standard errors)."""
    audits, expected = 600, truth(**JUDGES[name])
    hits = dict.fromkeys(FIELDS, 0)
    for seed in range(audits):
        human, _, one, two = simulate(np.random.default_rng(1000 + seed), 250, **JUDGES[name])
        report = pairwise_report(one, two, human, bootstrap=Bootstrap(resamples=500, seed=seed))
        for field in FIELDS:
            hits[field] += inside(expected[field], getattr(report, field + "_ci"))
    for field, count in hits.items():
        assert 0.92 <= count / audits <= 0.98, (field, count / audits)


def test_the_interval_of_the_slope_covers():
    audits, hits = 200, 0
    planted = {"skill": 0.8, "length": 0.6, "place": 0.4, "tie": 0.0, "failure": 0.05}
    for seed in range(audits):
        human, difference, one, _ = simulate(np.random.default_rng(seed), 200, **planted)
        result = verbosity_bias(one, difference, human, bootstrap=Bootstrap(resamples=300, seed=seed))
        hits += inside(0.6, result.slope_ci)
    assert 0.905 <= hits / audits <= 0.985, hits / audits


def test_a_length_bias_that_humans_share_is_not_the_judges():
    """Humans prefer the longer response at 70 %; one judge repeats them, another adds 20 points."""
    rng = np.random.default_rng(0)
    difference = rng.normal(size=3000)
    longer = np.where(difference > 0, "first", "second")
    shorter = np.where(difference > 0, "second", "first")
    human = np.where(rng.random(3000) < 0.7, longer, shorter)
    honest = np.where(rng.random(3000) < 0.9, human, np.where(human == "first", "second", "first"))
    biased = np.where((human == shorter) & (rng.random(3000) < 1 / 3), longer, human)  # 0.3/3: 10 % of wins, 20 points
    same, worse = (verbosity_bias(judge.tolist(), difference, human.tolist()) for judge in (honest, biased))
    assert inside(0.4 * 0.8, same.bias_ci)
    assert inside(0.4 * 0.8 - 0.4, same.excess_ci)  # noise brings both rates nearer to a half
    assert inside(0.2, worse.excess_ci)


def test_self_preference_is_what_quality_does_not_explain():
    rng = np.random.default_rng(1)
    own = rng.choice(["first", "second"], 2000)
    other = np.where(own == "first", "second", "first")
    human = np.where(rng.random(2000) < 0.6, own, other)
    judge = np.where((human == other) & (rng.random(2000) < 0.5), own, human)
    result = self_preference(judge.tolist(), own.tolist(), human.tolist())
    assert inside(2 * 0.8 - 1, result.bias_ci)
    assert inside(2 * 0.2, result.excess_ci)


def test_noise_of_known_rate_gives_known_kappa():
    """Three judges repeat a fair coin with error e: two agree in (1-e)² + e², and κ is twice that minus one."""
    rng = np.random.default_rng(2)
    coin = rng.random(4000) < 0.5
    labels = {name: (coin ^ (rng.random(4000) < 0.15)).tolist() for name in "abc"}
    result = rater_agreement(labels)
    agree = 0.85**2 + 0.15**2
    assert inside(agree, result.accuracy_ci)
    assert inside(2 * agree - 1, result.kappa_ci)
    assert inside(0.85, agreement(labels["a"], coin).accuracy_ci)


def test_calibration_finds_planted_overconfidence():
    rng = np.random.default_rng(3)
    stated = rng.uniform(0, 1, 4000)
    fair = calibration(stated, (rng.random(4000) < stated).astype(float))
    assert fair.ece < fair.ece_by_luck
    assert inside(0, fair.overconfidence_ci)
    assert inside(1 / 6, fair.brier_ci)  # ∫ p (1 - p) dp
    real = 0.5 + (stated - 0.5) / 2  # the truth is half as sure
    proud = calibration(stated, (rng.random(4000) < real).astype(float))
    assert proud.ece > proud.ece_by_luck
    assert inside(1 / 8, proud.overconfidence_ci)  # E|p - ½| / 2
    assert abs(proud.ece - 1 / 8) < 0.02
    assert inside(1 / 4, proud.brier_ci)  # E q(1 - q) + E (p - q)², q the truth


def test_both_orders_cancel_a_position_bias_in_the_combined_verdict():
    planted = {"skill": 1.5, "length": 0.0, "place": 2.0, "tie": 0.0, "failure": 0.0}
    human, _, one, two = simulate(np.random.default_rng(4), 2000, **planted)
    combined = combine_orders(one, two)
    decided = [verdict for verdict in combined if verdict != "tie"]
    assert abs(decided.count("first") / len(decided) - 0.5) < 0.05
    untied = [(a, b) for a, b in zip(combined, human, strict=True) if a != "tie"]
    assert np.mean([a == b for a, b in untied]) > pairwise_report(one, two, human).accuracy_first + 0.1
