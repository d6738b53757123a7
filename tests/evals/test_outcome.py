"""Figures, differences and the tax against values that are known by other means."""

import json
import math

import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.evals import NotFinite, Outcome, difference, figure, length_controlled_win_rate, tax
from jaxalign.evals.plot import plot_tax
from jaxalign.evals.preference import wins_of_scores, wins_of_verdicts
from jaxalign.judges import combine_orders
from jaxalign.stats import Bootstrap

QUICK = Bootstrap(resamples=500)


def test_a_figure_is_the_ratio_of_sums_under_its_link():
    nats, tokens = np.array([2.0, 10.0]), np.array([1.0, 9.0])
    estimate = figure(Outcome("x/perplexity", nats, tokens, "less", np.exp))
    assert estimate.value == pytest.approx(math.exp(12 / 10))
    assert estimate.ci[0] <= estimate.value <= estimate.ci[1]


@pytest.mark.thorough
def test_intervals_cover_as_often_as_they_say():
    """Of 400 simulated evaluations of 120 items each, means and paired differences; 0.95 ± three standard errors."""
    random = np.random.default_rng(0)
    covered = np.zeros(3)
    for seed in range(400):
        ability = random.normal(size=120)
        old, new = (ability + random.logistic(size=120) + shift > 0 for shift in (0.0, 0.4))
        perplexity = random.gamma(4.0, 0.5, 120)
        bootstrap = QUICK._replace(seed=seed)
        covered[0] += _covers(figure(Outcome.mean("a", old, share=True), bootstrap=bootstrap).ci, 0.5)
        covered[1] += _covers(
            figure(Outcome("b", perplexity, np.ones(120), link=np.exp), bootstrap=bootstrap).ci, math.e**2
        )
        change = difference(Outcome.mean("a", old), Outcome.mean("a", new), bootstrap=bootstrap)
        covered[2] += _covers(change.ci, TRUE_CHANGE)
    assert np.all(np.abs(covered / 400 - 0.95) < 0.033), covered / 400


def _covers(ci, value):
    return ci[0] <= value <= ci[1]


def _true_change():
    """E over ability of P(ability + logistic + 0.4 > 0) - ½, by quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(np.sum(weights * (1 / (1 + np.exp(-(points + 0.4))))) / np.sum(weights) - 0.5)


TRUE_CHANGE = _true_change()


def test_pairing_narrows_a_difference():
    random = np.random.default_rng(1)
    hard = random.normal(size=400)
    old, new = hard, hard + 0.1 + 0.01 * random.normal(size=400)
    paired = difference(Outcome.mean("a", old), Outcome.mean("a", new))
    assert paired.significant
    assert paired.ci[1] - paired.ci[0] < 0.01 < np.std(hard) / 20
    assert paired.change == pytest.approx(np.mean(new - old))


def test_a_share_seen_on_all_items_alike_is_not_certain():
    ones = Outcome.mean("a", np.ones(20), share=True)
    assert figure(ones).ci == (pytest.approx(0.025 ** (1 / 20)), 1.0)  # Clopper and Pearson's bound
    assert not difference(ones, ones).significant


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Outcome.mean("a", []), "a: no items"),
        (lambda: Outcome.mean("a", [1.0, np.nan]), "a: item 2 has no finite value"),
        (lambda: difference(Outcome.mean("a", [1]), Outcome.mean("a", [1, 2])), "same items"),
        (lambda: tax([Outcome.mean("a", [1])], []), "a: measured for one model only"),
        (lambda: tax([Outcome.mean("a", [1])], [Outcome.mean("a", [1])], gains=["b"]), "Figure b was not measured"),
        (lambda: length_controlled_win_rate(np.ones(2), [1], [1, 2]), "Win rate: 2 verdicts"),
    ],
)
def test_mistakes_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_a_win_rate_that_length_explains_is_even_at_equal_length():
    """Judges who count words only: σ(3 tanh(Δ / std)); and ones who also like what is said."""
    random = np.random.default_rng(2)
    lengths, baseline = random.integers(20, 80, 3000), random.integers(10, 60, 3000)
    longer = (lengths - baseline) / np.std(lengths - baseline)
    for taste in (0.0, 1.0):
        wins = (random.random(3000) < 1 / (1 + np.exp(-taste - 3 * np.tanh(longer)))).astype(float)
        rate = length_controlled_win_rate(wins, lengths, baseline, bootstrap=QUICK)
        assert wins.mean() > 0.62
        assert rate.ci[0] < 1 / (1 + math.exp(-taste)) < rate.ci[1]


@pytest.mark.parametrize(
    ("wins", "lengths", "rate"),
    [
        ([1.0] * 20, [5] * 20, 1.0),  # lengths are against answers of 5
        ([1.0] * 5, [1, 2, 5, 8, 9], 1.0),
        ([0.0] * 5, [1, 2, 5, 8, 9], 0.0),
        ([1.0, 1.0, 1.0, 0.0], [9, 8, 5, 1], 1.0),  # wins from 5 on: at 5 too
        ([0.0, 0.0, 1.0, 1.0], [1, 6, 7, 8], 0.0),  # wins from 7 on
        ([0.0, 1.0, 1.0, 1.0], [1, 6, 7, 8], None),  # wins from 6 on, losses up to 1: 5 may be either
        ([1.0, 0.0, 1.0, 0.0], [6, 7, 8, 9], None),  # all longer
        ([1.0, 0.0, 1.0, 0.0], [6, 6, 6, 6], None),
        ([1.0, 0.0, 1.0, 0.0], [4, 3, 2, 1], None),  # all shorter
    ],
)
def test_rates_if_length_separates_wins_from_losses(wins, lengths, rate):
    estimate = length_controlled_win_rate(np.array(wins), lengths, [5] * len(wins), bootstrap=QUICK)
    assert np.isnan([estimate.value, *estimate.ci]).all() if rate is None else estimate.value == rate


def test_an_interval_of_wins_alone_is_that_of_a_share():
    """All of 20 won: Clopper and Pearson's bound, 0.025^(1/20) = 0.832."""
    rate = length_controlled_win_rate(np.ones(20), [1, 9] * 10, [5] * 20)
    assert rate.value == 1
    assert rate.ci == pytest.approx((0.025 ** (1 / 20), 1), abs=1e-6)


def test_a_win_rate_has_no_interval_where_resamples_leave_it_open():
    """Two shorter answers, which a tenth of the resamples lack."""
    wins, lengths = np.array([1.0, 0.0] * 5), [4] * 2 + [6] * 8
    rate = length_controlled_win_rate(wins, lengths, [5] * 10, bootstrap=QUICK)
    assert rate.value == pytest.approx(0.5)
    assert np.isnan(rate.ci).all()


def test_answers_to_one_item_are_resampled_together():
    """Eight answers that win or lose together say no more than one: the interval is as wide as of one."""
    random = np.random.default_rng(5)
    wins, lengths, baseline = (random.random(200) < 0.6).astype(float), random.integers(9, 80, 200), np.full(200, 40)
    one = length_controlled_win_rate(wins, lengths, baseline, bootstrap=QUICK)
    eight = length_controlled_win_rate(
        *(np.repeat(values[:, None], 8, axis=1) for values in (wins, lengths, baseline)), bootstrap=QUICK
    )
    assert (eight.value, *eight.ci) == pytest.approx((one.value, *one.ci), abs=1e-3)  # the ridge weighs less
    assert eight.items == 200


def test_wins_count_ties_as_half():
    assert wins_of_scores(np.array([1.0, 2.0]), np.array([1.0, 3.0])).tolist() == [0.5, 0.0]
    # The model's answer first, then second: it wins, it loses, the order decides, one order failed.
    orders = ["first", "second", "first", "first"], ["second", "first", "first", None]
    verdicts = wins_of_verdicts(combine_orders(*orders))
    assert verdicts.tolist() == [1.0, 0.0, 0.5, 0.5]


def test_the_rate_of_exchange_is_the_ratio_of_changes_in_the_right_directions():
    random = np.random.default_rng(3)
    before = [
        Outcome.mean("mc/accuracy", random.random(500) < 0.7, share=True),
        Outcome("text/perplexity", np.full(300, 20.0), np.full(300, 10.0), "less", np.exp),
        Outcome.mean("hh/reward", random.normal(0, 0.1, 500)),
        Outcome.mean("hh/words", random.normal(50, 0.1, 500), good="neither"),
    ]
    after = [
        Outcome.mean("mc/accuracy", before[0].totals * (random.random(500) < 0.9), share=True),
        Outcome("text/perplexity", np.full(300, 21.0), np.full(300, 10.0), "less", np.exp),
        Outcome.mean("hh/reward", before[2].totals + 0.5),
        Outcome.mean("hh/words", before[3].totals),
    ]
    report = tax(
        before, after, capabilities=["mc/accuracy", "text/perplexity"], gains=["hh/reward", "hh/words"], bootstrap=QUICK
    )
    assert (report.better("mc/accuracy"), report.better("text/perplexity")) == (False, False)
    assert (report.better("hh/reward"), report.better("hh/words")) == (True, None)
    rates = {(exchange.paid, exchange.gained): exchange for exchange in report.exchange}
    lost = -(after[0].totals - before[0].totals).mean()
    assert rates["mc/accuracy", "hh/reward"].rate == pytest.approx(lost / 0.5)
    assert rates["mc/accuracy", "hh/reward"].ci[0] > 0
    assert rates["text/perplexity", "hh/reward"].rate == pytest.approx(0.1 / 0.5)  # nats a token
    assert math.isnan(rates["mc/accuracy", "hh/words"].rate)
    assert report.plain()["differences"]["hh/reward"]["better"]
    back = tax(after, before, capabilities=["mc/accuracy"], gains=["hh/reward"], bootstrap=QUICK)
    assert math.isnan(back.exchange[0].rate)  # nothing was gained, so no price exists
    assert back.plain()["exchange"][0]["ci"] is None


def test_the_rate_of_exchange_of_figures_of_the_same_items_is_resampled_together():
    """Every item pays half of what it gains: so does every resample."""
    gained = np.random.default_rng(4).normal(0.5, 0.3, 200)
    before = [Outcome.mean("a/skill", np.zeros(200)), Outcome.mean("a/reward", np.zeros(200))]
    after = [Outcome.mean("a/skill", -gained / 2), Outcome.mean("a/reward", gained)]
    (exchange,) = tax(before, after, capabilities=["a/skill"], gains=["a/reward"], bootstrap=QUICK).exchange
    assert (exchange.rate, *exchange.ci) == pytest.approx((0.5, 0.5, 0.5))


def test_a_gain_of_a_few_flips_makes_a_report():
    """Some resamples hold none of the flips: nothing was gained in them, and division by 0 has no value."""
    gained, right = np.zeros(50), np.ones(50)
    gained[:4], right[10:12] = 1, 0
    report = tax(
        [Outcome.mean("x/score", np.zeros(50), share=True), Outcome.mean("y/accuracy", np.ones(50), share=True)],
        [Outcome.mean("x/score", gained, share=True), Outcome.mean("y/accuracy", right, share=True)],
        capabilities=["y/accuracy"],
        gains=["x/score"],
    )
    (rate,) = report.exchange
    assert rate.rate == pytest.approx(0.5)
    assert 0 <= rate.ci[0] < 0.5 < rate.ci[1]
    json.dumps(report.plain(), allow_nan=False)


def test_a_figure_without_bounds_makes_a_report(tmp_path):
    old = Outcome("t/perplexity", np.full(5, 20.0), np.full(5, 10.0), "less", np.exp)
    new = Outcome("t/perplexity", np.full(5, 8000.0), np.full(5, 10.0), "less", np.exp)
    other = Outcome.mean("t/accuracy", np.ones(5), share=True)
    with np.errstate(over="ignore", invalid="ignore"):
        report = tax([old, other], [new, other])
    plain = json.loads(json.dumps(report.plain(), allow_nan=False))
    assert plain["differences"]["t/perplexity"]["after"] is None
    assert plain["differences"]["t/perplexity"]["before"] == pytest.approx(math.e**2)
    plot_tax(report, tmp_path / "tax.png", confidence=0.95)
    assert (tmp_path / "tax.png").exists()


def test_one_item_says_nothing_of_how_sure_it_is():
    assert all(map(math.isnan, figure(Outcome.mean("r/reward", [1.0])).ci))
    change = difference(Outcome.mean("r/reward", [0.0]), Outcome.mean("r/reward", [0.01]))
    assert all(map(math.isnan, change.ci))
    assert not change.significant
    low, high = figure(Outcome.mean("x/accuracy", [1.0], share=True)).ci  # Clopper and Pearson's, of a share
    assert (low, high) == (pytest.approx(0.025), 1.0)


def test_an_item_without_a_finite_value_and_a_figure_twice_are_refused():
    with pytest.raises(NotFinite, match="item 2 has no finite value"):
        Outcome.mean("r/reward", [0.0, math.nan])
    twice = [Outcome.mean("x/accuracy", [1.0, 0.0]), Outcome.mean("x/accuracy", [1.0, 1.0])]
    with pytest.raises(UserError, match="x/accuracy is measured twice"):
        tax(twice, twice)
