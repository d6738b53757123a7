"""``jaxalign judge``: labels answers with AI judges. ``jaxalign judge audit`` measures the judges."""

from __future__ import annotations

from jaxalign.cli.console import LiveReport
from jaxalign.judges.labelling import LabellingConfig as Config
from jaxalign.judges.labelling import label_answers

__all__ = ["TASKS", "Config", "run"]
TASKS = {"audit": "jaxalign.cli.judge_audit", "revise": "jaxalign.cli.judge_revise"}


def run(config: Config) -> None:
    """Labels the answers, and prints where the labels are."""
    with LiveReport() as report:
        labels = label_answers(config, report)
    report(f"The labelled data are in {labels.file}. To measure the judges: jaxalign judge audit {config.output}")
