"""Any OpenAI-compatible endpoint as a judge: concurrent, retried and paced. No question is paid for twice.

The key is read from the environment when it is needed, and passed to the client only. It is not a setting, so it cannot
get into a configuration or a cache. Messages of servers, which may quote it, are shown without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from jaxalign.errors import UserError
from jaxalign.judges.cache import Cache
from jaxalign.judges.hashing import text_hash
from jaxalign.packages import import_package
from jaxalign.settings import check_ranges

Messages: TypeAlias = Sequence[Mapping[str, str]]
# Maximum seconds of one wait, for the backoff and for a server's Retry-After.
LONGEST_WAIT = 60.0
# When the next request to an address may start. The rate limit applies to all calls of a process.
_NEXT_START: dict[str, float] = {}


@dataclass(frozen=True)
class Endpoint:
    """Address of a judge, and how to ask it.

    Args:
        model: its name at the endpoint
        base_url: of the API, such as http://127.0.0.1:8000/v1
        key_env: the environment variable that contains the key; null for a server that needs none
        temperature: of sampling; 0 for the likeliest answer, null to leave it to the server
        max_tokens: longest answer; null to leave it to the server
        top_logprobs: how many alternatives to return for each token, 0 for none
        options: further fields of the request's body
        concurrency: requests under way at once
        requests_per_minute: started at most, retries included; null for no limit
        timeout: seconds for one attempt, to the last byte
        retries: further attempts after a failed one
        backoff: seconds before the second attempt; doubled, with jitter, before each further one
        cache: a file for all replies, so that a run that is resumed does not pay for them again
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
    """The reply to one question.

    Attributes:
        text: The answer, if there was one.
        error: The reason of a missing answer.
        finish: Why it ended, in the API's words: ``stop``, or ``length`` if it was cut off.
        prompt_tokens: Number of tokens of the question.
        completion_tokens: Number of tokens of the answer.
        logprobs: Alternatives and their log-probabilities, for every token of the answer.
        cached: Whether the reply comes from the cache.
    """

    text: str | None
    error: str | None = None
    finish: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[dict[str, float], ...] = ()
    cached: bool = False


def summarise_replies(replies: Sequence[Reply]) -> dict[str, Any]:
    """Returns the first error and the tokens of several replies, as a line of a run stores them.

    >>> summarise_replies([Reply("Yes.", prompt_tokens=5), Reply(None, "timeout")])
    {'error': 'timeout', 'prompt_tokens': 5, 'completion_tokens': 0}
    """
    return {
        "error": next((reply.error for reply in replies if reply.text is None), None),
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "completion_tokens": sum(reply.completion_tokens for reply in replies),
    }


class _Stop(Exception):
    """Raised if no further request makes sense. Its text is a sentence for the user."""


def ask(endpoint: Endpoint, questions: Sequence[Messages]) -> list[Reply]:
    """Asks an endpoint questions. A question that was answered before is answered from the cache.

    An attempt is repeated if it times out, the server is overloaded (408, 409, 429, 5xx) or the answer is malformed,
    after backoff · 2^attempt seconds or as Retry-After says. If all attempts fail, or the request is refused (400, 413,
    422), the question has no answer, and the next run asks it again. Replies before an error below are in the cache.

    Args:
        endpoint: Where and how to ask.
        questions: Lists of messages with ``role`` and ``content``.

    Returns:
        A reply for each question.

    Raises:
        UserError: If the settings are wrong, the key is missing or refused, or the address or model does not exist.
            Also if the quota is exhausted or the server cannot be reached. The message never contains the key.

    >>> ask(Endpoint("any", key_env=None), [])
    []
    """
    check_endpoint(endpoint)
    secret = _read_key(endpoint)
    if not questions:
        return []
    address = {"base_url": endpoint.base_url.rstrip("/")}
    requests = [_request_body(endpoint, messages) for messages in questions]
    keys = [text_hash(json.dumps(address | body, sort_keys=True, separators=(",", ":"))) for body in requests]
    bodies = dict(zip(keys, requests, strict=True))
    with Cache(endpoint.cache) as cache:
        stored = {key: cache.get(key, Reply._fields) for key in bodies}
        replies = {key: Reply(**{**reply, "cached": True}) for key, reply in stored.items() if reply is not None}
        new = {key: body for key, body in bodies.items() if key not in replies}
        if new:
            try:
                _run(lambda: _ask_all(endpoint, secret, new, replies, cache))
            except _Stop as stop:
                where = "" if endpoint.cache is None else f" {len(replies)} answers of {len(bodies)} are in the cache."
                raise UserError(f"{endpoint.base_url}: {_redact(str(stop), secret)}.{where}") from None
    # The cache has lists where a reply has tuples, and equal questions must not share a dictionary.
    return [replies[key]._replace(logprobs=tuple(map(dict, replies[key].logprobs))) for key in keys]


async def _ask_all(
    endpoint: Endpoint, secret: str, bodies: Mapping[str, dict[str, Any]], replies: dict[str, Reply], cache: Cache
) -> None:
    """Adds the replies to all requests to ``replies`` and to the cache."""
    import openai

    gate, stopped = asyncio.Semaphore(endpoint.concurrency), asyncio.Event()
    client = openai.AsyncOpenAI(api_key=secret, base_url=endpoint.base_url, timeout=endpoint.timeout, max_retries=0)

    async def ask_and_store(key: str, body: dict[str, Any]) -> None:
        async with gate:
            if stopped.is_set():
                return
            try:
                reply = await _ask_one(client, endpoint, body, secret, stopped)
            except BaseException:
                stopped.set()
                raise
        replies[key] = reply
        if reply.text is not None:
            cache.put(key, endpoint.model, {name: v for name, v in reply._asdict().items() if name != "cached"})

    async with client:
        requests = (ask_and_store(key, body) for key, body in bodies.items())
        # If one request stops the run, those under way may still be answered, and are paid for.
        results = await asyncio.gather(*requests, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _ask_one(client: Any, endpoint: Endpoint, body: dict[str, Any], secret: str, stopped: asyncio.Event) -> Reply:
    import openai

    error, unreachable = "", False
    for attempt in range(endpoint.retries + 1):
        await _wait_for_turn(endpoint)
        wait = endpoint.backoff * 2**attempt * random.uniform(0.5, 1.0)
        try:
            async with asyncio.timeout(endpoint.timeout):  # the client's own time-out restarts with every byte
                reply = _parse_reply(await client.chat.completions.create(**body))
                return reply._replace(text=_redact(str(reply.text), secret))  # some servers quote the request
        except openai.APIStatusError as status:
            error, unreachable = _describe_status(endpoint, status), False
            if status.status_code not in (408, 409, 429) and status.status_code < 500:
                return Reply(None, _redact(error, secret))
            wait = max(wait, _parse_retry_after(status.response.headers.get("retry-after")))
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
        raise _Stop("the server cannot be reached. Start it or check base_url, then run again")
    return Reply(None, _redact(error, secret))


def _parse_reply(completion: Any) -> Reply:
    """Returns a chat completion as a reply. Raises any exception if a server sent something else."""
    choice = completion.choices[0]
    text = choice.message.content
    if text is None and choice.finish_reason:  # the model declined, or used up its tokens: an empty answer
        text = getattr(choice.message, "refusal", None) or ""
    if not isinstance(text, str):
        raise TypeError
    usage = completion.usage
    tokens = getattr(getattr(choice, "logprobs", None), "content", None) or []
    return Reply(
        text,
        finish=choice.finish_reason,
        prompt_tokens=int(getattr(usage, "prompt_tokens", 0) or 0),
        completion_tokens=int(getattr(usage, "completion_tokens", 0) or 0),
        logprobs=tuple({other.token: float(other.logprob) for other in token.top_logprobs} for token in tokens),
    )


def _describe_status(endpoint: Endpoint, status: Any) -> str:
    """Describes a refusal. Raises _Stop if all other requests would be refused for the same reason."""
    code = status.status_code
    no_key = "the server needs a key (401). Name its environment variable as key_env"
    reasons = {
        401: f"the key in {endpoint.key_env} was refused (401). Set a valid one" if endpoint.key_env else no_key,
        403: "access was denied (403). Check what the key may do",
        404: f"the address or the model {endpoint.model!r} does not exist (404). Check base_url and model",
    }
    if code in reasons:
        raise _Stop(reasons[code])
    if getattr(status, "code", None) == "insufficient_quota":
        raise _Stop("the quota is exhausted (429). Raise it, then run again")
    message = status.body.get("message") if isinstance(status.body, dict) else None
    return f"the server said {code}" + (f" ({' '.join(str(message).split())[:200]})" if message else "")


def _parse_retry_after(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:  # a date; the backoff will do
        return 0.0


async def _wait_for_turn(endpoint: Endpoint) -> None:
    """Waits before a request, so that requests are spaced evenly."""
    if endpoint.requests_per_minute is not None:
        now = time.monotonic()
        start = max(now, _NEXT_START.get(endpoint.base_url, 0.0))
        _NEXT_START[endpoint.base_url] = start + 60 / endpoint.requests_per_minute
        await asyncio.sleep(start - now)


def _run(work: Callable[[], Any]) -> None:
    """Runs a coroutine to its end; in a thread if this one runs an event loop, as a notebook's does."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work())
        return
    done: Future[None] = Future()

    def target() -> None:
        try:
            done.set_result(asyncio.run(work()))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=target, daemon=True).start()
    done.result()


def _request_body(endpoint: Endpoint, messages: Messages) -> dict[str, Any]:
    body: dict[str, Any] = {"model": endpoint.model, "messages": [dict(message) for message in messages]}
    optional = {"temperature": endpoint.temperature, "max_tokens": endpoint.max_tokens}
    body |= {name: value for name, value in optional.items() if value is not None}
    if endpoint.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": endpoint.top_logprobs}
    if endpoint.options:
        body["extra_body"] = dict(endpoint.options)
    return body


def check_endpoint(endpoint: Endpoint) -> None:
    """Raises UserError for a setting that makes no sense. The message never contains what may be a secret."""
    import_package("openai", "judge", "An endpoint")
    try:
        url = urlsplit(endpoint.base_url)
        is_address = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:  # half an IPv6 address, or a port that is not a number
        is_address = False
    if not is_address:
        raise UserError("base_url is not an address. Give one such as http://127.0.0.1:8000/v1.")
    if url.username or url.password or url.query:
        raise UserError("base_url contains a user, password or query. Put the key into the variable of key_env.")
    at_least = {"concurrency": 1, "max_tokens": 1, "retries": 0, "backoff": 0, "top_logprobs": 0}
    check_ranges(endpoint, {name: (low, math.inf) for name, low in at_least.items()})
    for name in ("timeout", "requests_per_minute"):
        value = getattr(endpoint, name)
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value}. Give a number above 0.")
    try:
        json.dumps(dict(endpoint.options))
    except (TypeError, ValueError):
        raise UserError("options: JSON cannot represent them. Give texts, numbers, lists and mappings.") from None


def _read_key(endpoint: Endpoint) -> str:
    if endpoint.key_env is None:
        return "none"
    key = os.environ.get(endpoint.key_env, "").strip()
    # Another form of name is not repeated, because it may be the key itself.
    if not key and not re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", endpoint.key_env):
        raise UserError("key_env: no such environment variable. Give the name of the one that contains the key.")
    if not key:
        raise UserError(f"{endpoint.key_env}: the environment variable is not set. Set it, or set key_env=null.")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{endpoint.key_env}: it contains characters that no key has. Set it to the key.")
    return key


def _redact(text: str, secret: str) -> str:
    return text.replace(secret, "***") if len(secret) > 4 else text
