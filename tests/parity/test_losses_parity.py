"""Every loss against TRL, RLax or a transcription of its paper; and the table in the documentation, made of the errors.

``JAXALIGN_WRITE_TABLES=1`` writes the table again.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import pytest

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
pytest.importorskip("trl", reason="TRL is only in the parity environment")

from jaxalign import losses
from tests.losses.registry import OTHERS, PUBLIC
from tests.parity import loss_checks_numpy, loss_checks_policy, loss_checks_preferences
from tests.parity.loss_checks import Check

CHECKS = loss_checks_preferences.CHECKS + loss_checks_policy.CHECKS + loss_checks_numpy.CHECKS
DOCS = Path(__file__).parents[2] / "docs" / "losses.md"
BEGIN, END = "<!-- table of checks -->", "<!-- end of table -->"


@functools.cache
def error(check: Check) -> float:
    return check.run()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.name} {check.against}".replace("`", ""))
def test_parity(check):
    assert error(check) <= check.tolerance


def test_a_wrong_formula_is_noticed():
    """The harness itself: another β is an error of percents."""
    wrong = loss_checks_preferences.by_sums(losses.dpo, beta=0.11)
    assert loss_checks_preferences.dpo_check("", wrong, "sigmoid").run() > 1e-2


def test_every_loss_is_checked():
    named = set(re.findall(r"`(\w+)`", " ".join(check.name for check in CHECKS)))
    assert PUBLIC - named <= OTHERS | {"sum_logps"}, "sum_logps stands unnamed in most checks"


def rows(text: str) -> dict[tuple[str, str], float]:
    table = text[text.index(BEGIN) : text.index(END)]
    matches = re.findall(r"^\| (.+?) \| (.+?) \| ([\d.e+-]+) \|$", table, flags=re.MULTILINE)
    return {(name, against): float(number) for name, against, number in matches}


def test_table_in_the_documentation():
    measured = {(check.name, check.against): error(check) for check in CHECKS}
    text = DOCS.read_text()
    if os.environ.get("JAXALIGN_WRITE_TABLES"):
        lines = [f"| {name} | {against} | {worst:.0e} |" for (name, against), worst in sorted(measured.items())]
        table = "\n".join(["| function | checked against | worst error |", "|---|---|---|", *lines])
        text = text[: text.index(BEGIN) + len(BEGIN)] + f"\n{table}\n" + text[text.index(END) :]
        DOCS.write_text(text)
    written = rows(text)
    assert written.keys() == measured.keys()
    for row, worst in measured.items():
        assert worst <= max(10 * written[row], 1e-12), f"{row}: the documentation says {written[row]}, now {worst}"
