"""``jaxalign eval tax``: the gains of aligning a model, their cost, and whether either exceeds chance."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxalign.checkpoint import check_writable
from jaxalign.cli.console import LiveReport
from jaxalign.cli.eval import RANGES, format_interval, format_number, write_answers, write_json
from jaxalign.evals import Exchange, Outcome, SuiteSection, Tax, measure_tax
from jaxalign.evals.plot import plot_tax
from jaxalign.evals.suite import open_subject
from jaxalign.evals.suite_check import check_suite
from jaxalign.models.open import open_mesh
from jaxalign.packages import import_package
from jaxalign.settings import MeshSection, ModelSection, check_ranges
from jaxalign.stats import Bootstrap

REPORT, PICTURE, ANSWERS = "tax.json", "tax.png", "answers.jsonl"


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure what aligning a model changed: jaxalign eval tax --before A --after B --suite SUITE.

    Args:
        before: the model before alignment (a path, as for model.path)
        after: the model after alignment
        suite: what to measure
        output: directory for tax.json, tax.png and answers.jsonl
        confidence: of the intervals
        resamples: of the bootstrap
        seed: of sampled answers and of the bootstrap
        picture: draw the differences (needs jaxalign[plots])
        dtype: what matrix products compute in
        mesh: devices
    """

    before: str
    after: str
    suite: SuiteSection
    output: str = "runs/tax"
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    picture: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    mesh: MeshSection = dataclasses.field(default_factory=MeshSection)


def run(config: Config) -> None:
    """Prints the comparison as tables, and writes it as files."""
    check_ranges(config, RANGES)
    check_suite(config.suite)
    if config.picture:
        import_package("matplotlib", "plots", "The picture", "or set picture=false")
    output = Path(config.output).expanduser()
    check_writable(output)
    report, mesh = LiveReport(), open_mesh(config.mesh)
    before, after = (
        open_subject(ModelSection(path, dtype=config.dtype), mesh, report) for path in (config.before, config.after)
    )
    bootstrap = Bootstrap(config.confidence, config.resamples, config.seed)
    result = measure_tax(config.suite, before, after, seed=config.seed, bootstrap=bootstrap, report=report)
    write_answers(output / ANSWERS, {"before": result.before, "after": result.after}, before)
    write_json(output / REPORT, result.plain())
    print_tax(result.tax, config.confidence, report.console)
    for name, rate in result.length_controlled.items():
        shown = f"{format_number(rate.value)} {format_interval(rate.ci)}"
        report(f"{name}/win_rate at equal length: {shown}")
    report(f"The report is in {output / REPORT}.")
    if config.picture:
        plot_tax(result.tax, output / PICTURE, confidence=config.confidence)
        report(f"Its picture is in {output / PICTURE}.")


def print_tax(tax: Tax, confidence: float, console: Console) -> None:
    """Prints every figure's change, and the exchange rates."""
    words = {True: "better", False: "worse", None: ""}
    table = Table(title=f"after minus before, paired, {100 * confidence:g}% intervals")
    table.add_column("figure", min_width=max(map(len, tax.differences)))
    table.add_column("items")
    for column in ("before", "after", "change", "interval"):
        table.add_column(column, justify="right")
    table.add_column("")
    for name, change in tax.differences.items():
        changed = change.significant and tax.outcomes[name].good == "neither"
        numbers = map(format_number, (change.before, change.after, change.change))
        verdict = "changed" if changed else words[tax.better(name)]
        table.add_row(escape(name), str(change.items), *numbers, format_interval(change.ci), verdict)
    console.print(table)
    for exchange in tax.exchange:
        console.print(format_exchange(exchange, tax.outcomes[exchange.paid]), markup=False)


def format_exchange(exchange: Exchange, paid: Outcome) -> str:
    """Formats an exchange rate as a sentence."""
    if exchange.rate != exchange.rate:
        return f"{exchange.paid} for {exchange.gained}: no rate, {exchange.gained} did not grow beyond chance"
    unit = " (nats a token)" if paid.link is np.exp else ""  # rates use the logarithm of an exponential figure
    rate = f"{format_number(exchange.rate)} {format_interval(exchange.ci)}"
    return f"{exchange.paid} lost{unit} for a unit of {exchange.gained}: {rate}"
