"""The testbed's results as figures for a paper: what methods reach and pay, and proxy against gold over √KL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.compare.measure import Curve, fit_curve

COLOURS = ("0.45", "#7a5195", "#1b7f4d", "#00639a", "#b3362b", "#d08700")
"""Of methods, in the order of the table."""
SHOWN = (
    ("gold", "gold reward"),
    ("kl", "KL to SFT (nats)"),
    ("fact_loss", "fact loss (nats)"),
    ("over_refusal", "over-refusal"),
)


def methods(lines: Sequence[dict[str, Any]], names: Sequence[str], across: Callable[..., Any], path: Path) -> None:
    """A panel for each of gold reward, KL, fact loss and over-refusal; a point with its interval for each method."""
    import matplotlib.figure  # only who asks for a picture needs it

    whole = matplotlib.figure.Figure(figsize=(9, 0.32 * len(names) + 1.1), layout="constrained")
    axes = whole.subplots(1, len(SHOWN), sharey=True)
    axes[0].invert_yaxis()
    for axis, (key, label) in zip(axes, SHOWN, strict=True):
        for row, name in enumerate(names):
            value, low, high = across(lines, name, key)
            colour = COLOURS[row % len(COLOURS)]
            axis.plot([low, high], [row, row], color=colour, lw=2, solid_capstyle="butt")
            axis.plot([value], [row], "o", color=colour, ms=5)
        if key == "gold":
            axis.axvline(across(lines, "sft", key)[0], color="0.8", lw=1, zorder=0)
        axis.set(xlabel=label, yticks=range(len(names)), yticklabels=[name.replace("_", " ") for name in names])
        _plain(axis)
    whole.savefig(path, dpi=200)


def overoptimisation(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Gold and proxy reward, less what they were at the start, against √KL, with Gao et al.'s curve through gold."""
    import matplotlib.figure

    whole = matplotlib.figure.Figure(figsize=(8, 3), layout="constrained")
    panels = (("ppo", "PPO, on training instructions"), ("best_of_n", "best of n, on held-out instructions"))
    for axis, (name, title) in zip(whole.subplots(1, 2), panels, strict=True):
        curves = [Curve(**line["curve"]) for line in lines if line["method"] == name and line["curve"]]
        if not curves:
            continue
        kl = np.concatenate([curve.kl for curve in curves])
        proxy, gold = (
            np.concatenate([np.subtract(getattr(curve, what), getattr(curve, what)[0]) for curve in curves])
            for what in ("proxy", "gold")
        )
        d = np.sqrt(np.maximum(kl, 0))
        axis.plot(d, proxy, ".", color="#d08700", ms=4, alpha=0.7, label="proxy")
        axis.plot(d, gold, ".", color="#1b7f4d", ms=4, alpha=0.7, label="gold")
        alpha, beta = fit_curve(kl, gold, online=name == "ppo")
        grid = np.linspace(1e-3, max(1e-2, float(d.max())), 100)
        fitted = grid * (alpha - beta * (np.log(grid) if name == "ppo" else grid))
        axis.plot(grid, fitted, color="#1b7f4d", lw=1.2, label=f"fit of gold: α {alpha:.2f}, β {beta:.2f}")
        axis.set_ylim(top=1.4 * float(proxy.max()))  # room for what follows
        axis.legend(frameon=False, fontsize=8, loc="upper left")
        axis.axhline(0, color="0.8", lw=1, zorder=0)
        axis.set(title=title, xlabel="√KL (√nats)", ylabel="reward gained")
        _plain(axis)
    whole.savefig(path, dpi=200)


def _plain(axis: Any) -> None:
    axis.tick_params(labelsize=8, length=2)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
