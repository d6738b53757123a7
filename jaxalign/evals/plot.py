"""A picture of the alignment tax: every figure's change with its interval, each on its own scale."""

from __future__ import annotations

import math
from pathlib import Path

from jaxalign.evals.exchange import Tax

# Better, worse, neither.
COLOURS = {True: "#1b7f4d", False: "#b3362b", None: "0.45"}


def plot_tax(tax: Tax, path: str | Path, *, confidence: float) -> None:
    """Writes a picture with a row for each figure: its change (dot), the interval (line), and 0 (no change).

    A change that is not finite is omitted.
    """
    import matplotlib.figure  # slow to import, and an optional dependency

    shown = {name: change for name, change in tax.differences.items() if math.isfinite(change.change)}
    figure = matplotlib.figure.Figure(figsize=(7, 0.55 * len(shown) + 0.8), layout="constrained")
    axes = figure.subplots(max(1, len(shown)), 1, squeeze=False)[:, 0]
    for axis, (name, change) in zip(axes, shown.items(), strict=False):
        colour = COLOURS[tax.better(name)]
        low, high = change.ci if all(map(math.isfinite, change.ci)) else (change.change, change.change)
        axis.axvline(0, color="0.8", lw=1, zorder=0)
        axis.plot([low, high], [0, 0], color=colour, lw=2)
        axis.plot([change.change], [0], "o", color=colour, ms=5)
        reach = max(abs(low), abs(high), 1e-9) * 1.15
        axis.set(xlim=(-reach, reach), ylim=(-1, 1), yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.yaxis.set_label_position("left")
        label = f"{change.before:.3g} → {change.after:.3g}"
        axis.text(1.02, 0.5, label, transform=axis.transAxes, va="center", fontsize=8)
        axis.tick_params(labelsize=7, length=2)
        axis.spines[["top", "left", "right"]].set_visible(False)
    figure.suptitle(f"after minus before, {100 * confidence:g}% intervals (green: better, red: worse)", fontsize=9)
    figure.savefig(path, dpi=200)
