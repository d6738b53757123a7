"""Parsers of a judge's answer. What is not certain is None, a failure, and never a label."""

from __future__ import annotations

import re

from jaxalign.judges.pairwise import Verdict

_NOUN = r"(?:(?:the\s+)?(?:response|output|answer|assistant|option|completion|candidate)\s*)"
_WRAP = r"[\s\"'`*_(\[{]*"
_UNWRAP = r"[\"'`*_)\]}]*"
_TIE = r"(?:an?\s+)?(?:tied?|draw|equal(?:ly\s+good)?|both|neither)\b"
_ONE = rf"(?:{_NOUN}?{_WRAP}(?P<label>a|b|[12](?!\.\s*\S))\b|(?:the\s+)?(?P<place>first|second)\b(?:\s+{_NOUN})?)"
_CHOICE = rf"(?:(?P<tie>{_TIE})|{_ONE}){_UNWRAP}"
# After the choice the line may end, or continue as a remark. "A or B", "A/B", "A, but B …", "A is worse" and "a good
# try" are not choices.
_BEST = (
    r"(?:(?:the|clearly|slightly|much|far|overall)\s+)*"
    r"(?:better|best|preferred|preferable|winner|superior|stronger)\b"
)
_END = (
    r"(?=\s*(?:[.;!}]|,(?!\s*(?:an?\s+tie|tie|b|2|second|response|or|but|though|although)\b)|[-–—(]\s|$"
    rf"|(?:(?:is|was)\s+{_BEST}|wins|because|since|as)\b))"
)
_MARK = (
    r"(?:final\s+(?:verdict|answer|choice|decision)|verdict|winner|preferred\s+response|better\s+response|judge?ment)"
)
_MARKED = re.compile(rf"\b{_MARK}[\"'*_]*\s*(?:is\b|[:=])[:=]?{_WRAP}(?P<rest>[^\n]*)", re.I)
_CHOSEN = re.compile(rf"{_WRAP}{_CHOICE}{_END}", re.I)
_BRACKETS = re.compile(r"\[\[\s*(a|b|c|tie)\s*\]\]", re.I)
_WHOLE = re.compile(rf"{_WRAP}{_CHOICE}(?:\s+(?:is|wins)(?:\s+(?:the\s+)?(?:better|best|winner|preferred)"
                    rf"(?:\s+(?:response|one|answer|output))?)?)?[\s.!*]*", re.I)  # fmt: skip
_SCORE = re.compile(
    r"\b(?:final\s+)?(?:score|rating|grade)[\"'*_]*\s*(?:is\b|[:=])[:=]?[\s\"'`*_\[(]*(?P<rest>[^\n]*)", re.I
)
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)(?!\s*(?:-|–|to\b|or\b)\s*\d|,\d)(?:\s*(?:/|out\s+of)\s*(\d+))?(?![\w/])")
_OUT_OF = re.compile(r"(?:/|\bout\s+of)\s*(\d+)")


def parse_verdict(text: str | None) -> Verdict | None:
    """Returns the verdict at the end of a judge's answer: A is "first", B "second".

    It understands ``Verdict: A`` and similar marks (``Winner``, ``Final answer``, JSON), ``[[A]]``, ``[[C]]`` for a
    tie, an answer that is just the label, and a last line that says which response is better. The last of several
    marks counts. Reasoning in ``<think>`` tags does not count.

    Args:
        text: The answer, if there was one.

    Returns:
        "first", "second", "tie", or None if the answer is not certain.

    >>> parse_verdict("Both are fine, but B is shorter.\\n**Verdict: B**")
    'second'
    >>> parse_verdict("Verdict: a tie"), parse_verdict("Verdict: A or B"), parse_verdict("As an AI, I cannot choose.")
    ('tie', None, None)
    """
    text = strip_reasoning(text)
    marks: list[tuple[int, Verdict | None]] = []
    for match in _BRACKETS.finditer(text):
        marks.append((match.start(), _named(match[1], None)))
    for match in _MARKED.finditer(text):
        rest = _CHOSEN.match(match["rest"])
        if not match["rest"].startswith("[["):
            marks.append((match.start(), _named(rest["label"] or rest["tie"], rest["place"]) if rest else None))
    if marks:
        return max(marks, key=lambda mark: mark[0])[1]
    lines = [line for line in text.splitlines() if line.strip()]
    whole = _WHOLE.fullmatch(lines[-1]) if lines else None
    return _named(whole["label"] or whole["tie"], whole["place"]) if whole else None


def parse_score(text: str | None) -> float | None:
    """Returns the score from 1 to 10 at the end of a judge's answer.

    It understands ``Score: 7`` and similar marks (``Rating``, ``Grade``, JSON), ``[[7]]``, ``7/10``, and an answer that
    is just the number. The last of several marks counts. Reasoning in ``<think>`` tags does not count.

    Args:
        text: The answer, if there was one.

    Returns:
        The score, or None if the answer is not certain. A number outside the scale is a failure, not the nearest end.

    >>> parse_score("Clear and right.\\nScore: 8/10"), parse_score("Score: 11"), parse_score("Score: 1 to 10")
    (8.0, None, None)
    """
    text = strip_reasoning(text)
    rests = [(match.start(), match["rest"]) for match in _SCORE.finditer(text)]
    rests += [(match.start(), match[1]) for match in re.finditer(r"\[\[\s*([^\]\n]*)\]\]", text)]
    if rests:
        number = _NUMBER.match(max(rests)[1])
    else:
        lines = [line.strip(" *_.`\"'") for line in text.splitlines() if line.strip()]
        number = _NUMBER.fullmatch(lines[-1]) if lines else None
    if number is None or any(int(whole) != 10 for whole in _OUT_OF.findall(number.string)):
        return None
    return float(number[1]) if 1 <= float(number[1]) <= 10 else None


def strip_reasoning(text: str | None) -> str:
    """Returns an answer without its reasoning; of one that was cut off while reasoning, the empty string.

    >>> strip_reasoning("<think>A? B!</think> A"), strip_reasoning("<think>A? ")
    (' A', '')
    """
    return re.sub(r"(?is)<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", "", text or "")


def _named(label: str | None, place: str | None) -> Verdict | None:
    word = (place or label or "").lower()
    if word in ("a", "1", "first"):
        return "first"
    if word in ("b", "2", "second"):
        return "second"
    return "tie" if word else None
