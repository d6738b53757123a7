"""RLAIF in small: a good judge raises the known reward as humans do, and a biased judge raises the length."""

import pytest

from tests.campaigns.rlaif import LABELLERS, Size, run_labellers, summary

pytestmark = pytest.mark.learning


@pytest.fixture(scope="module")
def results():
    return list(run_labellers(range(3), Size(prompts=384, held=256, steps=40, learning_rate=4e-3)))


def test_a_good_judge_comes_near_human_labels(results):
    means = {who: measures["reward"][0] for who, measures in summary(results).items()}
    assert means["human"] > means["start"] + 0.1
    assert means["good judge"] > means["start"] + 0.7 * (means["human"] - means["start"])


def test_a_biased_judge_passes_its_bias_on(results):
    for seed in range(3):
        runs = {result["labels"]: result for result in results if result["seed"] == seed}
        assert runs["biased judge"]["length"] > runs["human"]["length"] + 1
        assert runs["biased judge"]["reward"] < runs["human"]["reward"]


def test_the_audit_detects_the_bias(results):
    for result in results:
        if result["labels"] == "biased judge":
            assert result["verbosity_excess_ci"][0] > 0.2
        if result["labels"] == "good judge":
            assert result["verbosity_excess_ci"][0] < 0.05
            assert result["agreement"] > 0.6


def test_finished_runs_are_not_repeated():
    done = {(seed, who) for seed in range(3) for who in ("start", *LABELLERS)}
    assert list(run_labellers(range(3), Size(), done)) == []
