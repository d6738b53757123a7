"""The judges of ``jaxalign judge``: models of ours, endpoints, reward models and functions, opened as raters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from rich.console import Console

from jaxalign import loop
from jaxalign.data.batches import evaluation_batches
from jaxalign.data.kinds import Prompt
from jaxalign.data.messages import Message
from jaxalign.data.shapes import LENGTHS
from jaxalign.data.tokenize import tokenize_completions, tokenize_prompts
from jaxalign.errors import UserError, first_line
from jaxalign.judges.endpoint import Endpoint, Messages, Reply, ask, check_endpoint
from jaxalign.judges.judge import Ask
from jaxalign.judges.local import expected_scores, local_judge, local_ranker
from jaxalign.judges.panel import How, Item, Rater, grading
from jaxalign.keys import stream
from jaxalign.methods import reward
from jaxalign.models.open import check_trees, open_mesh, open_model
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.rewards.call import compute_rewards, load_reward
from jaxalign.rollout.text import answers
from jaxalign.settings import MeshSection, ModelSection

KINDS = ("model", "endpoint", "reward", "function", "score_function")
LONGEST = 1024  # tokens of an example of a reward model


@dataclasses.dataclass(frozen=True)
class JudgeSection:
    """One judge: give one of model, endpoint, reward, function and score_function.

    Args:
        model: a language model (directory, .gguf file, hub id or package:file), asked for the probabilities of verdicts
        endpoint: any OpenAI-compatible endpoint
        reward: a reward model that `jaxalign reward` trained; both orders are equal to it
        function: module:function of your own, from chats (lists of messages) to answers, a text each
        score_function: module:function of your own, from (prompts, answers, rows) to a score each
        name: what its column says; by default what it is
        weight: of its vote in a panel
        ties: of a model, whether it may answer tie
        margin: scores no further apart than this are a tie
        dtype: of a model or reward model, what matrix products compute in
    """

    model: str | None = None
    endpoint: Endpoint | None = None
    reward: str | None = None
    function: str | None = None
    score_function: str | None = None
    name: str | None = None
    weight: float = 1.0
    ties: bool = False
    margin: float = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"


def name_of(judge: JudgeSection) -> str:
    """What a judge is called."""
    if judge.name:
        return judge.name
    if judge.endpoint is not None:
        return judge.endpoint.model
    return judge.model or judge.reward or judge.function or judge.score_function or ""


def check_panel(panel: Sequence[JudgeSection], how: How) -> None:
    """Raise for settings that make no sense, before anything is opened.

    Raises:
        UserError: naming the judge and the setting.
    """
    for number, judge in enumerate(panel):
        where = "judge" if number == 0 else f"panel[{number - 1}]"
        given = [kind for kind in KINDS if getattr(judge, kind) is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} are given" if given else "nothing says what it is"
            raise UserError(f"{where}: {what}; give one of {', '.join(KINDS)}.")
        if not 0 < judge.weight < float("inf"):
            raise UserError(f"{where}.weight is {judge.weight:g}; give a finite number above 0.")
        if not 0 <= judge.margin < float("inf"):
            raise UserError(f"{where}.margin is {judge.margin:g}; give a finite number, 0 or more.")
        if judge.endpoint is not None:
            check_endpoint(judge.endpoint)
        if judge.margin and judge.reward is None and judge.score_function is None and how != "pointwise":
            raise UserError(f"{where}.margin is for scores; leave it at 0 for a judge that is asked for verdicts.")
    names = [name_of(judge) for judge in panel]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two judges are called {doubled[0]!r}; give each a name of its own.")


def open_rater(judge: JudgeSection, *, cache: str, template: str, console: Console) -> Rater:
    """The judge, ready to be asked.

    Args:
        judge: which.
        cache: where an endpoint's answers are kept if its own settings name no file.
        template: when a reward model's chat template is used.
        console: where to tell about models.

    Raises:
        UserError: if there is no such model, function or key, or a reward model is wanted and a language model given.
    """
    common: dict[str, Any] = {"name": name_of(judge), "weight": judge.weight, "margin": judge.margin}
    if judge.endpoint is not None:
        endpoint = dataclasses.replace(judge.endpoint, cache=judge.endpoint.cache or cache)
        ask(endpoint, [])  # complains about its settings now
        return _asked(functools.partial(ask, endpoint), common)
    if judge.function is not None:
        return _asked(_answering(judge.function), common)
    if judge.score_function is not None:
        return Rater(score=_scoring(judge.score_function), **common)
    section = ModelSection(str(judge.model or judge.reward), dtype=judge.dtype, remat="none")
    tokenizer = load_tokenizer(section.path)
    model, params = open_model(section, open_mesh(MeshSection()), lambda line: console.print(line, markup=False))
    if judge.reward is not None:
        if not model.config.num_scores:
            raise UserError(f"{section.path}: it is no reward model (it has no score head); name it as judge.model.")
        return Rater(score=_rewarding(model, params, tokenizer, template), log_odds=True, **common)
    if model.config.num_scores:
        raise UserError(f"{section.path}: it is a reward model; name it as judge.reward.")

    def grade(questions: Sequence[Messages]) -> list[tuple[float | None, Reply]]:
        scores = expected_scores(model, params, tokenizer, questions).tolist()
        return [(score, Reply(f"Score: {score:.3f}")) for score in scores]

    return Rater(
        pairs=local_judge(model, params, tokenizer, ties=judge.ties),
        grade=grade,
        rank=functools.partial(local_ranker, model, params, tokenizer),
        **common,
    )


def open_writer(judge: JudgeSection, *, cache: str, max_new_tokens: int, seed: int, console: Console) -> Ask:
    """A judge that is asked for text: an endpoint, a function, or a model of ours, which samples its likeliest tokens.

    Args:
        judge: which.
        cache: where an endpoint's answers are kept if its own settings name no file.
        max_new_tokens: longest answer of a model of ours.
        seed: of its sampling, which at temperature 0 changes nothing.
        console: where to tell about models.

    Raises:
        UserError: as :func:`open_rater`; also for a judge that only scores.
    """
    if judge.endpoint is not None:
        endpoint = dataclasses.replace(judge.endpoint, cache=judge.endpoint.cache or cache)
        ask(endpoint, [])
        return functools.partial(ask, endpoint)
    if judge.function is not None:
        return _answering(judge.function)
    if judge.model is None:
        raise UserError("a judge that only scores cannot write; give judge.model, judge.endpoint or judge.function.")
    section = ModelSection(judge.model, dtype=judge.dtype, remat="none")
    tokenizer = load_tokenizer(section.path)
    model, params = open_model(section, open_mesh(MeshSection()), lambda line: console.print(line, markup=False))
    if model.config.num_scores:
        raise UserError(f"{section.path}: it is a reward model, which cannot write.")

    def write(questions: Sequence[Messages]) -> list[Reply]:
        chats = [tuple(Message(each["role"], each["content"]) for each in question) for question in questions]
        plain = tokenizer.chat_template is None
        records = [Prompt(chat[-1].content, "text") if plain else Prompt(chat, "chat") for chat in chats]
        room = model.config.max_position_embeddings - max_new_tokens
        prompts, _ = tokenize_prompts(records, tokenizer, max_length=max(1, room))
        ids = [prompt for prompt, _ in prompts]
        key = stream(seed, "samples")
        texts = answers(model, params, tokenizer, ids, max_new_tokens=max_new_tokens, key=key, temperature=0.0)
        lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
        rows = zip(texts, ids, lengths, strict=True)
        return [Reply(text, prompt_tokens=len(prompt), completion_tokens=count) for text, prompt, count in rows]

    return write


def _asked(judge: Ask, common: dict[str, Any]) -> Rater:
    return Rater(pairs=judge, grade=grading(judge), rank=lambda number: judge, **common)


def _answering(name: str) -> Ask:
    """A user's function as a judge: it may return texts, None for no answer, or Replies."""
    function: Any = load_reward(name)

    def judge(questions: Sequence[Messages]) -> list[Reply]:
        try:
            found = list(function([list(question) for question in questions]))
        except UserError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise UserError(f"judge {name}: it raised {type(error).__name__} ({first_line(error)}): mend it") from error
        for i, answer in enumerate(found):
            text = answer.text if isinstance(answer, Reply) else answer
            if not (text is None or isinstance(text, str)):
                what = f"{'Reply of a ' if isinstance(answer, Reply) else ''}{type(text).__name__}"
                raise UserError(
                    f"judge {name}, question {i + 1}: it returned a {what}: return a text for each question"
                )
        return [
            a if isinstance(a, Reply) else Reply(a, None if a is not None else "the function gave none") for a in found
        ]

    return judge


def _scoring(name: str) -> Callable[[Sequence[Item]], list[list[float]]]:
    """A reward function (prompts, completions, rows) -> scores, for items."""
    function = load_reward(name)

    def score(items: Sequence[Item]) -> list[list[float]]:
        flat = [(item, text) for item in items for text in item.answers]
        rows = [{"prompt": item.prompt, "by": list(item.by)} for item, _ in flat]
        found = iter(compute_rewards(function, [i.prompt for i, _ in flat], [t for _, t in flat], rows, name=name))
        return [[float(next(found)) for _ in item.answers] for item in items]

    return score


def _rewarding(model: Any, params: Any, tokenizer: Any, template: str) -> Callable[[Sequence[Item]], list[list[float]]]:
    """The mean of a reward model's heads, for the answers as it was trained to see them."""
    longest = min(LONGEST, model.config.max_position_embeddings)
    shapes = [(length, length) for length in LENGTHS]

    def score(items: Sequence[Item]) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in items]
        for size in sorted({len(item.answers) for item in items}):
            mine = [i for i, item in enumerate(items) if len(item.answers) == size]
            records = [items[i].record for i in mine]
            trees, _ = tokenize_completions(records, tokenizer, max_length=longest, template=template)  # type: ignore[arg-type]
            check_trees(model, trees, longest)
            feed = loop.OnMesh(evaluation_batches(trees, batch_size=8, shapes=shapes), model.mesh)
            scores = reward.completion_scores(model, params, feed).astype(np.float64).mean(-1)
            for i, row in zip(mine, scores.tolist(), strict=True):
                found[i] = row
        return found

    return score
