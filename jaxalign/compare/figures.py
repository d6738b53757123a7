"""Figures of the testbed's results: what methods gain and cost, and proxy against gold reward over √KL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.compare.measure import fit_curve
from jaxalign.compare.results import across
from jaxalign.compare.start import Curve

# Colours of methods, in the order of the table.
COLOURS = ("0.45", "#7a5195", "#1b7f4d", "#00639a", "#b3362b", "#d08700")
# Panels of the figure of methods, with their labels.
PANELS = (
    ("gold", "gold reward"),
    ("kl", "KL to SFT (nats)"),
    ("fact_loss", "fact loss (nats)"),
    ("over_refusal", "over-refusal"),
)


def draw_methods(lines: Sequence[dict[str, Any]], methods: Sequence[str], path: Path) -> None:
    """Draws gold reward, KL, fact loss and over-refusal: a point with its interval for each method.

    Args:
        lines: Results of all methods and seeds.
        methods: Names of the methods.
        path: The file to write.
    """
    import matplotlib.figure  # slow to import, and only pictures need it

    picture = matplotlib.figure.Figure(figsize=(9, 0.32 * len(methods) + 1.1), layout="constrained")
    axes = picture.subplots(1, len(PANELS), sharey=True)
    axes[0].invert_yaxis()
    for axis, (key, label) in zip(axes, PANELS, strict=True):
        for row, method in enumerate(methods):
            value, low, high = across(lines, method, key)
            colour = COLOURS[row % len(COLOURS)]
            axis.plot([low, high], [row, row], color=colour, lw=2, solid_capstyle="butt")
            axis.plot([value], [row], "o", color=colour, ms=5)
        if key == "gold":
            axis.axvline(across(lines, "sft", key)[0], color="0.8", lw=1, zorder=0)
        axis.set(xlabel=label, yticks=range(len(methods)), yticklabels=[name.replace("_", " ") for name in methods])
        _simplify(axis)
    picture.savefig(path, dpi=200)


def draw_overoptimisation(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws gold and proxy reward gained since the start over √KL, with Gao et al.'s curve fitted to gold."""
    import matplotlib.figure

    picture = matplotlib.figure.Figure(figsize=(8, 3), layout="constrained")
    panels = (("ppo", "PPO, on training instructions"), ("best_of_n", "best of n, on held-out instructions"))
    for axis, (method, title) in zip(picture.subplots(1, 2), panels, strict=True):
        curves = [Curve(**line["curve"]) for line in lines if line["method"] == method and line["curve"]]
        if not curves:
            continue
        kl = np.concatenate([curve.kl for curve in curves])
        proxy, gold = (
            np.concatenate([np.subtract(getattr(curve, reward), getattr(curve, reward)[0]) for curve in curves])
            for reward in ("proxy", "gold")
        )
        d = np.sqrt(np.maximum(kl, 0))
        axis.plot(d, proxy, ".", color="#d08700", ms=4, alpha=0.7, label="proxy")
        axis.plot(d, gold, ".", color="#1b7f4d", ms=4, alpha=0.7, label="gold")
        alpha, beta = fit_curve(kl, gold, online=method == "ppo")
        grid = np.linspace(1e-3, max(1e-2, float(d.max())), 100)
        fitted = grid * (alpha - beta * (np.log(grid) if method == "ppo" else grid))
        axis.plot(grid, fitted, color="#1b7f4d", lw=1.2, label=f"fit of gold: α {alpha:.2f}, β {beta:.2f}")
        axis.set_ylim(top=1.4 * float(proxy.max()))  # room for the legend
        axis.legend(frameon=False, fontsize=8, loc="upper left")
        axis.axhline(0, color="0.8", lw=1, zorder=0)
        axis.set(title=title, xlabel="√KL (√nats)", ylabel="reward gained")
        _simplify(axis)
    picture.savefig(path, dpi=200)


def _simplify(axis: Any) -> None:
    axis.tick_params(labelsize=8, length=2)
    axis.spines[["top", "right"]].set_visible(False)
