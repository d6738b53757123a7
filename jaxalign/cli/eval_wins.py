"""``jaxalign eval wins RUN``: how often one model's answers beat another's, by AI judges."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxalign.checkpoint import check_writable
from jaxalign.cli.console import LiveReport
from jaxalign.cli.eval import RANGES, format_interval, format_number, write_json
from jaxalign.cli.judge_audit import flags
from jaxalign.errors import UserError
from jaxalign.evals import measure_wins
from jaxalign.judges.audit_file import PANEL, AuditConfig, locate_verdicts, read_verdicts
from jaxalign.settings import check_ranges
from jaxalign.stats import Bootstrap

__all__ = ["Config", "flags", "run"]
REPORT = "wins.json"


@dataclasses.dataclass(frozen=True)
class Config:
    """Win rate of one side's answers by the judges of a run of `jaxalign judge`, raw and at equal length.

    A verdict that changes with the order, a tie and a failure count half; `jaxalign judge` omits equal answers.

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


def run(config: Config) -> None:
    """Prints a line for each judge, and writes the rates as JSON."""
    check_ranges(config, RANGES)
    path, output = locate_verdicts(config.path, config.output)
    check_writable(output)
    audit = AuditConfig(config.path, columns=config.columns, second_names=config.second_names)
    names = [name for name in read_verdicts(path, audit) if name != PANEL]
    verdicts = read_verdicts(path, dataclasses.replace(audit, family=dict.fromkeys(names, config.of)))
    bootstrap = Bootstrap(config.confidence, config.resamples, config.seed)
    try:
        result = measure_wins(verdicts, config.of, bootstrap=bootstrap)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    report = LiveReport()
    for name, rates in result.judges.items():
        for what, rate in rates.items():
            shown = f"{format_number(rate.value)} {format_interval(rate.ci)} of {rate.items} pairs"
            report(f"{name}: {what.replace('_', ' ')} of {config.of} {shown}")
    write_json(output / REPORT, result.plain())
    report(f"The report is in {output / REPORT}.")
