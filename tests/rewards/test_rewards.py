"""Reward functions called, checked, found by name and run in threads; every mistake is one line."""

import inspect
import re
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import rewards
from jaxalign.errors import UserError
from jaxalign.rewards import (
    compute_rewards,
    exact_match,
    length_cap,
    length_target,
    load_reward,
    regex,
    submit,
)

PROMPTS = ["why?", "how?", "who?"]
TEXTS = ["because", "like so", "me"]
ROWS = [{}, {}, {}]


def test_every_public_function_has_a_doctest():
    functions = [f for f in vars(rewards).values() if inspect.isfunction(f)]
    assert len(functions) > 8
    assert [f.__name__ for f in functions if ">>>" not in f.__doc__] == []


def test_exact_match():
    rows = [{"answer": "Paris"}, {"answer": 42}, {"answer": ("a", "b")}]
    assert list(exact_match()(PROMPTS, [" PARIS. ", "42", "“B”"], rows)) == [1, 1, 1]
    assert list(exact_match()(PROMPTS, ["Paris, France", "43", "c"], rows)) == [0, 0, 0]
    assert list(exact_match(form=str)(PROMPTS, ["paris", "42", "b"], rows)) == [0, 1, 1]
    with pytest.raises(UserError, match="Row 2: field 'label' has no answer"):
        exact_match("label")(PROMPTS, TEXTS, [{"label": "x"}, {}, {}])


def test_regex():
    assert list(regex("o")(PROMPTS, TEXTS, ROWS)) == [0, 1, 0]
    assert list(regex("m.", whole=True)(PROMPTS, ["me ", "mee", "me\n"], ROWS)) == [1, 0, 1]
    assert list(regex("ME", flags=re.IGNORECASE)(PROMPTS, TEXTS, ROWS)) == [0, 0, 1]
    with pytest.raises(UserError, match=r"Pattern '\(' is not a regular expression"):
        regex("(")


def test_length():
    texts = ["a b", "a b c d", "a b c d e f g h i"]
    assert list(length_target(4)(PROMPTS, texts, ROWS)) == [0.5, 1, 0]
    assert list(length_cap(2)(PROMPTS, texts, ROWS)) == [1, 0, 0]
    assert list(length_cap(3, unit="characters")(PROMPTS, ["abc", "abcd", ""], ROWS)) == [1, 1 - 1 / 3, 1]
    for build in (length_target, length_cap):
        with pytest.raises(UserError, match=r"is 0\. Give a length of at least 1"):
            build(0)
        with pytest.raises(UserError, match="unit is 'tokens'"):
            build(3, unit="tokens")


@pytest.mark.parametrize("scores", [[0.25, 1, True], np.array([0.25, 1, 1]), jnp.array([0.25, 1, 1])])
def test_scores_of_any_kind_keep_their_fraction(scores):
    result = compute_rewards(lambda *_: scores, PROMPTS, TEXTS, ROWS)
    assert result.dtype == np.float64
    assert result.tolist() == [0.25, 1, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "1", [1.0], np.nan, 1j])
def test_a_bad_score_names_its_row(bad):
    with pytest.raises(UserError, match=r"^Reward mine, row 2 \(prompt 'how\?'\): the score is .*\. Return a finite"):
        compute_rewards(lambda *_: [1.0, bad, 1.0], PROMPTS, TEXTS, ROWS, name="mine")


def test_other_mistakes_of_a_reward_function():
    def broken(prompts, completions, rows):
        return [row["answer"] for row in rows]

    with pytest.raises(UserError, match=r"^Reward broken, rows 1 to 3: the function raised KeyError: 'answer'\. ") as e:
        compute_rewards(broken, PROMPTS, TEXTS, ROWS)
    assert isinstance(e.value.__cause__, KeyError)
    with pytest.raises(UserError, match="returned 2 scores for 3 completions"):
        compute_rewards(lambda *_: [1, 2], PROMPTS, TEXTS, ROWS)
    with pytest.raises(UserError, match=r"returned a NoneType\. Return a list of 3 numbers"):
        compute_rewards(lambda *_: None, PROMPTS, TEXTS, ROWS)
    with pytest.raises(UserError, match="3 prompts, 3 completions and 2 rows"):
        compute_rewards(broken, PROMPTS, TEXTS, ROWS[:2])
    with pytest.raises(UserError, match="field 'answer' is missing"):  # its own sentence is not wrapped in another
        compute_rewards(rewards.number_match(), PROMPTS, TEXTS, ROWS)


def test_submit_does_not_wait():
    release = threading.Event()

    def slow(prompts, completions, rows):
        assert release.wait(30)
        return [1.0] * len(prompts)

    futures = [submit(slow, PROMPTS, TEXTS, ROWS) for _ in range(2)]
    assert not any(future.done() for future in futures)  # and this thread continues
    release.set()
    assert [future.result(30).tolist() for future in futures] == [[1, 1, 1]] * 2
    with pytest.raises(UserError, match="row 1"):
        submit(lambda *_: [None] * 3, PROMPTS, TEXTS, ROWS).result(30)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with modules of the user's; the import state is as before afterwards."""
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "my_scores.py").write_text(
        "class Judge:\n    def score(self, prompts, completions, rows):\n        return [0.5] * len(prompts)\n"
        "judge = Judge()\nnumber = 3\ndef one(prompts, completions, rows):\n    return [1.0] * len(prompts)\n"
    )
    (tmp_path / "my_broken.py").write_text("def f(:\n")
    (tmp_path / "my_raising.py").write_text("raise RuntimeError('no licence')\n")
    (tmp_path / "my_needy.py").write_text("import no_such_library\n")
    return tmp_path


def test_a_function_of_ones_own(folder):
    assert load_reward("my_scores:one")(PROMPTS, TEXTS, ROWS) == [1, 1, 1]
    assert load_reward("my_scores:judge.score")(PROMPTS, TEXTS, ROWS) == [0.5] * 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_scores", "is not of the form module:function"),
        ("my_scores:", "is not of the form module:function"),
        ("./my_scores.py:one", "is not of the form module:function"),
        ("my_scorse:one", "module 'my_scorse' is neither in"),
        ("no.such:one", "module 'no' is neither in"),
        ("my_scores:two", "module my_scores has no 'two'"),
        ("my_scores:number", "is a int, not a function"),
        ("my_scores:Judge", "is a class, not a function"),
        ("my_broken:f", "importing my_broken raised SyntaxError: invalid syntax"),
        ("my_raising:f", "importing my_raising raised RuntimeError: no licence. Fix the module"),
        ("my_needy:f", "my_needy imports 'no_such_library', which is missing"),
    ],
)
def test_what_cannot_be_found_is_reported_in_one_line(folder, name, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        load_reward(name)
    assert "\n" not in str(error.value)
