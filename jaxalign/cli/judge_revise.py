"""``jaxalign judge revise``: drafts, criticised and rewritten by principles, as answers to fine-tune on."""

from __future__ import annotations

from jaxalign.cli.console import LiveReport
from jaxalign.judges.revise import RevisionConfig as Config
from jaxalign.judges.revise import revise_answers

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Revises the drafts, and prints where the revisions are."""
    with LiveReport() as report:
        revisions = revise_answers(config, report)
    report(f"The revisions are in {revisions.file}: jaxalign sft trains on them.")
