"""``jaxalign eval wins RUN``: by AI judges, how often one model's answers beat another's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from jaxalign import evals
from jaxalign.checkpoint import check_writable
from jaxalign.cli import eval as single
from jaxalign.cli import judge, judge_audit
from jaxalign.errors import UserError
from jaxalign.evals.preference import wins_of_verdicts
from jaxalign.judges.audit import Verdicts
from jaxalign.judges.panel import OPPOSITE
from jaxalign.paths import write_whole
from jaxalign.settings import check_ranges
from jaxalign.stats import Bootstrap

REPORT = "wins.json"


@dataclasses.dataclass(frozen=True)
class Config:
    """Win rate of one side's answers by the judges of a run of `jaxalign judge`, raw and at equal length.

    A verdict that changes with the order, a tie and a failure count half; `jaxalign judge` leaves out equal answers.

    Args:
        path: the output directory of `jaxalign judge`, its verdicts.jsonl, or a file that `jaxalign judge audit` reads
        of: whose, as the rows' field by (or answer_a_by, answer_b_by) spells it; without such a field answer_b's
        columns: what fields are called in the file, as {first_order: gpt4}
        second_names: what a verdict in the second order names, the position shown or the response
        output: directory of wins.json; by default where the verdicts are
        confidence: of the intervals
        resamples: of the bootstrap
        seed: of the bootstrap
    """

    path: str
    of: str = "answer_b"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    second_names: Literal["position", "response"] = "position"
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
    path = given / judge.VERDICTS if given.is_dir() and (given / judge.VERDICTS).exists() else config.path
    output = Path(config.output).expanduser() if config.output else (given if given.is_dir() else given.parent)
    check_writable(output)
    bootstrap = Bootstrap(config.confidence, config.resamples, config.seed)
    console = Console(highlight=False, soft_wrap=True)
    plain: dict[str, Any] = {}
    for name, found in read(path, config).items():
        figures = wins(found, bootstrap)
        for what, each in figures.items():
            shown = f"{single.number(each.value)} {single.interval(each.ci)} of {each.items} pairs"
            console.print(f"{name}: {what.replace('_', ' ')} of {config.of} {shown}", markup=False)
        plain[name] = {what: each.plain() for what, each in figures.items()}
    write_whole(output / REPORT, json.dumps({"of": config.of, "judges": plain}, indent=2, allow_nan=False) + "\n")
    console.print(f"The report is in {output / REPORT}.", markup=False)


def read(path: str | Path, config: Config) -> dict[str, Verdicts]:
    """Each judge's verdicts, in which ``own`` is the answer asked about; the panel's too.

    Raises:
        UserError: if a pair does not have exactly one answer of that name.
    """
    judge_audit.check_columns(config.columns)
    asked = judge_audit.Config(config.path, columns=config.columns, second_names=config.second_names)
    names = [name for name in judge_audit.read_columns(path, asked) if name != judge_audit.PANEL]
    asked = dataclasses.replace(asked, family=dict.fromkeys(names, config.of))
    found = judge_audit.read_columns(path, asked)
    sides = {
        key: side for name in names for key, side in zip(found[name].keys or (), found[name].own or (), strict=False)
    }
    for name, verdicts in found.items():
        own = [sides.get(key) for key in verdicts.keys or ()]
        if unknown := sum(side not in ("first", "second") for side in own):
            raise UserError(
                f"{path}: {unknown} of {len(own)} pairs of {name} do not have one answer by {config.of!r}: give --of a "
                "name of the rows' field by (or answer_a_by, answer_b_by)"
            )
        found[name] = dataclasses.replace(verdicts, own=own)
    return found


def wins(verdicts: Verdicts, bootstrap: Bootstrap) -> dict[str, evals.Estimate]:
    """The win rate of the ``own`` answers; with the length held to the others' too, where lengths are known."""
    second = np.array([side == "second" for side in verdicts.own or ()])
    turned = [OPPOSITE[each] if turn else each for each, turn in zip(verdicts.combined or (), second, strict=True)]
    won = wins_of_verdicts(turned)
    (outcome,) = evals.win_rate("judge", won)
    found = {"win_rate": evals.figure(outcome, bootstrap=bootstrap)}
    if verdicts.length_difference is not None:
        longer = np.asarray(verdicts.length_difference) * np.where(second, -1, 1)
        found["length_controlled_win_rate"] = evals.length_controlled_win_rate(
            won, longer, np.zeros(len(longer)), bootstrap=bootstrap
        )
    return found
