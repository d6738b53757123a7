"""``jaxalign judge audit RUN``: measures a judge, and prints the measures as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxalign.cli.console import LiveReport
from jaxalign.judges.audit import JudgeAudit, TrustReport
from jaxalign.judges.audit_file import AuditConfig as Config
from jaxalign.judges.audit_file import audit_file
from jaxalign.stats import Interval

__all__ = ["Config", "flags", "format_measure", "measures", "print_audit", "run"]


def flags(arguments: Sequence[str]) -> list[str]:
    """Returns ``audit RUN`` as flags.

    >>> flags(["run", "--picture", "false"])
    ['--path', 'run', '--picture', 'false']
    """
    words = list(arguments)
    return ["--path", *words] if words and not words[0].startswith("-") else words


def run(config: Config) -> None:
    """Audits the file, and prints what was measured."""
    report = LiveReport()
    print_audit(audit_file(config, report), config.confidence, report.console)


def print_audit(report: TrustReport, confidence: float, console: Console) -> None:
    """Prints a table of measures for each judge, its warnings, and the agreement between raters."""
    for name, judge in report.judges.items():
        how = f"{judge.in_both_orders} in both orders" if judge.ordered else "one verdict each"
        table = Table(
            title=escape(f"{name}: {judge.pairs} pairs, {how}"),
            title_justify="left",
            caption=f"intervals: {100 * confidence:g} %, by bootstrap over the pairs",
            caption_justify="left",
        )
        table.add_column("measure")
        table.add_column("value", justify="right")
        table.add_column("interval", justify="right")
        for label, value, interval, unit in measures(judge):
            table.add_row(label, *format_measure(value, interval, unit))
        console.print(table)
        if judge.spots:
            console.print("right by group, the worst first:")
            for group, spot in list(judge.spots.items())[:8]:
                share = format_measure(spot.accuracy, spot.accuracy_ci, "%")
                console.print(f"  {group}: {share[0]} [{share[1]}] of {sum(spot.counts.values())}", markup=False)
        for sentence in judge.warnings or ("Nothing to warn of in what was measured.",):
            console.print(f"• {sentence}", style="yellow" if judge.warnings else "green", markup=False)
    for title, raters in (("judges", report.between_judges), ("humans", report.between_humans)):
        if raters is not None:
            share = format_measure(raters.accuracy, raters.accuracy_ci, "%")
            kappa = format_measure(raters.kappa, raters.kappa_ci, "")
            console.print(f"between {title}: {share[0]} [{share[1]}] the same, κ {kappa[0]} [{kappa[1]}]")


def measures(judge: JudgeAudit) -> list[tuple[str, float, Interval, str]]:
    """Returns the name, value, interval and unit of everything that was measured. Points have a sign."""
    rows: list[tuple[str, Any, Any, str]] = []
    report, agreed = judge.report, judge.agreement
    if report is not None and judge.ordered:
        rows += [
            ("consistency", report.consistency, report.consistency_ci, "%"),
            ("position bias (to the first)", report.position_bias, report.position_bias_ci, "points"),
            ("right, first order", report.accuracy_first, report.accuracy_first_ci, "%"),
            ("right, second order", report.accuracy_second, report.accuracy_second_ci, "%"),
        ]
    if report is not None:
        rows += [("ties", report.ties, report.ties_ci, "%"), ("failures", report.failures, report.failures_ci, "%")]
    if agreed is not None:
        rows += [
            ("agreement with humans", agreed.accuracy, agreed.accuracy_ci, "%"),
            ("Cohen's κ with humans", agreed.kappa, agreed.kappa_ci, ""),
        ]
    if judge.by_probability is not None:
        side = judge.by_probability
        rows.append(("  of its probabilities", side.accuracy, side.accuracy_ci, "%"))
    for label, favour in (("the longer answer", judge.verbosity), ("its own family", judge.own)):
        if favour is not None:
            rows.append((f"bias for {label}", favour.bias, favour.bias_ci, "points"))
            rows.append(("  beyond that of humans", favour.excess, favour.excess_ci, "points"))
            if math.isfinite(favour.slope):
                condition = " (human label fixed)" if favour.excess is not None else ""
                rows.append((f"  log-odds a unit{condition}", favour.slope, favour.slope_ci, "odds"))
    if judge.ceiling is not None:
        rows.append(("human ceiling", judge.ceiling.human, judge.ceiling.human_ci, "%"))
        rows.append(("  gap to it", judge.ceiling.gap, judge.ceiling.gap_ci, "points"))
    if judge.calibration is not None:
        rows.append(("calibration error", judge.calibration.ece, judge.calibration.ece_ci, "off"))
        rows.append(("Brier score", judge.calibration.brier, judge.calibration.brier_ci, ""))
    return [row for row in rows if row[1] is not None]


def format_measure(value: float, interval: Interval, unit: str) -> tuple[str, str]:
    """Formats a value and its interval.

    >>> format_measure(0.25, (0.2, 0.3), "%")
    ('25.0 %', '20.0 to 30.0')
    """
    if math.isnan(value):
        return "undefined", ""
    low, high = interval
    if unit == "odds":
        return f"{value:+.2g}", f"{low:+.2g} to {high:+.2g}"
    scale, digits = (100, 1) if unit else (1, 3)
    sign = "+" if unit == "points" else ""
    word = {"": "", "off": " points"}.get(unit, f" {unit}")
    value_text = f"{scale * value:{sign}.{digits}f}{word}"
    return value_text, f"{scale * low:{sign}.{digits}f} to {scale * high:{sign}.{digits}f}"
