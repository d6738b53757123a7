"""``jaxalign quickstart``: the field side by side in a few minutes, from nothing, on any machine."""

from __future__ import annotations

import dataclasses

from jaxalign.cli import compare
from jaxalign.settings import check_ranges


@dataclasses.dataclass(frozen=True)
class Config:
    """SFT, a reward model with PPO and best-of-n, DPO, KTO and DPO from an AI judge, in a world with a known reward.

    A model of 1.0M parameters is pretrained and fine-tuned, and every method starts from there. `jaxalign compare` is
    the same over several seeds, with all of its settings.

    Args:
        seed: of everything
        output: directory of the table, the figures and the results
    """

    seed: int = 0
    output: str = "runs/quickstart"


def run(config: Config) -> None:
    """One seed of the comparison."""
    check_ranges(config, {"seed": (0, 10**6)})
    compare.run(compare.Config(seeds=1, first_seed=config.seed, output=config.output))
