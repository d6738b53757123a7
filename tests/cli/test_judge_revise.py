"""``jaxalign judge revise``: drafts criticised and rewritten, resumable, in the format of their rows, fit for sft."""

import sys
from collections import Counter

import pytest

from jaxalign.cli import main
from jaxalign.data.kinds import Demonstration
from jaxalign.data.records import read_records
from tests.cli.test_judge import read_jsonl, write
from tests.judges.server import Server, status

WRITERS = """
asked = []

def kind(questions):
    replies = []
    for question in questions:
        text = question[0]["content"]
        asked.append(text)
        if "<critique>" not in text:
            replies.append("It is rude.")
        else:
            draft = text.split("<response>")[1].split("</response>")[0].strip()
            replies.append("cut off <revision>" if "hopeless" in draft else f"<revision>kind {draft}</revision>")
    return replies
"""


@pytest.fixture(autouse=True)
def writers(tmp_path, monkeypatch):
    (tmp_path / "my_writers.py").write_text(WRITERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    sys.modules.pop("my_writers", None)


def revise(file, output, *more, who=("--judge.function", "my_writers:kind")):
    return ["judge", "revise", "--data.path", str(file), "--output", str(output), *who, *map(str, more)]


DRAFTS = [{"prompt": f"why {i}?", "answer": "hopeless" if i == 3 else f"no {i}"} for i in range(6)]


def test_drafts_become_demonstrations_that_sft_trains_on(flags, tmp_path, capsys):
    file = write(tmp_path / "drafts.jsonl", DRAFTS)
    run = tmp_path / "run"
    assert main(revise(file, run, "--rounds", 2)) == 0
    assert "5 of 6 drafts rewritten, 1 without a usable revision" in capsys.readouterr().out
    rows = read_jsonl(run / "revisions.jsonl")
    assert [row["completion"] for row in rows] == [f"kind kind no {i}" for i in (0, 1, 2, 4, 5)]
    assert [row["draft"] for row in rows] == [f"no {i}" for i in (0, 1, 2, 4, 5)]
    assert all(row["critiques"] == ["It is rude."] * 2 and len(row["principles"]) == 2 for row in rows)
    (asked,) = (module.asked for name, module in sys.modules.items() if name == "my_writers")
    count = len(asked)
    assert count == 4 * 6 - 2, "two questions a round; the hopeless draft had one"
    assert main(revise(file, run, "--rounds", 2)) == 0
    assert "6 of 6 drafts rewritten before" in capsys.readouterr().out
    assert len(asked) == count, "nothing is asked twice"
    sft = {"data__path": run / "revisions.jsonl", "train__steps": 1, "data__holdout": 1}
    assert main(flags(tmp_path / "sft", "sft", **sft)) == 0
    assert main(revise(file, run, "--rounds", 1)) == 2
    assert "rounds (was 2, now 1)" in " ".join(capsys.readouterr().err.split())


def test_transcripts_stay_transcripts(tmp_path):
    opening = "\n\nHuman: Why?\n\nAssistant:"
    file = write(tmp_path / "hh.jsonl", [{"chosen": f"{opening} no", "rejected": f"{opening} never"}])
    assert main(revise(file, tmp_path / "run")) == 0
    rows = read_jsonl(tmp_path / "run" / "revisions.jsonl")
    assert sorted(row["completion"] for row in rows) == [f"{opening} kind never", f"{opening} kind no"]
    records, _ = read_records(Demonstration, tmp_path / "run" / "revisions.jsonl")
    assert {record.prompt for record in records} == {opening}


def test_what_had_no_answer_is_asked_again(tmp_path, capsys):
    broken = {"now": True}

    def behave(question, attempt):
        if broken["now"] and "no 2" in question:
            return status(500)
        return "<revision>kind</revision>" if "<critique>" in question else "It is rude."

    file = write(tmp_path / "drafts.jsonl", DRAFTS)
    with Server(behave) as server:
        values = {"model": "m", "base_url": server.url, "key_env": "null", "retries": 0}
        who = [part for name, value in values.items() for part in (f"--judge.endpoint.{name}", str(value))]
        assert main(revise(file, tmp_path / "run", who=who)) == 0
        assert "1 had no answer (the server said 500" in capsys.readouterr().out
        broken["now"] = False
        before = Counter(server.asked)
        assert main(revise(file, tmp_path / "run", who=who)) == 0
        assert all("no 2" in question for question in server.asked - before)
    assert len(read_jsonl(tmp_path / "run" / "revisions.jsonl")) == 6


def test_a_model_of_ours_writes(tiny_model, tmp_path, capsys):
    file = write(tmp_path / "drafts.jsonl", DRAFTS[:2])
    more = ("--max_new_tokens", 8)
    assert main(revise(file, tmp_path / "run", *more, who=("--judge.model", str(tiny_model)))) == 2
    assert "the judge wrote nothing to train on (0 of 2 drafts" in " ".join(capsys.readouterr().err.split())
    lines = read_jsonl(tmp_path / "run" / "verdicts.jsonl")
    assert len(lines) == 2
    assert all(line["prompt_tokens"] > 0 for line in lines)


def test_a_judge_that_only_scores_cannot_write(tmp_path, capsys):
    file = write(tmp_path / "drafts.jsonl", DRAFTS)
    assert main(revise(file, tmp_path / "run", who=("--judge.score_function", "my_writers:kind"))) == 2
    assert "A judge that only scores cannot write" in " ".join(capsys.readouterr().err.split())
