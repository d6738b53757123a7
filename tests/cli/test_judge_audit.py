"""``jaxalign judge audit``: on published verdicts, on a run's own, on any columns; text, JSON and picture."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from jaxalign.cli import main
from tests.cli.conftest import names
from tests.cli.test_config_fields import READS, fields


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def audited(capsys, tmp_path):
    """The report as text and as values."""

    def run(path, *more):
        assert main(["judge", "audit", str(path), "--output", str(tmp_path / "out"), "--resamples", "300", *more]) == 0
        return capsys.readouterr().out, json.loads((tmp_path / "out" / "audit.json").read_text())

    return run


def test_published_verdicts(audited, shared_data, tmp_path):
    folder = shared_data / "llmbar" / "MT-Bench" / "GPT-4" / "Vanilla_NoRules"
    rows = json.loads((folder / "result.json").read_text())
    flat = [
        {
            "in_order": row["results"][0]["swap = False"]["winner"],
            "swapped": row["results"][0]["swap = True"]["winner"],
            "label": row["label"],
            "answer_a": row["output_1"],
            "answer_b": row["output_2"],
        }
        for row in rows
    ]
    file = write(tmp_path / "gpt4.jsonl", flat)
    columns = json.dumps({"first_order": "in_order", "second_order": "swapped", "human": "label"})
    shown, report = audited(file, "--columns", columns, "--second_names", "response")
    audit = report["judges"]["judge"]["report"]
    assert (audit["accuracy_first"], audit["accuracy_second"]) == (159 / 200, 165 / 200)
    assert (audit["consistency"], audit["agreement"]) == (174 / 200, 149 / 200)
    assert "87.0 %" in shown
    assert "Nothing to warn of" in shown
    assert names(tmp_path / "out") == ["audit.json", "audit.png"]
    assert (tmp_path / "out" / "audit.png").read_bytes().startswith(b"\x89PNG")


def simulated(seed, judge, *, first, long, right, failures, count=400):
    """A judge that may fail, fall for the place, fall for the length, and else sees the truth or not."""
    random = np.random.default_rng(seed)
    for i in range(count):
        world = np.random.default_rng(i)  # the same pairs for every judge
        lengths = world.integers(5, 100, 2)
        human = ("first", "second")[world.integers(2)]
        verdicts = []
        for swapped in (False, True):
            better = human if random.random() < right else ("first", "second")[random.integers(2)]
            longer = "first" if lengths[0] > lengths[1] else "second"
            response = longer if random.random() < long else better
            shown = response if not swapped else {"first": "second", "second": "first"}[response]
            shown = "first" if random.random() < first else shown
            verdicts.append(None if random.random() < failures else shown)
        probability = 0.9 if verdicts[0] == "first" else 0.1
        answers = ["x" * n for n in lengths]
        yield {"key": str(i), "judge": judge, "first_order": verdicts[0], "second_order": verdicts[1], "human": human,
               "answers": answers, "probability": probability, "topic": ("maths", "law")[i % 2], "by": ["us", "them"],
               "ann": human, "bob": human if i % 10 else "tie"}  # fmt: skip


def test_planted_faults_are_reported(audited, tmp_path):
    rows = [*simulated(1, "good", first=0, long=0, right=0.9, failures=0)]
    rows += simulated(2, "bad", first=0.4, long=0.5, right=0.9, failures=0.1)
    file = write(tmp_path / "verdicts.jsonl", rows)
    more = ("--annotators", '["ann", "bob"]', "--group", "topic", "--family", "{good: us, bad: us}", "--policy", "good")
    shown, report = audited(file, *more)
    good, bad = report["judges"]["good"], report["judges"]["bad"]
    assert bad["report"]["failures_ci"][0] < 0.1 < bad["report"]["failures_ci"][1]
    assert bad["report"]["position_bias_ci"][0] < 0.4 < bad["report"]["position_bias_ci"][1]
    assert bad["verbosity"]["excess_ci"][0] > 0.1
    assert good["verbosity"]["excess_ci"][0] < 0.05
    warned = " ".join(bad["warnings"])
    for word in ("Consistency", "Position bias", "Failures", "Verbosity bias", "Circularity"):
        assert word in warned
        assert word not in " ".join(good["warnings"])
    assert report["between_humans"]["accuracy"] == 0.9
    assert report["between_judges"]["pairs"][0][:2] == ["good", "bad"]
    assert set(good["spots"]) == {"maths", "law"}
    assert good["own"]["pairs"] == 400
    for words in ("human ceiling", "right by group", "between judges", "between humans", "its own family"):
        assert words in shown


def test_the_last_line_counts_and_principles_vote_by_weight(audited, tmp_path):
    def line(principle, weight, first, second="second"):
        shared = {"key": "k", "judge": "j", "human": "first"}
        return shared | {"principle": principle, "weight": weight, "first_order": first, "second_order": second}

    rows = [line("a", 1, None), line("a", 1, "second", "first"), line("b", 3, "first")]
    _, report = audited(write(tmp_path / "v.jsonl", rows), "--picture", "false")
    audit = report["judges"]["j"]
    assert (audit["pairs"], audit["report"]["consistency"], audit["agreement"]["accuracy"]) == (1, 1, 1)


def test_a_run_of_ours_and_its_labels_are_audited(audited, pairs_file, tmp_path, monkeypatch):
    (tmp_path / "short_judge.py").write_text(
        textwrap.dedent("""
        def shorter(prompts, completions, rows):
            return [-len(c) for c in completions]
    """)
    )
    monkeypatch.chdir(tmp_path)
    score = ["--judge.score_function", "short_judge:shorter"]
    assert main(["judge", "--data.path", str(pairs_file), "--output", "run", *score]) == 0
    sys.modules.pop("short_judge", None)
    for what in ("run", "run/preferences.jsonl"):
        _, report = audited(tmp_path / what, "--picture", "false")
        (audit,) = report["judges"].values()
        assert audit["agreement"]["accuracy"] == 1
        assert audit["report"]["consistency"] == 1
        assert audit["verbosity"]["wins"] == 0
        assert audit["verbosity"]["excess"] == 0


def test_what_an_audit_cannot_read_is_refused(tmp_path, capsys):
    def error_of(rows, *more):
        file = write(tmp_path / "v.jsonl", rows)
        assert main(["judge", "audit", str(file), "--picture", "false", *more]) == 2
        return " ".join(capsys.readouterr().err.split())

    sound = {"first_order": "a", "second_order": "b"}
    three = {**sound, "answers": ["x", "y", "z"]}
    assert "its 2 rows are not of two answers each. Give a file" in error_of([three] * 2)
    assert "columns has the unknown field 'humans'" in error_of([sound], "--columns", "{humans: label}")
    assert "family names 'me', and the judges are judge" in error_of([sound], "--family", "{me: us}")
    assert "field 'key' is [1]. Give one text or number" in error_of([{**sound, "key": [1]}])
    assert "field 'by' is 5. Give a list" in error_of([{**sound, "by": 5}], "--family", "{judge: us}")


def test_scores_votes_and_labelled_pairs_are_called_so(audited, tmp_path):
    shared = {"answers": ["x", "yy"], "prompt": "p", "human": "first"}
    scored = [
        {**shared, "prompt": f"{i}", "judge": "s", "how": "score", "first_order": "a", "second_order": "b"}
        for i in range(6)
    ]
    asked = [{**shared, "prompt": f"{i}", "judge": "[/x]", "first_order": "a", "second_order": "a"} for i in range(6)]
    shown, report = audited(write(tmp_path / "v.jsonl", [*scored, *asked]), "--picture", "false")
    assert "s: 6 pairs, one verdict each" in shown
    assert "[/x]: 6 pairs, 6 in both orders" in shown
    assert "panel (vote): 6 pairs, one verdict each" in shown
    assert report["judges"]["panel (vote)"]["agreement"]["accuracy"] == 0, "first against a tie is a tie"
    assert report["between_judges"]["accuracy"] == 0, "lined up by prompt and answers"
    labelled = [
        {"prompt": "p", "chosen": "x", "rejected": "y", "winner": "first", "first_order": "a", "second_order": "b"}
    ]
    shown, _ = audited(write(tmp_path / "p.jsonl", labelled), "--picture", "false")
    assert "Labelled pairs only: ties and failures are gone" in shown


def test_a_table_holds_numbers_as_text(audited, tmp_path):
    file = tmp_path / "v.csv"
    file.write_text("first_order,second_order,orders,probability,human\na,a,2,0.9,a\na,b,2,0.8,a\nb,,1,0.2,b\n")
    _, report = audited(file, "--picture", "false")
    audit = report["judges"]["judge"]
    assert (audit["pairs"], audit["in_both_orders"], audit["report"]["consistency"]) == (3, 2, 0.5)
    assert audit["by_probability"]["accuracy"] == 1


def test_the_verdict_of_several_principles_is_that_of_the_labels(audited, tmp_path):
    shared = {"key": "k", "judge": "j", "human": "first"}
    votes = [("a", "first", "second"), ("b", "first", "first"), ("c", "second", "second")]
    rows = [{**shared, "principle": p, "first_order": one, "second_order": two} for p, one, two in votes]
    _, report = audited(write(tmp_path / "v.jsonl", rows), "--picture", "false")
    assert report["judges"]["j"]["agreement"]["accuracy"] == 0, "one for the first and two ties: a tie, as decide says"


def test_pairs_in_one_order_are_not_failures(audited, tmp_path):
    rows = [{"first_order": "a", "orders": 1, "human": "a"}] * 5 + [{"first_order": "a", "second_order": "b"}] * 2
    _, report = audited(write(tmp_path / "v.jsonl", rows), "--picture", "false")
    audit = report["judges"]["judge"]
    assert (audit["pairs"], audit["in_both_orders"], audit["report"]["failures"]) == (7, 2, 0)
    assert audit["agreement"]["accuracy"] == 1
    shown, report = audited(write(tmp_path / "v.jsonl", rows[:5]), "--picture", "false")
    assert report["judges"]["judge"]["report"] is None
    assert "no pair was shown in both orders" in shown


GOOD = {"first_order": "first", "second_order": "second"}


@pytest.mark.parametrize(
    ("row", "more", "words"),
    [
        ({"first_order": "first"}, (), "field 'second_order' is missing"),
        ({**GOOD, "first_order": "left"}, (), "field 'first_order' is 'left'. Give first, second, tie"),
        ({**GOOD, "probability": 7}, (), "field 'probability' is 7. Give a number from 0 to 1"),
        ({**GOOD, "probability": "high"}, (), "field 'probability' is 'high'. Give a finite number"),
        ({**GOOD, "weight": "heavy"}, (), "field 'weight' is 'heavy'. Give a finite number"),
        ({**GOOD, "weight": None}, (), "field 'weight' is None. Give a finite number"),
        ({**GOOD, "weight": ""}, (), "field 'weight' is ''. Give a finite number"),
        (GOOD, ("--group", "topic"), "row 1: field 'topic' is missing"),
        (GOOD, ("--columns", '{"human": "label"}'), "row 1: field 'label' is missing"),
        (GOOD, ("--policy", "me"), "policy is 'me', and the judges are judge"),
        (GOOD, ("--resamples", "1"), "resamples is 1"),
        ([1], (), "is a JSON list"),
    ],
)  # fmt: skip
def test_mistakes(error_of, tmp_path, row, more, words):
    file = write(tmp_path / "v.jsonl", [GOOD, row])
    line = error_of(["judge", "audit", str(file), "--output", str(tmp_path / "out"), *more])
    assert words in line
    assert not (tmp_path / "out").exists()


def test_matplotlib_is_asked_for_in_a_sentence(error_of, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    file = write(tmp_path / "v.jsonl", [GOOD])
    line = error_of(["judge", "audit", str(file)])
    assert "The picture needs matplotlib. Install it with pip install 'jaxalign[plots]'" in line
    assert main(["judge", "audit", str(file), "--picture", "false"]) == 0


def test_every_setting_is_read():
    from jaxalign.cli.judge_audit import Config as Audit
    from jaxalign.judges.open import JudgeSection

    for section, kind in (("config", Audit), ("judge", JudgeSection)):
        assert [name for owner, name in fields(kind, section) if (owner, name) not in READS] == []


def test_help_names_the_task():
    help_text = subprocess.run(
        [sys.executable, "-m", "jaxalign", "judge", "audit", "--help"], capture_output=True, text=True, check=True
    )
    assert "--second_names" in help_text.stdout
