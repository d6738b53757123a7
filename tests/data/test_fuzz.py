"""Whatever JSON a row holds, it becomes records that can be tokenised or a sentence: never a traceback."""

import contextlib
import dataclasses
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxalign.data.feedback import Signals, read_feedback
from jaxalign.data.files import Row
from jaxalign.data.inspect import count_findings, kind_of, measure_balance
from jaxalign.data.kinds import Demonstration, Preference, Prompt, Ranking, UnpairedPreference
from jaxalign.data.records import BadRow, parse_rows
from jaxalign.data.tokenize import tokenize_completions, tokenize_prompts
from jaxalign.errors import UserError

FIELDS = [
    *("prompt", "completion", "completions", "chosen", "rejected", "messages", "conversations", "text", "label"),
    *("instruction", "input", "output", "margin", "up", "down", "stars", "taken", "fixed", "again"),
]
words = st.sampled_from(
    ["sky", "", " ", "</s>", "\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant:", "true", "3"]
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.floats(), words, st.text(max_size=3))
messages = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["system", "user", "assistant", "tool", "bot", 3, None]), "content": scalars}
)
nodes = st.deferred(
    lambda: st.fixed_dictionaries(
        {"text": st.one_of(words, scalars), "role": st.sampled_from(["prompter", "assistant", None])},
        optional={
            "replies": st.one_of(st.none(), st.lists(nodes, max_size=3)),
            "rank": st.one_of(st.none(), st.integers(0, 2), words),
            "emojis": st.one_of(st.none(), st.dictionaries(st.sampled_from(["+1", "-1"]), st.integers(0, 3)), words),
            "deleted": st.booleans(),
        },
    )
)
values = st.one_of(
    scalars,
    words,
    st.lists(st.one_of(scalars, messages, st.lists(messages, max_size=2)), max_size=4),
    st.lists(messages, max_size=4),
    messages,
    nodes,
)
USER, SKY = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "The sky."}
TREE = {
    "text": "Why?",
    "role": "prompter",
    "replies": [{"text": t, "role": "assistant", "rank": r} for r, t in enumerate("ab")],
}
sound = st.sampled_from(
    [
        {},
        {"prompt": "a"},
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": [USER], "completion": [SKY], "label": False},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [USER], "chosen": [SKY], "rejected": "b", "margin": 1},
        {"chosen": [USER, SKY], "rejected": [USER, SKY]},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {"prompt": "a", "completions": ["b", "c"]},
        {"messages": [USER, SKY, USER, SKY], "label": "true"},
        {"instruction": "a", "output": "b"},
        {"text": "a"},
        {"prompt": TREE},
    ]
)
# A row that is right but for a few fields, at most.
rows = st.builds(
    lambda row, changes: {**row, **changes}, sound, st.dictionaries(st.sampled_from(FIELDS), values, max_size=2)
)
KINDS = [Demonstration, Preference, Ranking, UnpairedPreference, Prompt]


@pytest.mark.parametrize("kind", KINDS)
@given(rows=st.lists(rows, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_row_is_read_and_tokenised_or_reported(byte_level, kind, rows):
    numbered = [Row("a.jsonl", number, row) for number, row in enumerate(rows, start=1)]
    parsed = list(parse_rows(kind, numbered, on_error="skip"))
    assert len(parsed) == len(rows)
    bad = [row for row in parsed if isinstance(row, BadRow)]
    assert all(row.text and "\n" not in row.text and len(row.text) < 500 for row in bad)
    records = [record for row in parsed if not isinstance(row, BadRow) for record in row]
    assert all(isinstance(kind_of(row), type) for row in rows)
    if not records:
        return
    count_findings(records, records)
    measure_balance(records)
    tokenize = tokenize_prompts if kind is Prompt else tokenize_completions
    with contextlib.suppress(UserError):
        made, report = tokenize(records, byte_level, on_error="skip")
        assert len(made) == report.examples >= len(records) - len(report.skipped)


@given(rows=st.lists(rows, min_size=1, max_size=4))
@example(
    rows=[
        {"up": True},
        {
            "prompt": [{"role": "user", "content": "What?"}],
            "completion": [{"role": "assistant", "content": "The sky."}],
            "fixed": "sky",
        },
    ]
).via("discovered failure: an edited row of another format, counted twice")
@settings(max_examples=150, deadline=None)
def test_any_log_is_read_or_reported(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("logs") / "log.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a?", "completion": "b", **row}) + "\n" for row in rows))
    signals = Signals(up="up", down="down", stars="stars", accepted="taken", edited="fixed", regenerated="again")
    signals = dataclasses.replace(
        signals,
        **{
            field.name: None
            for field in dataclasses.fields(signals)
            if isinstance(name := getattr(signals, field.name), str) and not any(name in row for row in rows)
        },
    )
    with contextlib.suppress(UserError):
        records, report = read_feedback(path, signals, on_error="skip")
        assert len({(record.prompt, record.completion) for record in records}) == len(records)
        assert report.rows == len(rows)
        assert report.rows_kept + len(report.skipped) + report.omitted["without a signal"] <= report.rows
