"""The alignment tax as a picture: every figure's change with its interval, each on its own scale."""

from __future__ import annotations

import math
from pathlib import Path

from jaxalign.evals.exchange import Tax

COLOURS = {True: "#1b7f4d", False: "#b3362b", None: "0.45"}
"""Better, worse, neither."""


def draw(report: Tax, path: str | Path, *, confidence: float) -> None:
    """A row for each figure: the change (dot), its interval (line), 0 (no change), and the figure before and after.

    A change that is not finite is left out: it has no place on an axis.
    """
    import matplotlib.figure  # only who asks for a picture needs it

    shown = {name: found for name, found in report.differences.items() if math.isfinite(found.change)}
    figure = matplotlib.figure.Figure(figsize=(7, 0.55 * len(shown) + 0.8), layout="constrained")
    axes = figure.subplots(max(1, len(shown)), 1, squeeze=False)[:, 0]
    for axis, (name, found) in zip(axes, shown.items(), strict=False):
        colour = COLOURS[report.better(name)]
        low, high = found.ci if all(map(math.isfinite, found.ci)) else (found.change, found.change)
        axis.axvline(0, color="0.8", lw=1, zorder=0)
        axis.plot([low, high], [0, 0], color=colour, lw=2)
        axis.plot([found.change], [0], "o", color=colour, ms=5)
        reach = max(abs(low), abs(high), 1e-9) * 1.15
        axis.set(xlim=(-reach, reach), ylim=(-1, 1), yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.yaxis.set_label_position("left")
        axis.text(
            1.02, 0.5, f"{found.before:.3g} → {found.after:.3g}", transform=axis.transAxes, va="center", fontsize=8
        )
        axis.tick_params(labelsize=7, length=2)
        for side in ("top", "left", "right"):
            axis.spines[side].set_visible(False)
    figure.suptitle(f"after minus before, {100 * confidence:g}% intervals (green: better, red: worse)", fontsize=9)
    figure.savefig(path, dpi=200)
