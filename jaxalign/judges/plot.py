"""The trust report as one picture: what a judge gets right, what it favours, and what its probabilities mean."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.judges.audit import TrustReport, Verdicts
from jaxalign.paths import write_whole

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's, told apart by all
GREY = "0.55"
BINS = 5  # of pairs by difference in length
SCORE = {"first": 1.0, "second": 0.0, "tie": 0.5}


def plot_audit(report: TrustReport, columns: Mapping[str, Verdicts], path: str | Path, *, confidence: float) -> None:
    """Writes the picture.

    Args:
        report: what was measured.
        columns: what it was measured on, for the curve over the difference in length.
        path: a .png file.
        confidence: of the intervals, for the caption.

    Raises:
        UserError: if it cannot be written.
    """
    from matplotlib.figure import Figure

    style: Any = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9}
    import matplotlib

    with matplotlib.rc_context(style):
        rows = _shares(report), _biases(report)
        height = 2.2 + 0.16 * max(len(labels) for labels, _ in rows) * max(1, len(report.judges) - 1)
        figure = Figure(figsize=(11, max(3.2, height)), dpi=200, layout="constrained")
        shares, biases, lengths, reliability = figure.subplots(1, 4, width_ratios=(1.25, 1.25, 1, 1))
        _dots(shares, *rows[0], list(report.judges))
        shares.set(xlim=(-3, 103), xlabel="% of pairs or verdicts", title="a  What it says")
        _dots(biases, *rows[1], list(report.judges))
        biases.axvline(0, color=GREY, lw=0.8, zorder=0)
        widest = max(
            [10.0, *(abs(end) for _, dots in [rows[1]] for dot in dots for end in dot[2:4] if np.isfinite(end))]
        )
        biases.set(
            xlim=(-1.08 * widest, 1.08 * widest), xlabel="percentage points (0 is fair)", title="b  What it favours"
        )
        _lengths(lengths, columns)
        _reliability(reliability, report)
        names = list(report.judges)
        handles = [shares.plot([], [], "o", color=_colour(i), ms=4, label=name)[0] for i, name in enumerate(names)]
        note = f"bars: {100 * confidence:g} % intervals, bootstrap over pairs"
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, title=note, title_fontsize=7)
        content = io.BytesIO()
        figure.savefig(content, format="png")
    write_whole(Path(path), content.getvalue())


Dot = tuple[int, float, float, float, int]  # row, value, low, high, judge


def _shares(report: TrustReport) -> tuple[list[str], list[Dot]]:
    found: dict[str, list[tuple[int, float, Any]]] = {}
    for i, judge in enumerate(report.judges.values()):
        if judge.agreement is not None:
            found.setdefault("agrees with\nhumans", []).append(
                (i, judge.agreement.accuracy, judge.agreement.accuracy_ci)
            )
        if judge.ceiling is not None:
            found.setdefault("humans with\neach other", []).append((i, judge.ceiling.human, judge.ceiling.human_ci))
        if judge.report is not None:
            for label, name in (("same in\nboth orders", "consistency"), ("ties", "ties"), ("failures", "failures")):
                value, interval = getattr(judge.report, name), getattr(judge.report, f"{name}_ci")
                found.setdefault(label, []).append((i, value, interval))
    return _dotted(found)


def _biases(report: TrustReport) -> tuple[list[str], list[Dot]]:
    found: dict[str, list[tuple[int, float, Any]]] = {}
    for i, judge in enumerate(report.judges.values()):
        if judge.report is not None:
            bias = judge.report.position_bias, judge.report.position_bias_ci
            found.setdefault("shown first", []).append((i, *bias))
        for label, favour in (("longer answer", judge.verbosity), ("own family", judge.own)):
            if favour is not None:
                found.setdefault(label, []).append((i, favour.bias, favour.bias_ci))
                if favour.excess is not None:
                    found.setdefault(f"{label},\nbeyond humans", []).append((i, favour.excess, favour.excess_ci))
    return _dotted(found)


def _dotted(found: Mapping[str, list[tuple[int, float, Any]]]) -> tuple[list[str], list[Dot]]:
    dots = [
        (row, 100 * value, 100 * interval[0], 100 * interval[1], judge)
        for row, (_, values) in enumerate(found.items())
        for judge, value, interval in values
        if np.isfinite(value)
    ]
    return list(found), dots


def _dots(axis: Any, labels: list[str], dots: list[Dot], judges: list[str]) -> None:
    """Values with their intervals, a row for each label, the judges side by side in it."""
    for row, value, low, high, judge in dots:
        y = row + 0.5 * ((judge + 0.5) / len(judges) - 0.5)
        axis.plot([low, high], [y, y], color=_colour(judge), lw=1.4, solid_capstyle="butt")
        axis.plot([value], [y], "o", color=_colour(judge), ms=4)
        if len(judges) == 1:
            axis.annotate(
                f"{value:.0f}", (value, y), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=7
            )
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(axis="x", color="0.92", lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)


def _lengths(axis: Any, columns: Mapping[str, Verdicts]) -> None:
    """How often the first answer wins, by how much longer it is: of the judges, and of humans in grey."""
    axis.set(xlabel="characters that the first answer is longer", ylabel="first answer wins (%)", ylim=(-3, 103))
    axis.set_title("c  Wins by length")
    axis.axhline(50, color=GREY, lw=0.6, ls=":")
    drawn = False
    humans = False
    for i, mine in enumerate(columns.values()):
        if mine.length_difference is None:
            continue
        if mine.human is not None and not humans:
            humans = _curve(axis, mine.length_difference, mine.human, GREY, "humans")
        drawn = _curve(axis, mine.length_difference, mine.winners, _colour(i), None) or drawn
    if humans:
        axis.legend(frameon=False, fontsize=7, handlelength=1.2, loc="upper left")
    if not drawn:
        _nothing(axis, "the rows hold no answers")


def _curve(axis: Any, differences: Any, labels: Any, colour: str, name: str | None) -> bool:
    """Means of bins of equally many pairs; a tie is half a win."""
    known = [(x, SCORE[label]) for x, label in zip(differences, labels, strict=True) if label is not None]
    if len(known) < 2 * BINS:
        return False
    x, y = np.array(sorted(known)).T
    cuts = [part for part in np.array_split(np.arange(len(x)), BINS) if len(part)]
    means = np.array([[x[cut].mean(), 100 * y[cut].mean()] for cut in cuts])
    axis.plot(*means.T, "o-", color=colour, ms=3.5, lw=1, label=name)
    return True


def _reliability(axis: Any, report: TrustReport) -> None:
    """Frequency over probability, the area of a dot its pairs."""
    axis.plot([0, 100], [0, 100], color=GREY, lw=0.6, ls=":")
    axis.set(xlabel="probability said (%)", ylabel="humans prefer the first (%)", xlim=(-3, 103), ylim=(-3, 103))
    axis.set_title("d  Probabilities")
    found = [(i, judge.calibration) for i, judge in enumerate(report.judges.values()) if judge.calibration is not None]
    for i, calibration in found:
        bins = [b for b in calibration.bins if b.size]
        total = sum(b.size for b in bins)
        points = np.array([[100 * b.probability, 100 * b.outcome] for b in bins])
        axis.plot(*points.T, color=_colour(i), lw=0.8, alpha=0.6)
        axis.scatter(*points.T, s=[12 + 150 * b.size / total for b in bins], color=_colour(i), alpha=0.8, lw=0)
    if not found:
        _nothing(axis, "no probabilities,\nor no human labels")


def _nothing(axis: Any, why: str) -> None:
    axis.text(0.5, 0.5, why, transform=axis.transAxes, ha="center", va="center", color=GREY)


def _colour(judge: int) -> str:
    return COLOURS[judge % len(COLOURS)]
