"""The endpoint client against a server that fails in every way servers do; the key is never seen anywhere."""

import asyncio
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest

pytest.importorskip("openai")

from jaxalign.errors import UserError
from jaxalign.judges import Endpoint, ask, endpoint_judge, judge_pairs
from jaxalign.judges import endpoint as client
from tests.judges.server import KEY, Server, completion, raw, status


def questions(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)


@pytest.fixture
def settings(key, tmp_path, caplog):
    """Settings for a server; afterwards, nothing written anywhere may hold the key or a header."""
    caplog.set_level(logging.DEBUG)

    def make(server, **changes):
        options = {"model": "m", "key_env": "JUDGE_KEY", "backoff": 0.01, "timeout": 5.0, "retries": 3}
        return Endpoint(base_url=server.url, **{**options, "cache": str(tmp_path / "cache.sqlite"), **changes})

    yield make
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    records = caplog.get_records("call")
    logged = "\n".join(record.getMessage() + str(record.args) for record in records).encode()
    for text in (*written, logged):
        assert KEY.encode() not in text
        assert b"Bearer" not in text


def test_answers_come_in_order_and_the_key_goes_to_the_server_only(settings, caplog):
    def behave(question, attempt):
        time.sleep(0.05 * (question == "a"))
        return f"re {question}"

    with Server(behave) as server:
        endpoint = settings(server, options={"top_k": 1})
        replies = ask(endpoint, questions("a", "b", "c", "a"))
    assert [reply.text for reply in replies] == ["re a", "re b", "re c", "re a"]
    assert server.asked == {"a": 1, "b": 1, "c": 1}  # the same question twice is paid once
    assert (replies[0].prompt_tokens, replies[0].completion_tokens, replies[0].finish) == (7, 3, "stop")
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert server.bodies[0]["top_k"] == 1
    assert KEY not in repr(endpoint) + repr(replies)
    assert any(record.name.startswith("openai") for record in caplog.records)  # its debug log, which is looked through


TRANSIENT = {
    "429": status(429),
    "429 with Retry-After": status(429, headers={"Retry-After": "0"}),
    "429 with a date": status(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "500": status(500),
    "503": status(503),
    "408": status(408),
    "broken JSON": raw('{"choices": [{"mess'),
    "HTML": raw("<html>busy</html>", "text/html"),
    "empty": raw(""),
    "another JSON": raw('{"ok": true}'),
    "a list": raw("[]"),
    "no choices": {**completion("x"), "choices": []},
    "connection dropped": ("drop",),
}


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_passing_fault_is_retried(settings, fault):
    with Server(lambda question, attempt: TRANSIENT[fault] if attempt <= 2 else "fine") as server:
        (reply,) = ask(settings(server), questions("a"))
    assert reply.text == "fine"
    assert server.asked["a"] == 3


@pytest.mark.parametrize("fault", ["429", "500", "broken JSON"])
def test_a_lasting_fault_gives_no_answer_and_is_asked_again_next_time(settings, fault):
    bad = True
    with Server(lambda question, attempt: TRANSIENT[fault] if bad and question == "b" else "fine") as server:
        endpoint = settings(server, retries=1)
        replies = ask(endpoint, questions("a", "b"))
        assert [reply.text for reply in replies] == ["fine", None]
        assert replies[1].error
        assert KEY not in replies[1].error
        assert server.asked == {"a": 1, "b": 2}
        bad = False
        assert [reply.text for reply in ask(endpoint, questions("a", "b"))] == ["fine", "fine"]
    assert server.asked == {"a": 1, "b": 3}


def test_a_refused_request_is_not_repeated(settings):
    with Server(lambda question, attempt: status(400) if question == "b" else "fine") as server:
        replies = ask(settings(server), questions("a", "b"))
    assert [reply.text for reply in replies] == ["fine", None]
    assert replies[1].error.startswith("the server said 400 (no: Bearer ***")
    assert server.asked["b"] == 1


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (status(401), "the key in JUDGE_KEY was refused (401)"),
        (status(403), "access was denied (403)"),
        (status(404), "the model 'm' does not exist (404)"),
        (status(429, kind="insufficient_quota"), "the quota is exhausted"),
    ],
)
def test_what_concerns_every_question_stops_the_run(settings, what, words):
    with Server(lambda question, attempt: what) as server:
        endpoint = settings(server, concurrency=1)
        with pytest.raises(UserError) as error:
            ask(endpoint, questions(*"abcdef"))
    assert words in str(error.value)
    assert KEY not in str(error.value)
    assert "0 answers of 6 are in the cache" in str(error.value)
    assert sum(server.asked.values()) <= 2


@pytest.mark.parametrize("what", ["silence", "slow stream"])
def test_a_timeout_counts_to_the_last_byte(settings, what):
    def behave(question, attempt):
        if attempt > 1:
            return "fine"
        if what == "silence":
            time.sleep(1.0)
            return "late"
        return ("trickle", 0.02)  # some 200 bytes: 4 seconds

    with Server(behave) as server:
        started = time.monotonic()
        assert ask(settings(server, timeout=0.4), questions("a"))[0].text == "fine"
        assert time.monotonic() - started < 3
        assert server.asked["a"] == 2
        reply = ask(settings(server, timeout=0.2, retries=0), questions("b"))[0]
    assert reply.error == "no answer within 0.2 seconds"


def test_a_refused_connection_stops_the_run_and_what_was_paid_is_kept(settings):
    with socket.socket() as taken:  # a port that nobody listens on
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with Server(lambda question, attempt: "fine") as server:
            endpoint = settings(server)
        with pytest.raises(UserError, match=r"the server cannot be reached\. Start it or check base_url"):
            ask(replace(endpoint, base_url=url, retries=1), questions("a"))


def test_a_run_that_was_killed_pays_nothing_twice(settings, tmp_path):
    """A process is killed outright half way; the next run asks only what has no answer yet."""
    texts = [f"q{i}" for i in range(20)]
    script = textwrap.dedent(
        """
        import sys
        from jaxalign.judges import Endpoint, ask
        endpoint = Endpoint("m", sys.argv[1], "JUDGE_KEY", concurrency=2, cache=sys.argv[2])
        ask(endpoint, [[{"role": "user", "content": f"q{i}"}] for i in range(20)])
        """
    )
    slow = True

    def behave(question, attempt):
        time.sleep(0.1 * slow)
        return f"re {question}"

    with Server(behave) as server:
        endpoint = settings(server, concurrency=2)
        process = subprocess.Popen([sys.executable, "-c", script, server.url, endpoint.cache])
        deadline = time.monotonic() + 60
        while sum(server.asked.values()) < 9 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before = sum(server.asked.values())
        assert 9 <= before < 20
        slow = False
        replies = ask(endpoint, questions(*texts))
        assert [reply.text for reply in replies] == [f"re {text}" for text in texts]
        cached = sum(reply.cached for reply in replies)
        assert cached >= before - 2  # all but what was under way
        assert sum(server.asked.values()) == before + 20 - cached
        assert all(reply.cached for reply in ask(endpoint, questions(*texts)))


def test_a_server_that_dies_half_way_loses_no_pair(settings, monkeypatch):
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.02)
    texts = [f"p{i}" for i in range(12)]
    alive = 7

    def behave(question, attempt):
        nonlocal alive
        alive -= 1
        return "Verdict: A" if alive >= 0 else ("drop",)

    with Server(behave) as server:
        endpoint = settings(server, concurrency=1, retries=1)
        judge = endpoint_judge(endpoint)
        with pytest.raises(UserError, match="7 answers of 24 are in the cache"):
            judge_pairs(judge, texts, ["yes"] * 12, ["no"] * 12)
        alive = 10**6
        judged = judge_pairs(judge, texts, ["yes"] * 12, ["no"] * 12)
    assert [(pair.first_order, pair.second_order) for pair in judged] == [("first", "first")] * 12
    assert sum(reply.cached for pair in judged for reply in pair.replies) == 7
    assert sorted(server.asked.values()) == [1] * 23 + [3]  # the one that met the dead server twice


def test_the_cache_goes_by_the_content_of_the_request(settings):
    with Server(lambda question, attempt: f"{question} {attempt}") as server:
        endpoint = settings(server)
        first = ask(endpoint, questions("a"))[0]
        assert (first.text, first.cached) == ("a 1", False)
        patient = replace(endpoint, timeout=9.0, retries=0, concurrency=1)
        assert ask(patient, questions("a"))[0] == first._replace(cached=True)
        for i, other in enumerate(({"temperature": 1.0}, {"model": "n"}, {"max_tokens": 5}, {"options": {"seed": 1}})):
            assert ask(replace(endpoint, **other), questions("a"))[0].text == f"a {i + 2}"
        assert ask(replace(endpoint, cache=None), questions("a"))[0].text == "a 6"


def test_a_file_that_is_not_a_database_is_refused(settings, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("my notes, not a database " * 100)
    with Server(lambda question, attempt: "fine") as server:
        with pytest.raises(UserError, match=r"notes\.txt: it cannot be used as a cache"):
            ask(settings(server, cache=str(file)), questions("a"))
        assert file.read_text().startswith("my notes")
        assert not server.asked


def test_concurrency_and_pace(settings):
    def behave(question, attempt):
        time.sleep(0.05)
        return "fine"

    with Server(behave) as server:
        ask(settings(server, concurrency=3), questions(*map(str, range(12))))
    assert 2 <= server.most_under_way <= 3
    with Server(lambda question, attempt: "fine") as server:
        ask(settings(server, requests_per_minute=1200), questions(*map(str, range(9))))
    assert server.times[-1] - server.times[0] >= 8 * 0.05 - 0.03


def test_retry_after_is_obeyed(settings):
    def behave(question, attempt):
        return status(429, headers={"Retry-After": "0.5"}) if attempt == 1 else "fine"

    with Server(behave) as server:
        ask(settings(server), questions("a"))
    assert server.times[1] - server.times[0] >= 0.5


def test_log_probabilities_come_along_and_are_cached(settings):
    tops = [{"token": " A", "logprob": -0.1, "bytes": None}, {"token": " B", "logprob": -2.5, "bytes": None}]
    content = [{"token": " A", "logprob": -0.1, "bytes": None, "top_logprobs": tops}]
    with Server(lambda question, attempt: completion("A", logprobs={"content": content, "refusal": None})) as server:
        endpoint = settings(server, top_logprobs=2)
        new, old = ask(endpoint, questions("a"))[0], ask(endpoint, questions("a"))[0]
    assert new.logprobs == old.logprobs == ({" A": -0.1, " B": -2.5},)
    assert server.bodies[0]["logprobs"] is True


def test_it_works_where_a_loop_is_running(settings):
    async def notebook(endpoint):
        return ask(endpoint, questions("a"))

    with Server(lambda question, attempt: "fine") as server:
        assert asyncio.run(notebook(settings(server)))[0].text == "fine"
        with pytest.raises(UserError, match="401"), Server(lambda question, attempt: status(401)) as strict:
            asyncio.run(notebook(settings(strict, cache=None)))


def test_an_answer_that_says_nothing_is_one_and_paid_once(settings):
    declined = completion(None)
    declined["choices"][0]["message"]["refusal"] = "I would rather not."
    with Server(lambda question, attempt: declined if question == "a" else completion(None)) as server:
        endpoint = settings(server)
        for cached in (False, True):
            replies = ask(endpoint, questions("a", "b"))
            assert [(reply.text, reply.error, reply.cached) for reply in replies] == [
                ("I would rather not.", None, cached),
                ("", None, cached),
            ]
    assert server.asked == {"a": 1, "b": 1}


def test_what_is_under_way_when_all_stops_is_kept(settings):
    def behave(question, attempt):
        if question == "b":
            return status(401)
        time.sleep(0.5)
        return "fine"

    with Server(behave) as server:
        endpoint = settings(server, concurrency=3)
        with pytest.raises(UserError, match="was refused"):
            ask(endpoint, questions("a", "b", "c", "d", "e"))
        asked = dict(server.asked)
        assert asked == {"a": 1, "b": 1, "c": 1}, "nothing more was begun"
        assert [reply.cached for reply in ask(endpoint, questions("a", "c"))] == [True, True]


def test_the_rate_limit_holds_over_calls(settings):
    with Server(lambda question, attempt: "fine") as server:
        endpoint = settings(server, requests_per_minute=300)
        began = time.monotonic()
        for name in "abcd":
            ask(endpoint, questions(name))
        assert time.monotonic() - began > 0.55, "three waits of a fifth of a second"


def test_a_database_of_another_kind_is_refused(settings, tmp_path):
    with Server(lambda question, attempt: "fine") as server:
        endpoint = settings(server, cache=str(tmp_path / "c.sqlite"))
        ask(endpoint, questions("a"))
        with sqlite3.connect(tmp_path / "c.sqlite") as database:
            database.execute("UPDATE replies SET reply = '{'")
        assert [reply.cached for reply in ask(endpoint, questions("a"))] == [False], "cut off: asked again"
        with sqlite3.connect(tmp_path / "other.sqlite") as database:
            database.execute("CREATE TABLE replies (name TEXT)")
        with pytest.raises(UserError, match="it is not a cache of replies"):
            ask(settings(server, cache=str(tmp_path / "other.sqlite")), questions("a"))


def test_temperature_and_length_can_be_left_to_the_server(settings):
    with Server(lambda question, attempt: "fine") as server:
        ask(settings(server, temperature=None, max_tokens=None), questions("a"))
        ask(settings(server), questions("b"))
    assert [sorted(body) for body in server.bodies] == [
        ["messages", "model"],
        ["max_tokens", "messages", "model", "temperature"],
    ]


def test_a_missing_key_is_reported_before_anything_is_asked(settings, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    with Server(lambda question, attempt: "fine") as server:
        with pytest.raises(UserError, match="JUDGE_KEY: the environment variable is not set"):
            ask(settings(server), questions("a"))
        assert ask(settings(server, key_env=None), questions("a"))[0].text == "fine"
    assert server.headers[0]["authorization"] == "Bearer none"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_url": "ftp://x"}, "base_url is not an address"),
        ({"base_url": "http://[::1"}, "base_url is not an address"),
        ({"base_url": "http://localhost:abc/v1"}, "base_url is not an address"),
        ({"base_url": "http://localhost:99999/v1"}, "base_url is not an address"),
        ({"base_url": f"https://me:{KEY}@host/v1"}, "base_url contains a user, password or query"),
        ({"base_url": f"https://host/v1?key={KEY}"}, "base_url contains a user, password or query"),
        ({"concurrency": 0}, "concurrency is 0. Give"),
        ({"retries": -1}, "retries is -1"),
        ({"timeout": 0}, "timeout is 0"),
        ({"requests_per_minute": -1}, "requests_per_minute is -1"),
        ({"options": {"x": object()}}, "options: JSON cannot represent them"),
    ],
)
def test_wrong_settings_are_refused(key, changes, words):
    with pytest.raises(UserError) as error:
        ask(Endpoint("m", key_env="JUDGE_KEY", **changes), questions("a"))
    assert words in str(error.value)
    assert KEY not in str(error.value)


def test_the_cache_holds_answers_and_nothing_about_who_asked(settings, tmp_path):
    with Server(lambda question, attempt: "fine") as server:
        endpoint = settings(server)
        ask(endpoint, questions("a private question"))
    with sqlite3.connect(endpoint.cache) as connection:
        ((name, model, reply),) = connection.execute("SELECT * FROM replies")
    connection.close()
    assert len(name) == 64
    assert model == "m"
    assert "fine" in reply
    assert b"private" not in (tmp_path / "cache.sqlite").read_bytes()
