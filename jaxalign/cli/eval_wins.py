"""``jaxalign eval wins RUN``: by AI judges, how often one model's answers beat another's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxalign import evals
from jaxalign.checkpoint import check_writable
from jaxalign.cli import eval as single
from jaxalign.cli import judge, judge_audit
from jaxalign.cli.config import check_ranges
from jaxalign.evals.preference import wins_of_verdicts
from jaxalign.judges.audit import Verdicts
from jaxalign.judges.bootstrap import Bootstrap
from jaxalign.judges.panel import OPPOSITE
from jaxalign.paths import write_whole

REPORT = "wins.json"


@dataclasses.dataclass(frozen=True)
class Config:
    """Win rate of answer_b against answer_a by the judges of a run of `jaxalign judge`, raw and at equal length.

    A verdict that changes with the order, a tie and a failure count half.

    Args:
        path: the output directory of `jaxalign judge`, its verdicts.jsonl, or a file that `jaxalign judge audit` reads
        output: directory of wins.json; by default where the verdicts are
        confidence: of the intervals
        resamples: of the bootstrap
        seed: of the bootstrap
    """

    path: str
    output: str | None = None
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0


def flags(arguments: Sequence[str]) -> list[str]:
    """``wins RUN`` as flags."""
    return judge_audit.flags(arguments)


def run(config: Config) -> None:
    """A line for each judge, and all of it as JSON."""
    check_ranges(config, single.RANGES)
    given = Path(config.path).expanduser()
    path = given / judge.VERDICTS if given.is_dir() and (given / judge.VERDICTS).exists() else given
    output = Path(config.output).expanduser() if config.output else (given if given.is_dir() else given.parent)
    check_writable(output)
    bootstrap = Bootstrap(config.confidence, config.resamples, config.seed)
    console = Console(highlight=False, soft_wrap=True)
    report = {}
    for name, found in judge_audit.read_columns(path, judge_audit.Config(config.path)).items():
        report[name] = wins(found, bootstrap)
        for what, each in report[name].items():
            shown = f"{single.number(each.value)} {single.interval(each.ci)} of {each.items} pairs"
            console.print(f"{name}: {what.replace('_', ' ')} {shown}", markup=False)
    plain: dict[str, Any] = {
        name: {what: each.plain() for what, each in found.items()} for name, found in report.items()
    }
    write_whole(output / REPORT, json.dumps(plain, indent=2, allow_nan=False) + "\n")
    console.print(f"The report is in {output / REPORT}.", markup=False)


def wins(verdicts: Verdicts, bootstrap: Bootstrap) -> dict[str, evals.Estimate]:
    """The second answer's win rate; with its length held to the first's too, where the lengths are known."""
    won = wins_of_verdicts([OPPOSITE[each] for each in verdicts.combined or ()])
    (outcome,) = evals.win_rate("judge", won)
    found = {"win_rate": evals.figure(outcome, bootstrap=bootstrap)}
    if verdicts.length_difference is not None:
        longer = -np.asarray(verdicts.length_difference)
        found["length_controlled_win_rate"] = evals.length_controlled_win_rate(
            won, longer, np.zeros(len(longer)), bootstrap=bootstrap
        )
    return found
