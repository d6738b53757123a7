"""``jaxalign judge``: judges of every kind, answers of every shape, and a run that is stopped and resumed."""

import json
import math
import sys
from collections import Counter

import pytest

from jaxalign.cli import main
from jaxalign.data.kinds import Preference, Ranking, UnpairedPreference
from jaxalign.data.records import read_records
from tests.cli.conftest import names, pair
from tests.judges.server import KEY, Server, status

JUDGES = '''
"""Judges of a user: the shorter answer is better; or whatever is shown first."""

def _sides(question):
    text = question[0]["content"]
    return [text.split(f"<response_{s}>")[1].split(f"</response_{s}>")[0].strip() for s in "ab"]

def shorter(questions):
    answers = []
    for question in questions:
        a, b = _sides(question)
        if len(a) + len(b) > 200:
            answers.append("I would rather not say.")
        else:
            answers.append("Verdict: tie" if len(a) == len(b) else f"Verdict: {'A' if len(a) < len(b) else 'B'}")
    return answers

def longer(questions):
    swapped = {"Verdict: A": "Verdict: B", "Verdict: B": "Verdict: A"}
    return [swapped.get(text, text) for text in shorter(questions)]

def first(questions):
    return ["Verdict: A"] * len(questions)

def grade(questions):
    texts = [q[0]["content"].split("<response>")[1].split("</response>")[0].strip() for q in questions]
    return [f"Score: {1 + len(text) % 10}" for text in texts]

def rank(questions):
    answers = []
    for question in questions:
        text = question[0]["content"]
        letters = [c for c in "ABCD" if f"<response_{c.lower()}>" in text]
        size = {c: len(text.split(f"<response_{c.lower()}>")[1].split("</response")[0].strip()) for c in letters}
        answers.append("Ranking: " + " > ".join(sorted(letters, key=size.get)))
    return answers

def brevity(prompts, completions, rows):
    return [-float(len(c)) for c in completions]

def broken(questions):
    raise KeyError("oh")
'''


@pytest.fixture(autouse=True)
def judges(tmp_path, monkeypatch):
    (tmp_path / "my_judges.py").write_text(JUDGES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    sys.modules.pop("my_judges", None)


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judge(file, output, *more, function="my_judges:shorter"):
    who = ["--judge.function", function] if function else []
    return ["judge", "--data.path", str(file), "--output", str(output), *who, *map(str, more)]


def test_pairs_with_human_labels_become_preferences_that_dpo_trains_on(pairs_file, tiny_model, flags, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(judge(pairs_file, run)) == 0
    shown = capsys.readouterr().out
    assert "20 of 20 items labelled, 0 tied, 0 failed" in shown
    assert names(run) == ["config.yaml", "preferences.jsonl", "verdicts.jsonl"]
    rows = read_jsonl(run / "preferences.jsonl")
    assert [(r["prompt"], r["chosen"], r["rejected"]) for r in rows] == [tuple(pair(i).values()) for i in range(20)]
    verdicts = read_jsonl(run / "verdicts.jsonl")
    assert Counter(v["human"] for v in verdicts).keys() == {"first", "second"}  # places are drawn, not the file's
    assert all(v["winner"] == v["human"] for v in verdicts)
    assert all(row["judge"] == "my_judges:shorter" and len(row["prompt_hash"]) == 64 for row in rows)
    assert "label_smoothing" not in rows[0]  # there were no probabilities
    assert main(flags(tmp_path / "dpo", data__path=run / "preferences.jsonl", train__steps=1)) == 0


def test_a_local_judge_gives_soft_labels_that_dpo_takes(pairs_file, tiny_model, flags, error_of, tmp_path, capsys):
    run = tmp_path / "run"
    local = ["--judge.model", tiny_model, "--data.limit", 6]
    assert main(judge(pairs_file, run, *local, function=None)) in (0, 2)  # a random model may contradict itself always
    verdicts = read_jsonl(run / "verdicts.jsonl")
    assert len(verdicts) == 6
    for verdict in verdicts:
        one, two = verdict["probabilities"]
        assert verdict["probability"] == pytest.approx((one + 1 - two) / 2)
    soft = [{**pair(i), "label_smoothing": 0.05 * (i % 10)} for i in range(20)]
    file = write(tmp_path / "soft.jsonl", soft)
    run = tmp_path / "soft"
    assert main(flags(run, data__path=file, method__soft_labels=True, train__steps=1, data__holdout=19)) == 0
    norms = {}
    for doubt in (0.0, 0.25, 0.5):  # at policy = reference the gradient is that of doubt 0 times 1 - 2 doubt
        write(file, [{**pair(i), "label_smoothing": doubt} for i in range(20)])
        run = tmp_path / f"soft-{doubt}"
        assert main(flags(run, data__path=file, method__soft_labels=True, train__steps=1)) == 0
        (norms[doubt],) = (line["grad_norm"] for line in read_jsonl(run / "metrics.jsonl") if "grad_norm" in line)
    assert norms[0.0] > 0
    assert norms[0.25] == pytest.approx(norms[0.0] / 2, rel=1e-4)
    assert norms[0.5] == pytest.approx(0, abs=1e-5 * norms[0.0])
    capsys.readouterr()
    message = error_of(flags(tmp_path / "x", method__soft_labels=True))
    assert "'label_smoothing', which method.soft_labels needs" in message
    both = flags(tmp_path / "x", data__path=file, method__soft_labels=True, method__label_smoothing=0.1)
    assert "Set only one" in error_of(both)
    write(file, [{**pair(0), "label_smoothing": 0.7}])
    assert f"{file}, row 1: field 'label_smoothing' is 0.7. Give" in error_of(flags(tmp_path / "x", data__path=file))


def test_probabilities_decide_where_verdicts_contradict_each_other(pairs_file, tiny_model, tmp_path, error_of):
    run = tmp_path / "run"
    local = ["--judge.model", tiny_model, "--data.limit", 6, "--decide_by", "probabilities"]
    assert main(judge(pairs_file, run, *local, function=None)) == 0
    verdicts = {v["key"]: v for v in read_jsonl(run / "verdicts.jsonl")}
    rows = read_jsonl(run / "preferences.jsonl")
    assert len(rows) == len(verdicts) == 6
    for row, verdict in zip(rows, verdicts.values(), strict=True):
        p = verdict["probability"]
        assert row["chosen"] == verdict["answers"][0 if p > 0.5 else 1]
        assert row["label_smoothing"] == pytest.approx(min(p, 1 - p))
    line = error_of(judge(pairs_file, tmp_path / "x", "--decide_by", "probabilities"))
    assert "decide_by=probabilities needs pairs" in line


def test_a_reward_model_judges_without_being_asked(pairs_file, tiny_model, flags, tmp_path, capsys, error_of):
    trained = flags(tmp_path / "rm", "reward", **{"samples.prompts": None, "samples.max_new_tokens": None})
    assert main(trained) == 0
    run = tmp_path / "run"
    model = ["--judge.reward", tmp_path / "rm" / "model"]
    assert main(judge(pairs_file, run, *model, function=None)) == 0
    rows = read_jsonl(run / "preferences.jsonl")
    assert all(0 <= row["label_smoothing"] < 0.5 for row in rows)
    for verdict in read_jsonl(run / "verdicts.jsonl"):
        gap = verdict["scores"][0] - verdict["scores"][1]
        assert verdict["probability"] == pytest.approx(1 / (1 + math.exp(-gap)))
        assert {verdict["first_order"], verdict["second_order"]} == {"first", "second"}
    ties = tmp_path / "ties"
    assert "left nothing to train on (0 of 20 items labelled, 20 tied" in error_of(
        judge(pairs_file, ties, *model, "--judge.margin", 1e6, function=None)
    )
    assert "it is a reward model. Use it as judge.reward" in error_of(
        judge(pairs_file, tmp_path / "x", "--judge.model", tmp_path / "rm" / "model", function=None)
    )
    assert "Use it as judge.model" in error_of(
        judge(pairs_file, tmp_path / "x", "--judge.reward", tiny_model, function=None)
    )


def test_scores_rankings_and_binary_labels(tmp_path):
    answers = [{"prompt": f"q{i}", "answer": "x" * (1 + (3 * k + i) % 7)} for i in range(4) for k in range(3)]
    file = write(tmp_path / "answers.jsonl", answers)  # as `jaxalign generate` writes them
    graded = ("--how", "pointwise")
    assert main(judge(file, tmp_path / "s", *graded, "--write", "score", function="my_judges:grade")) == 0
    rows = read_jsonl(tmp_path / "s" / "scores.jsonl")
    assert len(rows) == 12
    assert all(row["score"] == 1 + len(row["completion"]) for row in rows)
    binary = (*graded, "--write", "binary", "--threshold", 4)
    assert main(judge(file, tmp_path / "b", *binary, function="my_judges:grade")) == 0
    records, _ = read_records(UnpairedPreference, tmp_path / "b" / "labels.jsonl")
    assert all(record.label == (len(record.completion) >= 3) for record in records)
    ranked = ("--how", "ranking", "--write", "ranking")
    assert main(judge(file, tmp_path / "r", *ranked, function="my_judges:rank")) == 0
    rankings, _ = read_records(Ranking, tmp_path / "r" / "rankings.jsonl")
    assert len(rankings) == 4
    assert all(list(r.ranked) == sorted(r.ranked, key=len) for r in rankings)
    assert main(judge(file, tmp_path / "p", "--how", "pairwise")) == 0
    assert len(read_jsonl(tmp_path / "p" / "preferences.jsonl")) == 12  # three pairs of each three answers
    score = ("--judge.score_function", "my_judges:brevity", "--write", "ranking", "--how", "ranking")
    assert main(judge(file, tmp_path / "f", *score, function=None)) == 0
    again, _ = read_records(Ranking, tmp_path / "f" / "rankings.jsonl")
    assert [r.ranked for r in again] == [r.ranked for r in rankings]


def test_a_scorer_scores_each_answer_once_however_it_is_asked(tmp_path):
    answers = [{"prompt": f"q{i}", "answer": "x" * (1 + (3 * k + i) % 7)} for i in range(4) for k in range(3)]
    file = write(tmp_path / "answers.jsonl", answers)
    score = ("--judge.score_function", "my_judges:brevity", "--write")
    assert main(judge(file, tmp_path / "s", *score, "score", function=None)) == 0
    assert len(read_jsonl(tmp_path / "s" / "scores.jsonl")) == 12
    assert main(judge(file, tmp_path / "r", *score, "ranking", function=None)) == 0
    assert [len(row["completions"]) for row in read_jsonl(tmp_path / "r" / "rankings.jsonl")] == [3] * 4


def test_human_labels_that_come_later_reach_the_audit(pairs_file, tmp_path):
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    names = {"chosen": "answer_a", "rejected": "answer_b"}
    bare = [{names.get(name, name): value for name, value in row.items()} for row in rows]
    file = write(tmp_path / "pairs.jsonl", bare)
    assert main(judge(file, tmp_path / "run")) == 0
    assert all(line["human"] is None for line in read_jsonl(tmp_path / "run" / "verdicts.jsonl"))
    write(file, [{**row, "human": "a"} for row in bare])
    assert main(judge(file, tmp_path / "run")) == 0
    latest = {line["key"]: line for line in read_jsonl(tmp_path / "run" / "verdicts.jsonl")}
    assert all(line["human"] in ("first", "second") for line in latest.values())


def test_only_the_principle_without_an_answer_is_asked_again(pairs_file, tmp_path):
    broken = {"now": True}

    def behave(question, attempt):
        return status(500) if broken["now"] and "Be brief" in question else "Verdict: A"

    (tmp_path / "rules.yaml").write_text(
        "- {id: kind, text: Be kind., weight: 1}\n- {id: brief, text: Be brief., weight: 1}\n"
    )
    with Server(behave) as server:
        who = [
            f"--judge.endpoint.{name}={value}"
            for name, value in {"model": "m", "base_url": server.url, "key_env": "null", "retries": 0}.items()
        ]
        arguments = judge(pairs_file, tmp_path / "run", *who, "--constitution", tmp_path / "rules.yaml", function=None)
        main(arguments)
        (tmp_path / "run" / "cache.sqlite").unlink()  # so that every question is seen
        server.asked.clear()
        broken["now"] = False
        main(arguments)
        assert server.asked
        assert all("Be brief" in question for question in server.asked)


def test_a_secret_in_an_address_is_shown_nowhere(pairs_file, tmp_path, error_of):
    assert main(judge(pairs_file, tmp_path / "run")) == 0
    who = ("--judge.endpoint.model", "m", "--judge.endpoint.base_url", "http://me:sk-SECRET@host/v1")
    line = error_of(judge(pairs_file, tmp_path / "run", *who, function=None))
    assert "base_url contains a user, password or query" in line
    assert "SECRET" not in line


def test_transcripts_and_chats_keep_their_format(tmp_path):
    opening = "\n\nHuman: Why?\n\nAssistant:"
    hh = [{"chosen": f"{opening} So.", "rejected": f"{opening} Because I say so."}]
    assert main(judge(write(tmp_path / "hh.jsonl", hh), tmp_path / "a", function="my_judges:longer")) == 0
    (record,), _ = read_records(Preference, tmp_path / "a" / "preferences.jsonl")
    assert (record.format, record.prompt, record.chosen) == ("transcript", opening, " Because I say so.")
    chat = [{"role": "user", "content": "Why?"}]
    rows = [{"prompt": chat, "answer_a": "So.", "answer_b": "Because.", "human": "b"}]
    assert main(judge(write(tmp_path / "chat.jsonl", rows), tmp_path / "b")) == 0
    (record,), _ = read_records(Preference, tmp_path / "b" / "preferences.jsonl")
    assert (record.format, record.chosen) == ("chat", "So.")
    generated = [{"prompt": opening, "answer": text} for text in ("So.", "Because.")]
    assert main(judge(write(tmp_path / "g.jsonl", generated), tmp_path / "c")) == 0
    (record,), _ = read_records(Preference, tmp_path / "c" / "preferences.jsonl")
    assert (record.format, record.prompt, record.chosen) == ("transcript", opening, " So.")


def test_a_panel_votes_by_weight_and_principles_too(pairs_file, tmp_path):
    panel = json.dumps([{"function": "my_judges:longer", "weight": 3, "name": "long"}, {"function": "my_judges:first"}])
    run = tmp_path / "run"
    assert main(judge(pairs_file, run, "--panel", panel)) == 0
    rows = read_jsonl(run / "preferences.jsonl")
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in rows)
    assert rows[0]["judge"] == ["my_judges:shorter", "long", "my_judges:first"]
    constitution = ("--constitution", "jaxalign:assets/judge/constitution.yaml")
    assert main(judge(pairs_file, tmp_path / "each", *constitution)) == 0
    assert len(read_jsonl(tmp_path / "each" / "verdicts.jsonl")) == 80
    assert main(judge(pairs_file, tmp_path / "one", *constitution, "--principles", "sampled")) == 0
    drawn = Counter(line["principle"] for line in read_jsonl(tmp_path / "one" / "verdicts.jsonl"))
    assert sum(drawn.values()) == 20
    assert len(drawn) > 1


def test_a_share_of_the_pairs_in_both_orders(pairs_file, tmp_path):
    assert main(judge(pairs_file, tmp_path / "run", "--both_orders", 0.5)) == 0
    orders = Counter(line["orders"] for line in read_jsonl(tmp_path / "run" / "verdicts.jsonl"))
    assert orders.keys() == {1, 2}
    assert len(read_jsonl(tmp_path / "run" / "preferences.jsonl")) == 20


def test_a_stopped_run_resumes_and_asks_nothing_twice(pairs_file, tmp_path, monkeypatch, error_of):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    down = {"after": 15}

    def behave(question, attempt):
        return "Verdict: A" if sum(server.asked.values()) <= down["after"] else status(401)

    with Server(behave) as server:
        run = tmp_path / "run"
        settings = {"model": "m", "base_url": server.url, "key_env": "JUDGE_KEY", "concurrency": 1, "retries": 0}
        who = [part for name, value in settings.items() for part in (f"--judge.endpoint.{name}", value)]
        arguments = judge(pairs_file, run, *who, "--save_every", 4, function=None)
        assert "the key in JUDGE_KEY was refused" in error_of(arguments)
        assert len(read_jsonl(run / "verdicts.jsonl")) == 4  # of whole chunks; single answers are in the cache
        with (run / "verdicts.jsonl").open("a") as file:
            file.write('{"key": "cut off by a ki')
        down["after"] = 10**6
        refused = server.asked.copy()
        assert "left nothing to train on (0 of 20 items labelled, 20 tied" in error_of(arguments)
        assert len(read_jsonl(run / "verdicts.jsonl")) == 20
        paid = Counter(server.asked)
        assert sum(paid.values()) - len(paid) == sum(refused.values()) - 15  # only what was refused was asked again
        before = sum(paid.values())
        error_of(arguments)
        assert sum(server.asked.values()) == before
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert KEY.encode() not in written
    assert b"Bearer" not in written


def test_unanswered_questions_are_asked_again(pairs_file, tmp_path, monkeypatch, capsys):
    broken = {"now": True}

    def behave(question, attempt):
        return status(500) if broken["now"] and "sky" in question else "Verdict: tie"

    with Server(behave) as server:
        settings = {"model": "m", "base_url": server.url, "key_env": "null", "retries": 0}
        who = [part for name, value in settings.items() for part in (f"--judge.endpoint.{name}", value)]
        arguments = judge(pairs_file, tmp_path / "run", *who, function=None)
        assert main(arguments) == 2  # ties only
        shown = capsys.readouterr().out
        assert "questions had no answer (most often: the server said 500" in shown
        assert "Rerun to ask them again" in shown
        broken["now"] = False
        assert main(arguments) == 2
        assert "no answer" not in capsys.readouterr().out


def test_other_settings_do_not_mix_with_kept_verdicts(pairs_file, tmp_path, error_of):
    template = tmp_path / "mine.txt"
    template.write_text(
        "{{ prompt }}<response_a>{{ response_a }}</response_a><response_b>{{ response_b }}</response_b>"
    )
    run = tmp_path / "run"
    assert main(judge(pairs_file, run, "--template", template, "--data.limit", 5)) == 0
    assert main(judge(pairs_file, run, "--template", template)) == 0  # more rows are not another setting
    assert len(read_jsonl(run / "verdicts.jsonl")) == 20
    assert "think (was False, now True)" in error_of(judge(pairs_file, run, "--template", template, "--think", "true"))
    template.write_text(template.read_text() + "?")
    assert "asked.template (was " in error_of(judge(pairs_file, run, "--template", template))


GOOD = {"prompt": "p", "answer_a": "x", "answer_b": "yy"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "answer_a": "x"}, "field 'answer_b' is missing"),
        ({"prompt": "p"}, "field 'answer' is missing"),
        ({**GOOD, "human": "c"}, "field 'human' is 'c' where a, b or tie is needed"),
        ({**GOOD, "answer_a": 7}, "the first answer is of type int"),
        ({**GOOD, "answer_b": " "}, "the second answer is empty"),
        ({**GOOD, "prompt": " "}, "the prompt is empty"),
        ({"prompt": "p", "answer": "x"}, "this prompt has one answer where 2 are needed"),
        ([1], "is a JSON list"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_and_nothing_is_written(error_of, tmp_path, row, words):
    file = write(tmp_path / "pairs.jsonl", [GOOD, row, GOOD])
    line = error_of(judge(file, tmp_path / "run"))
    assert line.startswith(f"{file}, row 2: ")
    assert words in line
    assert not (tmp_path / "run").exists()
    assert main(judge(file, tmp_path / "run", "--data.on_error", "skip")) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "nothing says what it is. Give one of model, endpoint"),
        (("--judge.function", "a:b", "--judge.model", "m"), "model and function are given"),
        (("--judge.function", "my_judges:nope"), "module my_judges has no 'nope'"),
        (("--judge.function", "my_judges:broken"), "Judge my_judges:broken: it raised KeyError"),
        (("--judge.function", "my_judges:first", "--write", "score"), "write=score needs scores"),
        (("--judge.function", "my_judges:first", "--write", "ranking"), "write=ranking needs all answers"),
        (("--judge.function", "my_judges:first", "--both_orders", "2"), "both_orders is 2.0. Give a number"),
        (("--judge.function", "my_judges:first", "--judge.margin", "1"), "judge.margin is for scores"),
        (("--judge.function", "a:b", "--panel", '[{"function": "a:b"}]'), "Two judges are called"),
        (("--judge.function", "my_judges:first", "--template", "no.txt"), "no.txt: cannot be read"),
        (("--judge.endpoint.model", "m", "--judge.endpoint.key_env", KEY), "key_env: no such environment variable"),
        (("--judge.endpoint.model", "m", "--judge.endpoint.key_env", "NO_KEY"), "NO_KEY: the environment variable"),
        (("--judge.endpoint.model", "m", "--judge.endpoint.base_url", f"http://u:{KEY}@h/v1"), "contains a user"),
    ],
)  # fmt: skip
def test_mistakes(error_of, pairs_file, tmp_path, more, words):
    line = error_of(judge(pairs_file, tmp_path / "run", *more, function=None))
    assert words in line
    assert KEY not in line
    assert not (tmp_path / "run" / "preferences.jsonl").exists()
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_wins_are_of_a_side_wherever_its_answers_were_shown(tmp_path):
    """Whatever `judge` shuffles: of 40 pairs the shorter answer wins each, in both orders."""
    rows = [{"prompt": f"why {i}?", "before": "x" * (9 + i), "after": "y" * (1 + i % 5)} for i in range(40)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = "{answer_a: before, answer_b: after}"
    assert main(judge("answers.jsonl", "run", "--data.columns", columns)) == 0
    firsts = Counter(line["answers"][0][0] for line in read_jsonl(tmp_path / "run" / "verdicts.jsonl"))
    assert firsts["x"] > 9 < firsts["y"]
    for of, rate in (("answer_b", 1.0), ("answer_a", 0.0)):
        assert main(["eval", "wins", "run", "--of", of, "--resamples", "200"]) == 0
        (rates,) = json.loads((tmp_path / "run" / "wins.json").read_text())["judges"].values()
        assert rates["win_rate"]["value"] == rate
        assert rates["win_rate"]["items"] == 40
        assert rates["length_controlled_win_rate"]["value"] is None  # one side's answers are all shorter
