"""Any OpenAI-compatible endpoint as a judge: concurrent, retried, paced, and never paid twice for one question.

The key is read from the environment when it is needed, handed to the client and kept nowhere: it is no setting, so it
cannot get into a configuration or a cache, and servers' messages, which may quote it, are shown without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from jaxalign.errors import UserError
from jaxalign.judges.cache import Cache, request_key

Messages: TypeAlias = Sequence[Mapping[str, str]]
LONGEST_WAIT = 60.0
"""Seconds; neither the backoff nor a server's Retry-After makes us wait longer at once."""


@dataclass(frozen=True)
class Endpoint:
    """Where a judge is asked, and how.

    Args:
        model: its name at the endpoint
        base_url: of the API, such as http://127.0.0.1:8000/v1
        key_env: the environment variable that holds the key; null for a server that wants none
        temperature: of sampling; 0 for the likeliest answer, null to leave it to the server
        max_tokens: longest answer; null to leave it to the server
        top_logprobs: how many alternatives to return for each token, 0 for none
        options: further fields of the request's body
        concurrency: requests under way at once
        requests_per_minute: started at most, retries included; null for no limit
        timeout: seconds for one attempt, to the last byte
        retries: further attempts after a failed one
        backoff: seconds before the second attempt; doubled, with jitter, before each further one
        cache: a file that keeps every answer, so that a run that was stopped pays for none again
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    key_env: str | None = "OPENAI_API_KEY"
    temperature: float | None = 0.0
    max_tokens: int | None = 512
    top_logprobs: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 1.0
    cache: str | None = None


class Reply(NamedTuple):
    """What came back for one question."""

    text: str | None
    """The answer; None if none was had."""
    error: str | None = None
    """Why there is no answer."""
    finish: str | None = None
    """Why it ended, in the API's words: ``stop``, or ``length`` where it was cut off."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[dict[str, float], ...] = ()
    """For every token of the answer, alternatives and their log-probabilities."""
    cached: bool = False


class _Stop(Exception):
    """No further request makes sense; its text is a sentence for the user."""


def ask(endpoint: Endpoint, questions: Sequence[Messages]) -> list[Reply]:
    """Puts chat messages to an endpoint; a question asked before is answered from the cache.

    An attempt that times out, finds the server overloaded (408, 409, 429, 5xx) or gets nonsense back is repeated, after
    backoff · 2^attempt seconds or what Retry-After says. If all fail, or the request itself is refused (400, 413, 422),
    that question has no answer and the next run asks it again. Answers had before an error below are in the cache.

    Args:
        endpoint: where and how.
        questions: each a list of messages with ``role`` and ``content``.

    Returns:
        a reply for each question.

    Raises:
        UserError: if the settings are wrong, the key is missing or refused, the address or model does not exist, there
            is no quota left, or the server cannot be reached; the sentence never holds the key.

    >>> ask(Endpoint("any", key_env=None), [])
    []
    """
    check_endpoint(endpoint)
    key = _key(endpoint)
    if not questions:
        return []
    bodies = {}
    keys = []
    for messages in questions:
        body = _body(endpoint, messages)
        keys.append(request_key({"base_url": endpoint.base_url.rstrip("/"), **body}))
        bodies[keys[-1]] = body
    with Cache(endpoint.cache) as cache:
        known = {
            name: Reply(**{**found, "cached": True}) for name in bodies if (found := cache.get(name, Reply._fields))
        }
        new = {name: body for name, body in bodies.items() if name not in known}
        if new:
            try:
                _run(lambda: _ask_all(endpoint, key, new, known, cache))
            except _Stop as stop:
                where = "" if endpoint.cache is None else f"; {len(known)} answers of {len(bodies)} are in the cache"
                raise UserError(f"{endpoint.base_url}: {_without(str(stop), key)}{where}") from None
    return [_tuples(known[name]) for name in keys]


async def _ask_all(
    endpoint: Endpoint, key: str, bodies: Mapping[str, dict[str, Any]], known: dict[str, Reply], cache: Cache
) -> None:
    import openai

    gate, pace = asyncio.Semaphore(endpoint.concurrency), _pacer(endpoint.base_url, endpoint.requests_per_minute)
    client = openai.AsyncOpenAI(api_key=key, base_url=endpoint.base_url, timeout=endpoint.timeout, max_retries=0)

    stopped = asyncio.Event()

    async def one(name: str, body: dict[str, Any]) -> None:
        async with gate:
            if stopped.is_set():
                return
            try:
                reply = await _ask_one(client, endpoint, body, pace, key, stopped)
            except BaseException:
                stopped.set()
                raise
        known[name] = reply
        if reply.text is not None:
            cache.put(name, endpoint.model, {k: v for k, v in reply._asdict().items() if k != "cached"})

    async with client:
        tasks = [asyncio.create_task(one(name, body)) for name, body in bodies.items()]
        try:
            # Where one stops all, what is under way may still come in, and is paid for.
            found = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    if problems := [each for each in found if isinstance(each, BaseException)]:
        raise problems[0]


async def _ask_one(
    client: Any,
    endpoint: Endpoint,
    body: dict[str, Any],
    pace: Callable[[], Awaitable[None]],
    key: str,
    stopped: asyncio.Event,
) -> Reply:
    import openai

    error, unreachable = "", False
    for attempt in range(endpoint.retries + 1):
        await pace()
        wait = endpoint.backoff * 2**attempt * random.uniform(0.5, 1.0)
        try:
            async with asyncio.timeout(endpoint.timeout):  # the client's own time-out starts anew with every byte
                reply = _reply(await client.chat.completions.create(**body))
                return reply._replace(text=_without(str(reply.text), key))  # some servers quote the request
        except openai.APIStatusError as status:
            error, unreachable = _status(endpoint, status), False
            if status.status_code not in (408, 409, 429) and status.status_code < 500:
                return Reply(None, _without(error, key))
            wait = max(wait, _retry_after(status.response.headers.get("retry-after")))
        except (TimeoutError, openai.APITimeoutError):
            error, unreachable = f"no answer within {endpoint.timeout:g} seconds", False
        except openai.APIConnectionError:
            error, unreachable = "the server cannot be reached", True
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError):
            error, unreachable = "the answer is not what the API promises", False
        if stopped.is_set():
            break
        if attempt < endpoint.retries:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), min(wait, LONGEST_WAIT))
    if unreachable:
        raise _Stop("the server cannot be reached: start it or check base_url, then run again")
    return Reply(None, _without(error, key))


def _reply(completion: Any) -> Reply:
    """Raises what it likes if a server sent something else than a chat completion."""
    choice = completion.choices[0]
    text = choice.message.content
    if text is None and choice.finish_reason:  # the model declined, or used up its tokens: an answer that says nothing
        text = getattr(choice.message, "refusal", None) or ""
    if not isinstance(text, str):
        raise TypeError
    usage, logprobs = completion.usage, getattr(choice, "logprobs", None)
    tokens = (getattr(logprobs, "content", None) or []) if logprobs else []
    return Reply(
        text,
        finish=choice.finish_reason,
        prompt_tokens=int(getattr(usage, "prompt_tokens", 0) or 0),
        completion_tokens=int(getattr(usage, "completion_tokens", 0) or 0),
        logprobs=tuple({other.token: float(other.logprob) for other in token.top_logprobs} for token in tokens),
    )


def _status(endpoint: Endpoint, status: Any) -> str:
    """What a refusal says; raises where all others would be refused for the same reason."""
    code = status.status_code
    if code == 401:
        raise _Stop(f"the key in {endpoint.key_env} was refused (401): set a valid one" if endpoint.key_env else
                    "the server wants a key (401): name its variable as key_env")  # fmt: skip
    if code == 403:
        raise _Stop("access was denied (403): check what the key may do")
    if code == 404:
        raise _Stop(f"there is no such address or no model {endpoint.model!r} (404): check base_url and model")
    if getattr(status, "code", None) == "insufficient_quota":
        raise _Stop("there is no quota left (429): top it up, then run again")
    said = status.body.get("message") if isinstance(status.body, dict) else None
    return f"the server said {code}" + (f" ({' '.join(str(said).split())[:200]})" if said else "")


def _retry_after(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:  # a date; the backoff will do
        return 0.0


_FOLLOWING: dict[str, float] = {}
"""When the next request to an address may start: the limit holds over all calls of a process."""


def _pacer(address: str, per_minute: float | None) -> Callable[[], Awaitable[None]]:
    """A function to await before each request, which spaces them evenly."""

    async def pace() -> None:
        if per_minute is not None:
            now = time.monotonic()
            mine = max(now, _FOLLOWING.get(address, 0.0))
            _FOLLOWING[address] = mine + 60 / per_minute
            await asyncio.sleep(mine - now)

    return pace


def _run(work: Callable[[], Any]) -> None:
    """Runs a coroutine to its end, in a notebook too, where a loop is running in this thread already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work())
        return
    problem: list[BaseException] = []

    def target() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join()
    if problem:
        raise problem[0]


def _body(endpoint: Endpoint, messages: Messages) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [dict(message) for message in messages],
    }
    body |= {"temperature": endpoint.temperature} if endpoint.temperature is not None else {}
    body |= {"max_tokens": endpoint.max_tokens} if endpoint.max_tokens is not None else {}
    if endpoint.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": endpoint.top_logprobs}
    if endpoint.options:
        body["extra_body"] = dict(endpoint.options)
    return body


def check_endpoint(endpoint: Endpoint) -> None:
    """Raise for settings that make no sense; the sentence never repeats what may be a secret.

    Raises:
        UserError: naming the setting.
    """
    try:
        import openai  # noqa: F401
    except ImportError:
        raise UserError("judging through an endpoint needs the openai package: pip install 'jaxalign[judge]'") from None
    try:
        url = urlsplit(endpoint.base_url)
        sound = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:  # half an IPv6 address, a port that is none
        sound = False
    if not sound:
        raise UserError("base_url: not an address: give one such as http://127.0.0.1:8000/v1")
    if url.username or url.password or url.query:  # not repeated here: they are secrets
        raise UserError(
            "base_url: it holds a user, password or query: put the key into the variable that key_env names"
        )
    for name, low in (("concurrency", 1), ("max_tokens", 1), ("retries", 0), ("backoff", 0), ("top_logprobs", 0)):
        value = getattr(endpoint, name)
        if value is not None and value < low:
            raise UserError(f"{name} is {value}: give at least {low}")
    for name in ("timeout", "requests_per_minute"):
        value = getattr(endpoint, name)
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value}: give a number above 0")
    try:
        json.dumps(dict(endpoint.options))
    except (TypeError, ValueError):
        raise UserError(
            "options: they hold something that JSON cannot: give texts, numbers, lists and mappings"
        ) from None


def _key(endpoint: Endpoint) -> str:
    if endpoint.key_env is None:
        return "none"
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        if not re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", endpoint.key_env):  # not repeated: it may be the key itself
            raise UserError("key_env: no such environment variable: give the name of the one that holds the key")
        raise UserError(
            f"{endpoint.key_env}: the environment variable is not set: put the key there, or set key_env=null"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{endpoint.key_env}: it holds characters that no key has: set it anew")
    return key


def _without(text: str, key: str) -> str:
    return text.replace(key, "***") if len(key) > 4 else text


def _tuples(reply: Reply) -> Reply:
    return reply._replace(logprobs=tuple(dict(token) for token in reply.logprobs))
