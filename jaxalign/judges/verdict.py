"""Verdicts and scores from a judge's answer and its log-probabilities. What is not certain is None, never a label."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from string import ascii_uppercase

from jaxalign.judges.pairwise import VERDICTS_BY_NAME, Verdict

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

_RANKING = re.compile(r"\branking[\"'*_]*\s*(?:is\b|[:=])\s*(?P<rest>[^\n]*)", re.I)
# Minimum probability of all labels together. Below it the judge was not choosing between them.
MINIMUM_MASS = 0.5


def parse_verdict(text: str | None) -> Verdict | None:
    r"""Returns the verdict at the end of a judge's answer: A is "first", B "second".

    It understands ``Verdict: A`` and similar marks (``Winner``, ``Final answer``, JSON), ``[[A]]``, and ``[[C]]`` for
    a tie. It also understands an answer that is just the label, and a last line that says which response is better.
    The last of several marks counts. Reasoning in ``<think>`` tags does not count.

    Args:
        text: The answer, if there was one.

    Returns:
        "first", "second", "tie", or None if the answer is not certain.

    >>> parse_verdict("Both are fine, but B is shorter.\n**Verdict: B**")
    'second'
    >>> parse_verdict("Verdict: a tie"), parse_verdict("Verdict: A or B"), parse_verdict("As an AI, I cannot choose.")
    ('tie', None, None)
    """
    text = strip_reasoning(text)
    marks: list[tuple[int, Verdict | None]] = []
    for match in _BRACKETS.finditer(text):
        marks.append((match.start(), _verdict_of(match[1])))
    for match in _MARKED.finditer(text):
        rest = _CHOSEN.match(match["rest"])
        if not match["rest"].startswith("[["):
            marks.append((match.start(), _verdict_of(rest["place"] or rest["label"] or rest["tie"]) if rest else None))
    if marks:
        return max(marks, key=lambda mark: mark[0])[1]
    lines = [line for line in text.splitlines() if line.strip()]
    whole = _WHOLE.fullmatch(lines[-1]) if lines else None
    return _verdict_of(whole["place"] or whole["label"] or whole["tie"]) if whole else None


def parse_score(text: str | None) -> float | None:
    r"""Returns the score from 1 to 10 at the end of a judge's answer.

    It understands ``Score: 7`` and similar marks (``Rating``, ``Grade``, JSON), ``[[7]]``, ``7/10``, and an answer that
    is just the number. The last of several marks counts. Reasoning in ``<think>`` tags does not count.

    Args:
        text: The answer, if there was one.

    Returns:
        The score, or None if the answer is not certain. A number outside the scale is a failure, not the nearest end.

    >>> parse_score("Clear and right.\nScore: 8/10"), parse_score("Score: 11"), parse_score("Score: 1 to 10")
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


def parse_ranking(text: str | None, number: int) -> tuple[int, ...] | None:
    r"""Returns the ranking at the end of a judge's answer: "Ranking: B > A" is (1, 0).

    The last such line counts. It must contain every letter once, separated by ``>``. Reasoning in ``<think>`` tags
    does not count.

    Args:
        text: The answer, if there was one.
        number: K, how many responses were shown.

    Returns:
        The indices of the responses, best first, or None if the answer is not certain.

    >>> parse_ranking("A is clear.\n**Ranking: [[C]] > A > B.**", 3)
    (2, 0, 1)
    >>> parse_ranking("Ranking: A > B", 3), parse_ranking("Ranking: A = B > C", 3)
    (None, None)
    """
    answer = strip_reasoning(text)
    marks = list(_RANKING.finditer(answer))
    lines = [line for line in answer.splitlines() if line.strip()]
    rest = marks[-1]["rest"] if marks else lines[-1] if lines else ""
    letters = [part.strip(" \t.*_`\"'[](){}").upper() for part in rest.split(">")]
    if sorted(letters) != list(ascii_uppercase[:number]):
        return None
    return tuple(ascii_uppercase.index(letter) for letter in letters)


def strip_reasoning(text: str | None) -> str:
    """Returns an answer without its reasoning; of one that was cut off while reasoning, the empty string.

    >>> strip_reasoning("<think>A? B!</think> A"), strip_reasoning("<think>A? ")
    (' A', '')
    """
    return re.sub(r"(?is)<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", "", text or "")


def _verdict_of(name: str | None) -> Verdict | None:
    """Returns the verdict that a label, a place or a word for a tie names."""
    return VERDICTS_BY_NAME.get(name.lower(), "tie") if name else None


def verdict_probability(logprobs: Sequence[Mapping[str, float]], verdict: Verdict | None = None) -> float | None:
    """Returns P(first) = p(A) / (p(A) + p(B)) at the last token of an answer that is one of the labels A and B.

    Args:
        logprobs: Alternatives and their log-probabilities for every token of the answer, the API's ``top_logprobs``.
        verdict: The verdict of the answer as a whole. A token with the other label is skipped ("A is wordy" after
            "Verdict: B"). None takes the last label.

    Returns:
        The probability, or None if no token chooses, or if the labels together have less than ``MINIMUM_MASS``.

    >>> verdict_probability([{"Verdict": -0.01}, {":": -0.01}, {" A": -0.22314, " B": -1.60944}])
    0.8...
    """
    wanted = {None: "AB", "first": "A", "second": "B", "tie": ""}[verdict]
    shares = _last_choice(logprobs, list(wanted), ["A", "B"])
    mass = [sum(p for name, p in shares if name == label) for label in "AB"]
    return mass[0] / sum(mass) if sum(mass) >= MINIMUM_MASS else None


def score_expectation(logprobs: Sequence[Mapping[str, float]], written: float | None = None) -> float | None:
    """Returns Σ_s s p(s) / Σ_s p(s) over the scores s from 1 to 10 at the last token that is a score.

    Source: Liu et al. 2023, arXiv:2303.16634, eq. 1.

    Args:
        logprobs: Alternatives and their log-probabilities for every token of the answer.
        written: The score in the answer. A token with another number is skipped (the "1" of a "10" in two tokens, or a
            number in a remark). None takes the last number.

    Returns:
        The expectation, or None if no token scores, or if the scores together have less than ``MINIMUM_MASS``.

    >>> score_expectation([{"Score": -0.01}, {":": -0.01}, {" 7": -0.6931, " 8": -0.6931}])
    7.5
    >>> score_expectation([{"Score": -0.01}, {":": -0.01}, {" 1": -0.01}, {"0": -0.01}], written=10) is None
    True
    """
    scale = {str(score): score for score in range(1, 11)}
    wanted = [label for label, score in scale.items() if written in (None, score)]
    shares = _last_choice(logprobs, wanted, scale)
    total = sum(p for _, p in shares)
    return sum(scale[label] * p for label, p in shares) / total if total >= MINIMUM_MASS else None


def _last_choice(
    logprobs: Sequence[Mapping[str, float]], wanted: Collection[str], labels: Collection[str]
) -> list[tuple[str, float]]:
    """Returns the labels and their probabilities at the last token whose likeliest alternative is wanted, if any."""
    for token in reversed(logprobs):
        if token and max(token, key=lambda name: token[name]).strip() in wanted:
            return [(name.strip(), math.exp(value)) for name, value in token.items() if name.strip() in labels]
    return []
