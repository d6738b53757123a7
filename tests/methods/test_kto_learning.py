"""KTO from thumbs raises a known reward over SFT at either imbalance (a small version of the campaign)."""

import pytest

from tests.campaigns.kto_known_reward import METHODS, Size, Steps, run_methods

pytestmark = pytest.mark.learning
SIZE = Size(sft_steps=20, steps=40, batch_size=64, prompts=400)


@pytest.fixture(scope="module")
def results():
    steps = Steps()
    results = [result for seed in range(2) for result in run_methods(seed, SIZE, steps)]
    for result in results:
        print(result)
    return results


@pytest.mark.parametrize("name", METHODS)
def test_the_true_reward_rises_in_every_seed(results, name):
    runs = [result for result in results if result["arm"] == name]
    assert len(runs) == 2
    for run in runs:
        assert run["z"] > 4, "by chance once in 30,000"
