"""The trust report as one picture: agreement, biases, wins by length, and calibration."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.judges.audit import TrustReport, Verdicts
from jaxalign.judges.pairwise import WINS
from jaxalign.paths import write_whole

# Okabe and Ito's colours, which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "0.55"
STYLE: Any = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9}
# Bins of pairs by difference in length.
BINS = 5
# Measures of the first two panels: label, field of an audit, and field of that.
SHARES = (
    ("agrees with\nhumans", "agreement", "accuracy"),
    ("humans with\neach other", "ceiling", "human"),
    ("same in\nboth orders", "report", "consistency"),
    ("ties", "report", "ties"),
    ("failures", "report", "failures"),
)
BIASES = (
    ("shown first", "report", "position_bias"),
    ("longer answer", "verbosity", "bias"),
    ("longer answer,\nbeyond humans", "verbosity", "excess"),
    ("own family", "own", "bias"),
    ("own family,\nbeyond humans", "own", "excess"),
)
# Row, value, lower and upper end (in percent), and the judge's number.
Dot = tuple[int, float, float, float, int]


def plot_audit(report: TrustReport, columns: Mapping[str, Verdicts], path: str | Path, *, confidence: float) -> None:
    """Writes the picture.

    Args:
        report: The measurements.
        columns: The verdicts that were measured, for the curve over the difference in length.
        path: A .png file.
        confidence: Confidence of the intervals, for the caption.

    Raises:
        UserError: If the file cannot be written.
    """
    # matplotlib is an optional dependency, and slow to import.
    import matplotlib
    from matplotlib.figure import Figure

    names = list(report.judges)
    with matplotlib.rc_context(STYLE):
        rows = _dots(report, SHARES), _dots(report, BIASES)
        height = 2.2 + 0.16 * max(len(labels) for labels, _ in rows) * max(1, len(names) - 1)
        figure = Figure(figsize=(11, max(3.2, height)), dpi=200, layout="constrained")
        shares, biases, lengths, reliability = figure.subplots(1, 4, width_ratios=(1.25, 1.25, 1, 1))
        _draw_dots(shares, *rows[0], names)
        shares.set(xlim=(-3, 103), xlabel="% of pairs or verdicts", title="a  What it says")
        _draw_dots(biases, *rows[1], names)
        biases.axvline(0, color=GREY, lw=0.8, zorder=0)
        limit = 1.08 * max([10.0, *(abs(end) for dot in rows[1][1] for end in dot[2:4] if np.isfinite(end))])
        biases.set(xlim=(-limit, limit), xlabel="percentage points (0 is fair)", title="b  What it favours")
        _draw_lengths(lengths, columns)
        _draw_reliability(reliability, report)
        handles = [shares.plot([], [], "o", color=_colour(i), ms=4, label=name)[0] for i, name in enumerate(names)]
        note = f"bars: {100 * confidence:g} % intervals, bootstrap over pairs"
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, title=note, title_fontsize=7)
        content = io.BytesIO()
        figure.savefig(content, format="png")
    write_whole(Path(path), content.getvalue())


def _dots(report: TrustReport, measures: Sequence[tuple[str, str, str]]) -> tuple[list[str], list[Dot]]:
    """Returns the labels of the measures that a judge has, and the dots with finite values."""
    labels: list[str] = []
    dots: list[Dot] = []
    for label, part, name in measures:
        for number, judge in enumerate(report.judges.values()):
            source = getattr(judge, part)
            value = None if source is None else getattr(source, name)
            if value is None:
                continue
            if label not in labels:
                labels.append(label)
            if np.isfinite(value):
                low, high = getattr(source, f"{name}_ci")
                dots.append((labels.index(label), 100 * value, 100 * low, 100 * high, number))
    return labels, dots


def _draw_dots(axis: Any, labels: list[str], dots: list[Dot], judges: list[str]) -> None:
    """Draws values with their intervals: a row for each label, with the judges next to each other in it."""
    for row, value, low, high, judge in dots:
        y = row + 0.5 * ((judge + 0.5) / len(judges) - 0.5)
        axis.plot([low, high], [y, y], color=_colour(judge), lw=1.4, solid_capstyle="butt")
        axis.plot([value], [y], "o", color=_colour(judge), ms=4)
        if len(judges) == 1:
            above = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
            axis.annotate(f"{value:.0f}", (value, y), fontsize=7, **above)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.grid(axis="x", color="0.92", lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)


def _draw_lengths(axis: Any, columns: Mapping[str, Verdicts]) -> None:
    """Draws how often the first answer wins over how much longer it is, for the judges and for humans (grey)."""
    axis.set(xlabel="characters that the first answer is longer", ylabel="first answer wins (%)", ylim=(-3, 103))
    axis.set_title("c  Wins by length")
    axis.axhline(50, color=GREY, lw=0.6, ls=":")
    has_judge = has_humans = False
    for i, verdicts in enumerate(columns.values()):
        if verdicts.length_difference is None:
            continue
        if verdicts.human is not None and not has_humans:
            has_humans = _draw_curve(axis, verdicts.length_difference, verdicts.human, GREY, "humans")
        has_judge |= _draw_curve(axis, verdicts.length_difference, verdicts.winners, _colour(i), None)
    if has_humans:
        axis.legend(frameon=False, fontsize=7, handlelength=1.2, loc="upper left")
    if not has_judge:
        _draw_note(axis, "the rows contain no answers")


def _draw_curve(axis: Any, differences: Any, labels: Any, colour: str, name: str | None) -> bool:
    """Draws means of bins of equally many pairs; a tie is half a win. Returns whether there are enough pairs."""
    known = [(x, WINS[label]) for x, label in zip(differences, labels, strict=True) if label is not None]
    if len(known) < 2 * BINS:
        return False
    x, y = np.array(sorted(known)).T
    means = [[x[part].mean(), 100 * y[part].mean()] for part in np.array_split(np.arange(len(x)), BINS)]
    axis.plot(*np.array(means).T, "o-", color=colour, ms=3.5, lw=1, label=name)
    return True


def _draw_reliability(axis: Any, report: TrustReport) -> None:
    """Draws frequency over probability. The area of a dot is its number of pairs."""
    axis.plot([0, 100], [0, 100], color=GREY, lw=0.6, ls=":")
    axis.set(xlabel="probability said (%)", ylabel="humans prefer the first (%)", xlim=(-3, 103), ylim=(-3, 103))
    axis.set_title("d  Probabilities")
    for i, judge in enumerate(report.judges.values()):
        if judge.calibration is not None:
            bins = [b for b in judge.calibration.bins if b.size]
            total = sum(b.size for b in bins)
            points = np.array([[100 * b.probability, 100 * b.outcome] for b in bins])
            axis.plot(*points.T, color=_colour(i), lw=0.8, alpha=0.6)
            axis.scatter(*points.T, s=[12 + 150 * b.size / total for b in bins], color=_colour(i), alpha=0.8, lw=0)
    if all(judge.calibration is None for judge in report.judges.values()):
        _draw_note(axis, "no probabilities,\nor no human labels")


def _draw_note(axis: Any, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color=GREY)


def _colour(judge: int) -> str:
    return COLOURS[judge % len(COLOURS)]
