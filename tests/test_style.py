"""Names and phrases that the project does not use, in code and in prose.

`python tests/test_style.py [DIRECTORY]` prints every place in a checkout, and rates per 1,000 lines.
"""

import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

# Names that say nothing about the value. A name is a variable, parameter, attribute, function, class or module.
NAMES = frozenset(
    ["found", "each", "kept", "said", "mine", "theirs", "told", "beside", "feed", "arms", "warn", "decide"]
)
# `warnings.warn` of the standard library.
ALLOWED_ATTRIBUTES = frozenset([("warnings", "warn")])

# Phrases of a dialect, and what to write instead.
PHRASES = {
    r"besides?": "next to, with, as well as",
    r"anew": "again",
    r"mend(s|ed|ing)?": "fix, repair",
    r"told": "reported, given",
    r"(leaves?|left|leaving)( \w+){0,3} away": "remove, omit",
    r"(is|are) no": "is not a, has no, does not exist",
    r"(goes|go|going|went|gone) on": "continue",
    r"the greatest": "the maximum, the largest",
    r"the least": "the minimum, the smallest",
}
PATTERN = re.compile(r"\b(" + "|".join(phrase.replace(" ", r"\s+") for phrase in PHRASES) + r")\b", re.IGNORECASE)

# Text files that are prose or hold comments. Committed results, data and the licence are neither.
TEXTS = ("*.md", "*.yaml", "*.yml", "*.toml", ".ci/*", ".github/**/*.yml", "docs/**/*.md", "configs/**/*.yaml")


class Place(NamedTuple):
    """An offending place: file, line, and what stands there."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def python_files(root: Path) -> list[Path]:
    return sorted(path for folder in ("jaxalign", "tests") for path in (root / folder).rglob("*.py"))


def cells(root: Path) -> Iterator[tuple[str, str, str]]:
    """Every notebook cell: its place, its type ("code" or "markdown") and its text."""
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            yield f"{path.relative_to(root).as_posix()} cell {number}", cell["cell_type"], "".join(cell["source"])


def code_blocks(root: Path) -> Iterator[tuple[str, int, str]]:
    """Every Python example of the documentation, with its first line."""
    for path in sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md")]):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            yield path.relative_to(root).as_posix(), text.count("\n", 0, match.start(1)) + 1, match[1]


def names_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a module defines or uses, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name):
                yield name, node.lineno
            case ast.Attribute(value=value, attr=name):
                owner = value.id if isinstance(value, ast.Name) else ""
                if (owner, name) not in ALLOWED_ATTRIBUTES:
                    yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.keyword(arg=str(name)):
                yield name, node.lineno
            case ast.alias(name=name, asname=asname):
                yield from ((part, node.lineno) for part in name.split("."))
                if asname:
                    yield asname, node.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno
            case ast.Global(names=several) | ast.Nonlocal(names=several):
                yield from ((name, node.lineno) for name in several)


def literal(node: ast.expr) -> str:
    """A string literal's text; `{}` stands for what an f-string inserts."""
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def literals(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every string literal with its line, adjacent ones joined. Docstrings are literals too."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in parts:
            yield literal(node), node.lineno


def comments(source: str) -> Iterator[tuple[str, int]]:
    """Every comment with its first line; comments on consecutive lines are one text."""
    block: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if block and line != last + 1:
            yield "\n".join(block), first
            block = []
        if not block:
            first = line
        block.append(token.string.lstrip("# "))
        last = line
    if block:
        yield "\n".join(block), first


def phrases(text: str, first: int) -> Iterator[tuple[int, str]]:
    """The phrases in a text that starts on line `first`."""
    for match in PATTERN.finditer(text):
        yield first + text.count("\n", 0, match.start()), " ".join(match[0].split())


def bad_names(root: Path = ROOT) -> list[Place]:
    places = []
    for path in python_files(root):
        name = path.relative_to(root).as_posix()
        used = names_of(ast.parse(path.read_text(encoding="utf-8")))
        places += [Place(name, line, word) for word, line in used if word in NAMES]
        places += [Place(name, 1, path.stem)] if path.stem in NAMES else []
    examples = [*code_blocks(root), *((name, 1, text) for name, kind, text in cells(root) if kind == "code")]
    for name, first, text in examples:
        code = re.sub(r"^[%!].*$", "", text, flags=re.MULTILINE)
        places += [Place(name, first + line - 1, word) for word, line in names_of(ast.parse(code)) if word in NAMES]
    return sorted(places)


def bad_phrases(root: Path = ROOT) -> list[Place]:
    texts: list[tuple[str, str, int]] = []
    for path in python_files(root):
        if path.name == Path(__file__).name:
            continue
        name, source = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        texts += [(name, text, line) for text, line in [*literals(tree), *comments(source)]]
        texts += [
            (name, node.name.replace("_", " "), node.lineno)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
    for path in sorted({path for pattern in TEXTS for path in root.glob(pattern) if path.is_file()}):
        texts.append((path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"), 1))
    texts += [(name, text, 1) for name, _, text in cells(root)]
    return sorted({Place(name, line, phrase) for name, text, first in texts for line, phrase in phrases(text, first)})


def report(places: list[Place]) -> str:
    return "\n".join(["", *map(str, places)])


def test_no_vague_names():
    places = bad_names()
    assert not places, report(places)


def test_no_phrases_of_a_dialect():
    places = bad_phrases()
    assert not places, report(places)


def test_the_checks_see_what_they_look_for():
    source = "import a.feed as arms\n\ndef each(mine, *, told=1):\n    x.kept = found\n    warnings.warn(x)\n"
    assert sorted(name for name, _ in names_of(ast.parse(source)) if name in NAMES) == sorted(
        ["feed", "arms", "each", "mine", "told", "kept", "found"]
    )
    text = "A run\ngoes\non. It is not over; nowhere is nothing. There IS  no end, recommended."
    assert list(phrases(text, 10)) == [(11, "goes on"), (12, "IS no")]
    assert [text for text, _ in literals(ast.parse("f'a {x} b' 'c'"))] == ["a {} bc"]
    assert list(comments("x = 1  # one\n# two\n\n# three\n")) == [("one\ntwo", 1), ("three", 4)]


def main() -> None:
    root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    code = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(root))
    for kind, places in (("names", bad_names(root)), ("phrases", bad_phrases(root))):
        print(*places, f"{kind}: {len(places)}, {1000 * len(places) / code:.2f} per 1,000 lines of Python", sep="\n")


if __name__ == "__main__":
    main()
