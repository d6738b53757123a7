"""A judge's answer read as a verdict or a score. What is not certain is None, a failure, and never a label."""

from __future__ import annotations

import re

from jaxalign.judges.pairwise import Verdict

_NOUN = r"(?:(?:the\s+)?(?:response|output|answer|assistant|option|completion|candidate)\s*)"
_WRAP = r"[\s\"'`*_(\[{]*"
_UNWRAP = r"[\"'`*_)\]}]*"
_TIE = r"(?:an?\s+)?(?:tied?|draw|equal(?:ly\s+good)?|both|neither)\b"
_ONE = rf"(?:{_NOUN}?{_WRAP}(?P<label>a|b|[12](?!\.\s*\S))\b|(?:the\s+)?(?P<place>first|second)\b(?:\s+{_NOUN})?)"
_CHOICE = rf"(?:(?P<tie>{_TIE})|{_ONE}){_UNWRAP}"
# Behind the choice the line may end, or go on as a remark; "A or B", "A/B", "A, but B …", "A is worse" and "a good try"
# are no choice.
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
    """The verdict that a judge's answer ends with: A is "first", B "second".

    Understood are ``Verdict: A`` and its relatives (``Winner``, ``Final answer``, JSON), ``[[A]]``, ``[[C]]`` for a
    tie, an answer that is nothing but the label, and a last line that says which response is better. The last of
    several marks counts; reasoning in ``<think>`` tags does not.

    Args:
        text: the answer; None where there was none.

    Returns:
        "first", "second", "tie", or None where the answer does not say for certain.

    >>> parse_verdict("Both are fine, but B is shorter.\\n**Verdict: B**")
    'second'
    >>> parse_verdict("Verdict: a tie"), parse_verdict("Verdict: A or B"), parse_verdict("As an AI, I cannot choose.")
    ('tie', None, None)
    """
    text = spoken(text)
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


def parse_score(text: str | None, *, low: float = 1, high: float = 10) -> float | None:
    """The score that a judge's answer ends with.

    Understood are ``Score: 7`` and its relatives (``Rating``, ``Grade``, JSON), ``[[7]]``, ``7/10``, and an answer that
    is nothing but the number. The last of several marks counts; reasoning in ``<think>`` tags does not.

    Args:
        text: the answer; None where there was none.
        low, high: the scale; a number outside is a failure and not the nearest end.

    Returns:
        the score, or None where the answer does not say for certain.

    >>> parse_score("Clear and right.\\nScore: 8/10"), parse_score("Score: 11"), parse_score("Score: 1 to 10")
    (8.0, None, None)
    """
    text = spoken(text)
    rests = [(match.start(), match["rest"]) for match in _SCORE.finditer(text)]
    rests += [(match.start(), match[1]) for match in re.finditer(r"\[\[\s*([^\]\n]*)\]\]", text)]
    if rests:
        number = _NUMBER.match(max(rests)[1])
    else:
        lines = [line.strip(" *_.`\"'") for line in text.splitlines() if line.strip()]
        number = _NUMBER.fullmatch(lines[-1]) if lines else None
    if number is None or any(float(whole) != high for whole in _OUT_OF.findall(number.string)):
        return None
    return float(number[1]) if low <= float(number[1]) <= high else None


def spoken(text: str | None) -> str:
    """The answer without its reasoning; nothing is left of one that was cut off while reasoning.

    >>> spoken("<think>A? B!</think> A"), spoken("<think>A? ")
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
