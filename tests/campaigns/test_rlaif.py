"""The campaign in small: the known reward goes up with a good judge as with humans, length with a biased one."""

import pytest

from tests.campaigns.rlaif import LABELLERS, Size, runs, summary

pytestmark = pytest.mark.learning


@pytest.fixture(scope="module")
def found():
    return list(runs(range(3), Size(prompts=384, held=256, steps=40, learning_rate=4e-3)))


def test_a_good_judge_comes_near_human_labels(found):
    means = {who: measures["reward"][0] for who, measures in summary(found).items()}
    assert means["human"] > means["start"] + 0.1
    assert means["good judge"] > means["start"] + 0.7 * (means["human"] - means["start"])


def test_a_biased_judge_passes_its_bias_on(found):
    for seed in range(3):
        mine = {result["labels"]: result for result in found if result["seed"] == seed}
        assert mine["biased judge"]["length"] > mine["human"]["length"] + 1
        assert mine["biased judge"]["reward"] < mine["human"]["reward"]


def test_the_audit_would_have_told(found):
    for result in found:
        if result["labels"] == "biased judge":
            assert result["verbosity_excess_ci"][0] > 0.2
        if result["labels"] == "good judge":
            assert result["verbosity_excess_ci"][0] < 0.05
            assert result["agreement"] > 0.6


def test_what_is_done_is_not_done_again(found):
    done = {(seed, who) for seed in range(3) for who in ("start", *LABELLERS)}
    assert list(runs(range(3), Size(), done)) == []
