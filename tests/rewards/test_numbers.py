"""The GSM8K grader against all reference answers, rewritten in every form that people and models write numbers in."""

import gzip
import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.errors import UserError
from jaxalign.rewards import final_number, number_match

FORMS = {  # of an integer n that has been written with its thousands separators, {c}, or without, {n}
    "marked": "so that\n#### {n}",
    "commas": "so that\n#### {c}",
    "bare": "The answer is {n}",
    "bare, commas, full stop": "He had 3 at first, and has {c}.",
    "bold": "**Answer: {c}**",
    "units": "Step 1: 2 + 2.\n#### {n} apples",
    "currency": "That is 10% of 50.\n#### ${c}",
    "currency after": "#### {c} €",
    "currency code": "She pays USD {c}.",
    "percent": "#### {n}%",
    "decimals": "#### {n}.00",
    "currency, decimals": "In 2 days it is ${c}.00.",
    "boxed": r"Thus \boxed{{{n}}} is the answer to part 1.",
    "boxed, commas": r"$\boxed{{{c}}}$",
    "boxed, LaTeX commas": r"\[\boxed{{{l}}}\]",
    "boxed, text and braces": r"$\boxed{{\text{{{n} {{dollars}} for 2}}}}$, or 7",
    "boxed, text behind": r"\boxed{{{c}\text{{ cm}}^2}}",
    "boxed, dollar": r"\boxed{{\${c}}} as 3 is odd",
    "boxed, percent": r"\boxed{{{n}\%}}",
    "boxed, equation": r"\boxed{{x_1 = {n}}}",
    "marked and boxed": r"#### \boxed{{{n}}}",
    "marked, in words": "#### The final answer is: {n}",
    "marked, next line": "####\n{n}",
    "marked, bold": "#### **{c}**",
    "heading": "#### Step 1: add 5 and 6\n11\n#### 2. Multiply by 9\nThe total is {n}.",
    "math": r"\( {n} \)",
    "fraction": "#### {twice}/2",
    "LaTeX fraction": r"\boxed{{\dfrac{{{twice}}}{{2}}}}",
    "two marks": "#### 77771\nNo, wait.\n#### {n}",
    "calculator": "2*3=<<2*3=6>>6, it makes {n}<<1+1=2>>",
}


@pytest.fixture(scope="module")
def references(shared_data):
    with gzip.open(shared_data / "gsm8k" / "gsm8k.jsonl.gz", "rt") as lines:
        answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) == 800
    return answers


def score(completions, answers, **options):
    rows = [{"answer": answer} for answer in answers]
    return list(number_match(**options)([""] * len(rows), completions, rows))


def official(answer):
    """The number as the data set's README says to read it."""
    return int(answer.rpartition("#### ")[2].replace(",", ""))


def write(form, n):
    separated = f"{n:,}"
    return FORMS[form].format(n=n, c=separated, l=separated.replace(",", "{,}"), twice=2 * n)


def test_every_reference_answer_is_right(references):
    assert [final_number(answer) for answer in references] == [official(answer) for answer in references]
    assert score(references, references) == [1.0] * 800
    assert score(references, references, marked=True) == [1.0] * 800


@pytest.mark.parametrize("sign", [1, -1], ids=["as it is", "negated"])
@pytest.mark.parametrize("form", FORMS)
def test_every_reference_number_in_other_forms(references, form, sign):
    numbers = [sign * official(answer) for answer in references]
    answers = [f"#### {n}" for n in numbers]
    completions = [write(form, n) for n in numbers]
    assert score(completions, answers) == [1.0] * 800
    assert score([write(form, n + 1) for n in numbers], answers) == [0.0] * 800
    assert score([write(form, -n) for n in numbers], answers) == [float(n == 0) for n in numbers]
    assert score([write(form, 10 * n) for n in numbers], answers) == [float(n == 0) for n in numbers]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", None),
        ("I do not know.", None),
        ("#### none", None),
        (r"\boxed{}", None),
        (r"\boxed{\sqrt{2}}", 2),
        (r"\boxed{\frac{3}{4}}", Fraction(3, 4)),
        (r"\boxed{-\frac{3}{4}}", Fraction(-3, 4)),
        (r"\boxed{1\frac12}", Fraction(3, 2)),
        ("#### 1 3/4 cups", Fraction(7, 4)),
        ("#### 3/4", Fraction(3, 4)),
        ("#### 3/0", None),
        ("#### .5", Fraction(1, 2)),
        ("#### -$5", -5),
        ("#### $-5", -5),
        ("#### − 5", -5),
        ("#### +5", 5),
        ("#### 1e3", 1000),
        ("1,234,567.89 in all", Fraction(123456789, 100)),
        ("from 10-20", 20),
        ("it is 16 - 3 = 13", 13),
        ("the list\n- 18 eggs", 18),
        ("1,2345", 2345),
        ("in 12, 34", 34),
        ("CO2 and H2O", None),
        (r"\boxed{7", 7),
        (r"\boxed{1} and then \boxed{2} of 3", 2),
        ("\\boxed{5}\n#### 6", 6),
        ("1\u202f000\u202f000", 10**6),
        ("9" * 5000, None),
    ],
)
def test_numbers(text, number):
    assert final_number(text) == number


def test_marked_only():
    assert final_number("It is 5.", marked=True) is None
    assert final_number("#### 5 of 6", marked=True) == 5
    assert score(["18", "#### 18"], ["#### 18"] * 2, marked=True) == [0, 1]


def test_comparison_is_exact_unless_a_tolerance_is_given():
    assert score(["1000001", "0.50", "33.33"], ["1000000", "1/2", "100/3"]) == [0, 1, 0]
    assert score(["33.33", "33.3"], ["100/3"] * 2, tolerance=0.01) == [1, 0]
    assert score(["0.1"], [0.1]) == [1]
    with pytest.raises(UserError, match="tolerance is -1"):
        number_match(tolerance=-1)


@pytest.mark.parametrize("row", [{}, {"answer": "none"}, {"answer": None}, {"answer": True}, {"answer": float("nan")}])
def test_a_row_without_an_answer_is_named(row):
    with pytest.raises(UserError, match="Row 2: field 'answer'"):
        number_match()(["", ""], ["1", "1"], [{"answer": "1"}, row])


@given(st.text(alphabet="0123456789,.-+$%#{}\\/ \neEboxdfrac<>"))
def test_any_text_is_graded(text):
    number = final_number(text)
    assert number is None or isinstance(number, Fraction)
    marked = final_number(text, marked=True)
    assert marked is None or marked == number
