"""Answers as judges write them: read right, or not read at all."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.errors import UserError
from jaxalign.judges import (
    Principle,
    Reply,
    draw_principle,
    judge_pairs,
    judge_scores,
    load_constitution,
    panel_vote,
    parse_score,
    parse_verdict,
    render,
    verdict_probability,
)
from jaxalign.judges.prompts import PAIRWISE, POINTWISE

VERDICTS = {
    "first": [
        "A", "a", "(A)", "**A**", "A.", "Output (a)", "Response A", "The first response", "First.",
        "Verdict: A", "verdict: a", "**Verdict: A**", "**Verdict:** A", "Verdict: **A**", "Verdict : Response A.",
        "Final verdict: [[A]]", "[[A]]", 'Here: {"reason": "x", "verdict": "A"}', "Winner: Assistant A!",
        "B is longer. But A is right.\n\nVerdict: A", "Verdict: B\nNo, I was wrong.\nVerdict: A",
        "<think>Verdict: B</think>Verdict: A", "Response A is better", "A is the better response.",
        "Verdict: A, because it answers.", "Verdict: A - it answers", "My final answer is A", "Verdict: 1",
        "Verdict: 1.", "Verdict: A is clearly better than B.", "Verdict: A was better",
        "Verdict: the first response", "Verdict: A or B?\nVerdict: A", "1",
    ],
    "second": ["B", "Verdict: B", "[[B]]", "Verdict: Response (B)", "Output (b)", "The second response is better.",
               "2"],
    "tie": ["tie", "Tie.", "Verdict: tie", "Verdict: a tie", "[[C]]", "Verdict: Tied", "Verdict: neither",
            "Verdict: both", "Verdict: A draw", "Verdict: equally good"],
    None: [
        "", "   ", None, "C", "I cannot choose.", "A or B", "Verdict: A or B", "Verdict: A/B", "Verdict: A, B or tie",
        "Verdict:", "Verdict: unclear", "Verdict: a good try by both", "<think>Verdict: A",
        "Both have merits. A good day!",
        "A is not better", "Response A and Response B", "Verdict: AB", "As an AI, I have no preference.", "[[D]]",
        "Verdict: A is worse than B", "A is inferior to B", "Verdict: A was the weaker one",
        "Verdict: A, but B is better",
        "Verdict:\n1. Response A is rude.\n2. Response B is better.",
        "Verdict: A\nVerdict: unclear", "A\nB or A", "12", "Verdict: 10", "Verdict: better", "Verdict: A is not better",
    ],
}  # fmt: skip
CASES = [(text, label) for label, texts in VERDICTS.items() for text in texts]


@pytest.mark.parametrize(("text", "label"), CASES)
def test_verdicts(text, label):
    assert parse_verdict(text) == label


@given(st.text(alphabet="abAB12 \n.,:/*[](){}\"'-or verdict tiefrscond"))
def test_any_answer_is_a_verdict_or_a_failure(text):
    assert parse_verdict(text) in ("first", "second", "tie", None)
    assert parse_verdict("Verdict: A\n<think>" + text) == "first"
    score = parse_score(text)
    assert score is None or 1 <= score <= 10


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 7", 7), ("7", 7), ("**Score:** 7.5", 7.5), ("Rating: 8/10", 8), ("[[9]]", 9), ("7 out of 10", 7),
        ('{"score": 3}', 3), ("I give 2 of 3 points.\nScore: 4", 4), ("Score: 3\nScore: 5", 5), ("score is 10.", 10),
        ("<think>Score: 2</think>\nScore: 6", 6), ("7/10", 7), ("", None), (None, None), ("Score: N", None),
        ("Score: 0", None), ("Score: 11", None), ("Score: -3", None), ("Score: 70/100", None), ("Score: 7/100", None),
        ("Score: 8 (out of 100)", None), ("Score: 1,000", None), ("Score: 4 stars out of 5", None),
        ("Score: 1-10", None), ("Score: 6 or 7", None), ("about 7 I think", None), ("It has 3 errors.", None),
    ],
)  # fmt: skip
def test_scores(text, score):
    assert parse_score(text) == score


def test_templates_show_everything_once_and_nothing_twice():
    values = {"prompt": "WHY", "response_a": "{{ prompt }} AAA", "response_b": "{% if %} BBB"}
    for think in (False, True):
        for principle in ("", "Be kind."):
            text = render(PAIRWISE, **values, principle=principle, think=think)
            assert text.count("WHY") == 1
            assert text.index("{{ prompt }} AAA") < text.index("{% if %} BBB")
            assert ("Be kind." in text) == bool(principle)
            assert text.splitlines()[-3:] == ["Verdict: A", "Verdict: B", "Verdict: tie"]
            score = render(POINTWISE, prompt="WHY", response="BECAUSE", principle=principle, think=think)
            assert "\nScore: N\n" in score
            assert ("few sentences" in text) == ("few sentences" in score) == think
            assert "{#" not in text + score


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ prompt", "line 1: not a template"),
        ("{{ promt }}", "'promt' is undefined. The variables are prompt"),
        ("{{ prompt.__class__.__mro__ }}", "unsafe"),
        ("{{ 1 / 0 }}", "cannot be filled in"),
    ],
)
def test_a_broken_template_is_refused(tmp_path, source, words):
    file = tmp_path / "mine.txt"
    file.write_text(source)
    with pytest.raises(UserError) as error:
        render(file, prompt="x")
    assert str(file) in str(error.value)
    assert words in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        render(tmp_path / "none.txt")


def test_an_edited_template_is_read_again(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("one {{ prompt }}")
    assert render(file, prompt="x") == "one x"
    file.write_text("two {{ prompt }}")
    assert render(file, prompt="x") == "two x"


def test_a_constitution(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("- id: a\n  text: >\n    Be\n    kind.\n  weight: 3\n- {id: b, text: Be brief.}\n")
    principles = load_constitution(file)
    assert principles == (Principle("a", "Be kind.", 3.0), Principle("b", "Be brief.", 1.0))
    drawn = [draw_principle(principles, f"prompt {i}").id for i in range(4000)]
    assert abs(drawn.count("a") / 4000 - 0.75) < 0.025
    again = [draw_principle(principles, f"prompt {i}").id for i in reversed(range(4000))]
    assert drawn == again[::-1]  # by the prompt, whatever came before
    other = [draw_principle(principles, f"prompt {i}", seed=1).id for i in range(4000)]
    assert abs(np.mean([x == y for x, y in zip(drawn, other, strict=True)]) - (0.75**2 + 0.25**2)) < 0.03
    never = (Principle("a", "x", 0.0), Principle("b", "y"))
    assert {draw_principle(never, str(i)).id for i in range(100)} == {"b"}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("a: [", "not YAML"),
        ("", "it contains no principles"),
        ("id: a", "it contains no principles"),
        ("- a", "principle 1: it is of type str"),
        ("- {id: a}", "principle 1: text is missing"),
        ("- {id: 3, text: x}", "principle 1: id is missing or not a string"),
        ("- {id: a, text: x, wieght: 2}", "unknown key 'wieght'"),
        ("- {id: a, text: x, weight: -1}", "weight is -1"),
        ("- {id: a, text: x, weight: .nan}", "weight is nan"),
        ("- {id: a, text: x}\n- {id: a, text: y}", "id 'a' appears more than once"),
        ("- {id: a, text: x, weight: 0}", "every weight is 0"),
    ],
)
def test_a_broken_constitution_is_refused(tmp_path, source, words):
    file = tmp_path / "mine.yaml"
    file.write_text(source)
    with pytest.raises(UserError) as error:
        load_constitution(file)
    assert str(error.value).startswith(str(file))
    assert words in str(error.value)


def test_pairs_are_asked_in_both_orders_and_by_their_principle():
    asked = []

    def judge(questions):
        asked.extend(question[0]["content"] for question in questions)
        return [Reply("Verdict: A"), Reply("Verdict: B"), Reply("who knows"), Reply(None, "server said 500")]

    kind = Principle("kind", "Be kind.")
    one, two = judge_pairs(judge, ["p", "q"], ["r1", "s1"], ["r2", "s2"], principles=[kind, None])
    assert (one.first_order, one.second_order, one.principle) == ("first", "second", "kind")
    assert (two.first_order, two.second_order, two.principle) == (None, None, None)
    assert two.replies[1].error == "server said 500"
    assert [text.index("r1") < text.index("r2") for text in asked[:2]] == [True, False]
    assert ["Be kind." in text for text in asked] == [True, True, False, False]
    assert one.prompt_hash != two.prompt_hash
    with pytest.raises(UserError, match="2, 1, 1, 2, 2 in number"):
        judge_pairs(judge, ["p", "q"], ["r1"], ["r2"])
    with pytest.raises(UserError, match="4 replies to 2 questions"):
        judge_pairs(judge, ["p"], ["r"], ["s"])
    assert judge_scores(lambda questions: [Reply("8"), Reply(None)], ["p", "q"], ["r", "s"]) == [8, None]


def test_log_probabilities_of_the_verdict():
    logs = [{"Verdict": 0.0}, {" B": math.log(0.6), "A": math.log(0.2), " A": math.log(0.1), " tie": math.log(0.1)}]
    assert verdict_probability(logs) == pytest.approx(0.3 / 0.9)
    assert verdict_probability([]) is None
    behind = [{"B": math.log(0.9), "A": math.log(0.1)}, {"\n": -0.1}, {"A": math.log(0.9), "B": math.log(0.1)}]
    assert verdict_probability(behind, "second") == pytest.approx(0.1), "a remark on A is not the verdict"
    assert verdict_probability(behind, "tie") is None
    assert verdict_probability([{" tie": -0.1, "A": -3.0}]) is None
    assert verdict_probability([{"A": math.log(0.2), "B": math.log(0.1)}]) is None  # most of the mass lies elsewhere
    judged = judge_pairs(lambda q: [Reply("Verdict: B", logprobs=tuple(logs))] * 2, ["p"], ["r"], ["s"])
    assert judged[0].probabilities == (pytest.approx(1 / 3),) * 2


def test_votes():
    panel = {
        "a": ["first", "first", None, "tie"],
        "b": ["second", None, None, "tie"],
        "c": ["second", None, "tie", "first"],
    }
    assert panel_vote(panel) == ["second", None, None, "tie"]
    assert panel_vote(panel, least_share=0) == ["second", "first", "tie", "tie"]
    assert panel_vote(panel, {"a": 2.5, "b": 1, "c": 1}) == ["first", "first", None, "tie"]
    assert panel_vote({"a": ["first"], "b": [None]}) == ["first"]  # half of the weight is enough
    for weights, words in (
        ({"a": 1}, "'b' has no weight"),
        ({"a": -1, "b": 1, "c": 1}, "the weights are {'a': -1"),
    ):
        with pytest.raises(UserError, match=words):
            panel_vote(panel, weights)
    with pytest.raises(UserError, match="no judge"):
        panel_vote({})


def test_a_ten_in_two_tokens_is_ten():
    halves = Reply("Score: 10", logprobs=({"Score: ": 0.0}, {"1": -0.05, "2": -3.0}, {"0": -0.01}))
    assert judge_scores(lambda questions: [halves], ["p"], ["r"]) == [10]
    whole = Reply("Score: 10", logprobs=({"10": math.log(0.5), "8": math.log(0.5)},))
    assert judge_scores(lambda questions: [whole], ["p"], ["r"]) == [pytest.approx(9)]
