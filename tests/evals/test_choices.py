"""Rows of many shapes as questions with choices, and how far a model's shares of them are from the truth."""

import numpy as np
import pytest

from jaxalign.data.files import Problem
from jaxalign.evals import Choice, parse_choice
from jaxalign.evals.choices import brier_score

ARC = {"question": "what falls?", "choices": {"text": ["rain", "light"], "label": ["A", "B"]}, "answerKey": "B"}
TRUTHFUL = {"question": "what is it?", "mc1_targets": {"choices": ["so", "not so"], "labels": [0, 1]}}


@pytest.mark.parametrize(
    ("row", "choice"),
    [
        (ARC, Choice("what falls?", ("rain", "light"), 1)),
        ({**ARC, "choices": {"text": ["rain", "light"], "label": ["1", "2"]}, "answerKey": "1"}, None),
        (TRUTHFUL, Choice("what is it?", ("so", "not so"), 1)),
        (
            {"question": "what is it?", "mc1_targets": {"so": 0, "not so": 1}},
            Choice("what is it?", ("so", "not so"), 1),
        ),
        ({"prompt": "p", "choices": ["a", "b"], "label": "1"}, Choice("p", ("a", "b"), 1)),
        ({"prompt": "p", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "label": 1}, Choice("p", ("a", "b"), 1)),
    ],
)
def test_rows_of_known_data_sets(row, choice):
    assert parse_choice(row) == (choice or Choice("what falls?", ("rain", "light"), 0))


def test_a_label_from_a_file_of_labels_counts():
    assert parse_choice(ARC, 0) == Choice("what falls?", ("rain", "light"), 0)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**ARC, "answerKey": "E"}, "answerKey must be one of the choices' labels"),
        ({key: ARC[key] for key in ("question", "choices")}, "the label must be the number of a choice"),
        ({"question": "q", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}}, "exactly one choice"),
        ({"prompt": "p", "choices": ["a", "b"], "label": 2}, "from 0 to 1"),
        ({"prompt": "p", "choices": ["a", ""], "label": 0}, "none of them empty"),
    ],
)
def test_rows_that_are_not_a_question(row, words):
    with pytest.raises(Problem, match=words):
        parse_choice(row)


def test_the_brier_score_is_0_for_a_sure_right_answer_2_for_a_sure_wrong_one():
    assert brier_score(np.array([-1.0, -800.0]), 0) == pytest.approx(0)
    assert brier_score(np.array([-1.0, -800.0]), 1) == pytest.approx(2)
    assert brier_score(np.full(4, -3.0), 2) == pytest.approx(3 * 0.25**2 + 0.75**2)
