"""The README's commands stand between markers, its table repeats what was measured, and it stays short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@pytest.mark.parametrize("name", ["quickstart", "main command", "test command"])
def test_commands_stand_between_markers(name):
    assert re.search(rf"<!-- {name} -->\n```sh\n[^\n]+\n```\n<!-- end -->", README)


def test_the_quickstart_table_repeats_what_was_measured():
    shown = re.search(r"<!-- quickstart table -->\n(.*?)<!-- end -->", README, flags=re.DOTALL)
    assert shown is not None
    lines = shown[1].splitlines()
    measured = (ROOT / "docs/quickstart/table.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(measured) == 8
    columns = [cells(measured[0]).index(name) for name in cells(lines[0])]
    assert 2 <= len(columns) <= 6
    assert [cells(line) for line in lines] == [[cells(line)[column] for column in columns] for line in measured]


def test_it_is_short():
    assert len(README.split()) <= 900
    assert all(len(cells(line)) <= 6 for line in README.splitlines() if line.startswith("|"))
