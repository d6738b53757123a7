"""Tokenised trees come back from disk as they were, and under another name when anything they depend on changes."""

import copy
import dataclasses

import numpy as np
import pytest

from jaxalign.data.cache import cached_trees
from jaxalign.data.kinds import Demonstration, Preference, Ranking
from jaxalign.data.messages import Message
from jaxalign.data.tokenize import tokenize_completions

PAIRS = [Preference(f"Why {i}?", " Air." * i, " A lie.", "text", "a.jsonl", i, margin=i / 4) for i in range(1, 6)]


@pytest.fixture
def counted():
    """tokenize_completions, and how often it was called."""
    calls = []

    def tokenize(*arguments, **options):
        calls.append(1)
        return tokenize_completions(*arguments, **options)

    return tokenize, calls


def same(a, b):
    return all(
        np.array_equal(x.prompt, y.prompt)
        and x.prompt_key == y.prompt_key
        and len(x.completions) == len(y.completions)
        and all(map(np.array_equal, x.completions, y.completions))
        and all(map(np.array_equal, x.masks, y.masks))
        and x.extras.keys() == y.extras.keys()
        and all(np.array_equal(x.extras[k], y.extras[k]) and x.extras[k].dtype == y.extras[k].dtype for k in x.extras)
        for x, y in zip(a, b, strict=True)
    )


def test_what_was_made_once_is_read(tmp_path, byte_level, counted):
    tokenize, calls = counted
    made = tokenize_completions(PAIRS, byte_level, max_length=20)
    for _ in range(3):
        trees, report = cached_trees(tmp_path / "new", tokenize, PAIRS, byte_level, max_length=20)
        assert same(trees, made[0])
        assert report == made[1]
    assert len(calls) == 1


def test_masks_ranks_and_skipped_rows_come_back_too(tmp_path, byte_level):
    talk = tuple(Message(("user", "assistant")[i % 2], f"{i}") for i in range(6))
    talks = [Demonstration(talk[:1], talk[1:], "chat", "f", 1)]
    mixed = [Demonstration("a", "b", "text"), Demonstration(talk[:1], talk[1:], "chat", "f", 3)]
    skipping = {"template": "never", "on_error": "skip"}
    ranked = [Ranking("a", tuple("bcd"[:n]), "text") for n in (3, 2)]
    for tokenize, records, options in [
        (tokenize_completions, talks, {}),
        (tokenize_completions, mixed, skipping),
        (tokenize_completions, ranked, {}),
    ]:
        made, report = tokenize(records, byte_level, **options)
        assert len(report.skipped) == len(records) - len(made)
        cached_trees(tmp_path, tokenize, records, byte_level, **options)
        again, cached_report = cached_trees(tmp_path, tokenize, records, byte_level, **options)
        assert same(again, made)
        assert cached_report == report


def test_anything_that_matters_makes_another_file(tmp_path, byte_level, counted):
    tokenize, calls = counted
    other = copy.deepcopy(byte_level)
    other.chat_template += " "
    ended = copy.deepcopy(byte_level)
    ended.eos_token = "<|endoftext|>"
    for records, tokenizer, options in [
        (PAIRS, byte_level, {}),
        (PAIRS[:4], byte_level, {}),
        (PAIRS[::-1], byte_level, {}),
        ([*PAIRS[:4], dataclasses.replace(PAIRS[4], margin=9.0)], byte_level, {}),
        ([*PAIRS[:4], dataclasses.replace(PAIRS[4], rejected=" A lie!")], byte_level, {}),
        (PAIRS, byte_level, {"max_length": 20}),
        (PAIRS, other, {}),
        (PAIRS, ended, {}),
    ]:
        before = len(calls)
        cached_trees(tmp_path, tokenize, records, tokenizer, **options)
        assert len(calls) == before + 1
    assert len(list(tmp_path.glob("*.npz"))) == len(calls) == 8


@pytest.mark.parametrize("damage", [b"", b"PK and no more", None])
def test_a_damaged_file_is_written_again(tmp_path, byte_level, counted, damage):
    tokenize, calls = counted
    made, _ = cached_trees(tmp_path, tokenize, PAIRS, byte_level)
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    for _ in range(2):
        assert same(cached_trees(tmp_path, tokenize, PAIRS, byte_level)[0], made)
    assert len(calls) == 2
