"""Win rates of one side's answers by AI judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.errors import UserError
from jaxalign.evals.outcome import Estimate, figure
from jaxalign.evals.preference import length_controlled_win_rate, win_rate, wins_of_verdicts
from jaxalign.judges.audit import Verdicts
from jaxalign.judges.pairwise import OPPOSITE
from jaxalign.stats import DEFAULT, Bootstrap


@dataclass(frozen=True)
class WinsReport:
    """Win rates of the answers of one side.

    Attributes:
        of: name of the side.
        judges: by judge, ``win_rate`` and, if lengths are known, ``length_controlled_win_rate``.
    """

    of: str
    judges: dict[str, dict[str, Estimate]]

    def plain(self) -> dict[str, Any]:
        """Returns the rates for JSON."""
        judges = {judge: {name: rate.plain() for name, rate in rates.items()} for judge, rates in self.judges.items()}
        return {"of": self.of, "judges": judges}


def measure_wins(verdicts: Mapping[str, Verdicts], of: str, *, bootstrap: Bootstrap = DEFAULT) -> WinsReport:
    """Counts how often the answers of one side win.

    A verdict that changes with the order, a tie and a failure count half.

    Args:
        verdicts: by judge. ``own`` is the side of the answer that is counted. For a panel, whose ``own`` is None, the
            sides come from the judges by ``keys``.
        of: name of the side.
        bootstrap: settings of the intervals.

    Raises:
        UserError: if a pair does not have exactly one answer of that side.
    """
    sides = {
        key: side
        for judged in verdicts.values()
        for key, side in zip(judged.keys or (), judged.own or (), strict=False)
    }
    judges = {}
    for judge, judged in verdicts.items():
        own = [sides.get(key) for key in judged.keys or ()]
        if unknown := sum(side not in ("first", "second") for side in own):
            raise UserError(
                f"{unknown} of {len(own)} pairs of {judge} do not have exactly one answer by {of!r}. Give a name that "
                "the rows' field by (or answer_a_by, answer_b_by) contains."
            )
        judges[judge] = _win_rates(judged, own, bootstrap)
    return WinsReport(of, judges)


def _win_rates(verdicts: Verdicts, sides: Sequence[str | None], bootstrap: Bootstrap) -> dict[str, Estimate]:
    # Verdicts are turned so that "first" means the side that is counted.
    rows = zip(verdicts.combined or (), sides, strict=True)
    wins = wins_of_verdicts([OPPOSITE[verdict] if side == "second" else verdict for verdict, side in rows])
    rates = {"win_rate": figure(*win_rate("judge", wins), bootstrap=bootstrap)}
    if verdicts.length_difference is not None:
        longer = np.array(verdicts.length_difference) * [-1 if side == "second" else 1 for side in sides]
        equal = np.zeros(len(longer))
        rates["length_controlled_win_rate"] = length_controlled_win_rate(wins, longer, equal, bootstrap=bootstrap)
    return rates
