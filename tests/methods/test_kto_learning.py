"""A task with a known reward, small: KTO from thumbs raises it over SFT at either imbalance (see campaigns/)."""

import pytest

from tests.campaigns.kto_known_reward import ARMS, Size, Steps, outcomes

pytestmark = pytest.mark.learning
SIZE = Size(sft_steps=20, steps=40, batch_size=64, prompts=400)


@pytest.fixture(scope="module")
def found():
    steps = Steps()
    lines = [line for seed in range(2) for line in outcomes(seed, SIZE, steps)]
    for line in lines:
        print(line)
    return lines


@pytest.mark.parametrize("arm", ARMS)
def test_the_true_reward_rises_in_every_seed(found, arm):
    lines = [line for line in found if line["arm"] == arm]
    assert len(lines) == 2
    for line in lines:
        assert line["z"] > 4, "by chance once in 30,000"
