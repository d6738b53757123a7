"""Opening judges: local models, endpoints, reward models and functions become raters and writers."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxalign import loop
from jaxalign.data.batches import evaluation_batches
from jaxalign.data.kinds import Prompt
from jaxalign.data.messages import Message
from jaxalign.data.shapes import LENGTHS
from jaxalign.data.tokenize import tokenize_completions, tokenize_prompts
from jaxalign.errors import UserError, first_line
from jaxalign.judges.endpoint import Endpoint, Messages, Reply, ask, check_endpoint
from jaxalign.judges.items import How, Item
from jaxalign.judges.judge import Ask
from jaxalign.judges.local import expected_scores, local_judge, local_ranker
from jaxalign.judges.panel import Rater, Score
from jaxalign.keys import stream
from jaxalign.methods import reward
from jaxalign.models.open import check_trees, open_mesh, open_model
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.reporting import Report
from jaxalign.rewards.call import compute_rewards, load_reward
from jaxalign.rollout.text import answers
from jaxalign.settings import MeshSection, ModelSection, check_ranges

KINDS = ("model", "endpoint", "reward", "function", "score_function")
# Maximum tokens of an example that a reward model scores.
LONGEST = 1024


@dataclasses.dataclass(frozen=True)
class JudgeSection:
    """One judge: give one of model, endpoint, reward, function and score_function.

    Args:
        model: a language model (directory, .gguf file, hub id or package:file), asked for the probabilities of verdicts
        endpoint: any OpenAI-compatible endpoint
        reward: a reward model that `jaxalign reward` trained; both orders are equal to it
        function: module:function of your own, from chats (lists of messages) to answers, a text each
        score_function: module:function of your own, from (prompts, answers, rows) to a score each
        name: its name in the verdicts; by default the model's, endpoint's or function's
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
    """Returns a judge's name."""
    if judge.name:
        return judge.name
    if judge.endpoint is not None:
        return judge.endpoint.model
    return judge.model or judge.reward or judge.function or judge.score_function or ""


def check_judges(judges: Sequence[JudgeSection], how: How) -> None:
    """Raises UserError for settings that contradict each other, before anything is opened.

    Args:
        judges: The judge, and the further judges of its panel.
        how: How they will judge.
    """
    for number, judge in enumerate(judges):
        where = "judge" if number == 0 else f"panel[{number - 1}]"
        given = [kind for kind in KINDS if getattr(judge, kind) is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} are given" if given else "nothing says what it is"
            raise UserError(f"{where}: {what}. Give one of {', '.join(KINDS)}.")
        if not 0 < judge.weight < math.inf:
            raise UserError(f"{where}.weight is {judge.weight:g}. Give a finite number above 0.")
        check_ranges(judge, {"margin": (0, math.inf)}, f"{where}.")
        if judge.endpoint is not None:
            check_endpoint(judge.endpoint)
        if judge.margin and judge.reward is None and judge.score_function is None and how != "pointwise":
            raise UserError(f"{where}.margin is for scores. Set it to 0 for a judge that gives verdicts.")
    names = [name_of(judge) for judge in judges]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise UserError(f"Two judges are called {doubled[0]!r}. Give each a name of its own.")


def open_rater(judge: JudgeSection, *, cache: str, template: str, report: Report) -> Rater:
    """Returns a judge that is ready to judge.

    Args:
        judge: Which judge.
        cache: File for an endpoint's replies, if its own settings name none.
        template: When a reward model's chat template is used.
        report: Receives a line about a model.

    Raises:
        UserError: If the model, function or key does not exist, or the model is of the wrong kind.
    """
    common: dict[str, Any] = {"name": name_of(judge), "weight": judge.weight, "margin": judge.margin}
    if judge.endpoint is not None or judge.function is not None:
        return Rater.of(judge=_open_ask(judge, cache), **common)
    if judge.score_function is not None:
        return Rater(score=_function_score(judge.score_function), **common)
    model, params, tokenizer = _open_model(judge, report)
    if judge.reward is not None:
        if not model.config.num_scores:
            raise UserError(f"{judge.reward}: it is not a reward model (it has no score head). Use it as judge.model.")
        return Rater(score=_model_score(model, params, tokenizer, template), log_odds=True, **common)
    if model.config.num_scores:
        raise UserError(f"{judge.model}: it is a reward model. Use it as judge.reward.")

    def grade(questions: Sequence[Messages]) -> list[tuple[float | None, Reply]]:
        scores = expected_scores(model, params, tokenizer, questions).tolist()
        return [(score, Reply(f"Score: {score:.3f}")) for score in scores]

    return Rater(
        pairs=local_judge(model, params, tokenizer, ties=judge.ties),
        grade=grade,
        rank=functools.partial(local_ranker, model, params, tokenizer),
        **common,
    )


def open_writer(judge: JudgeSection, *, cache: str, max_new_tokens: int, seed: int, report: Report) -> Ask:
    """Returns a judge that writes texts: an endpoint, a function, or a local model with greedy decoding.

    Args:
        judge: Which judge.
        cache: File for an endpoint's replies, if its own settings name none.
        max_new_tokens: Maximum tokens of a local model's answer.
        seed: Seed of the random key that decoding takes. Greedy decoding does not depend on it.
        report: Receives a line about a model.

    Raises:
        UserError: As :func:`open_rater`; also for a judge that only scores.
    """
    if judge.endpoint is not None or judge.function is not None:
        return _open_ask(judge, cache)
    if judge.model is None:
        raise UserError("A judge that only scores cannot write. Give judge.model, judge.endpoint or judge.function.")
    model, params, tokenizer = _open_model(judge, report)
    if model.config.num_scores:
        raise UserError(f"{judge.model}: it is a reward model, which cannot write. Give a language model.")

    def write(questions: Sequence[Messages]) -> list[Reply]:
        chats = [tuple(Message(part["role"], part["content"]) for part in question) for question in questions]
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


def _open_ask(judge: JudgeSection, cache: str) -> Ask:
    if judge.endpoint is not None:
        endpoint = dataclasses.replace(judge.endpoint, cache=judge.endpoint.cache or cache)
        ask(endpoint, [])  # raises for its settings now, before any question
        return functools.partial(ask, endpoint)
    assert judge.function is not None
    return _function_judge(judge.function)


def _open_model(judge: JudgeSection, report: Report) -> tuple[Any, Any, Any]:
    section = ModelSection(str(judge.model or judge.reward), dtype=judge.dtype, remat="none")
    tokenizer = load_tokenizer(section.path)
    return *open_model(section, open_mesh(MeshSection()), report), tokenizer


def _function_judge(name: str) -> Ask:
    """Returns a user's function as a judge. It may return texts, Replies, or None for no answer."""
    function: Any = load_reward(name)

    def judge(questions: Sequence[Messages]) -> list[Reply]:
        try:
            results = list(function([list(question) for question in questions]))
        except UserError:
            raise
        except Exception as error:  # the user's code may raise anything
            what = f"{type(error).__name__} ({first_line(error)})"
            raise UserError(f"Judge {name}: it raised {what}. Fix the function.") from error
        replies = [r if isinstance(r, Reply) else Reply(r, "no answer" if r is None else None) for r in results]
        for number, reply in enumerate(replies, start=1):
            if not (reply.text is None or isinstance(reply.text, str)):
                kind = type(reply.text).__name__
                raise UserError(f"Judge {name}, question {number}: the answer is a {kind}. Return a string.")
        return replies

    return judge


def _function_score(name: str) -> Score:
    """Returns a reward function ``(prompts, completions, rows) -> scores`` as a scorer of items."""
    function = load_reward(name)

    def score(items: Sequence[Item]) -> list[list[float]]:
        cases = [(item, text) for item in items for text in item.answers]
        rows = [{"prompt": item.prompt, "by": list(item.by)} for item, _ in cases]
        prompts, texts = [item.prompt for item, _ in cases], [text for _, text in cases]
        scores = iter(compute_rewards(function, prompts, texts, rows, name=name))
        return [[float(next(scores)) for _ in item.answers] for item in items]

    return score


def _model_score(model: Any, params: Any, tokenizer: Any, template: str) -> Score:
    """Returns a scorer of items: the mean of a reward model's heads, on the format that it was trained on."""
    longest = min(LONGEST, model.config.max_position_embeddings)
    shapes = [(length, length) for length in LENGTHS]

    def score(items: Sequence[Item]) -> list[list[float]]:
        results: list[list[float]] = [[] for _ in items]
        # A batch has one number of completions per tree.
        for size in sorted({len(item.answers) for item in items}):
            indices = [i for i, item in enumerate(items) if len(item.answers) == size]
            records = [items[i].record for i in indices]
            trees, _ = tokenize_completions(records, tokenizer, max_length=longest, template=template)  # type: ignore[arg-type]
            check_trees(model, trees, longest)
            batches = loop.OnMesh(evaluation_batches(trees, batch_size=8, shapes=shapes), model.mesh)
            scores = reward.completion_scores(model, params, batches).astype(np.float64).mean(-1)
            for i, row in zip(indices, scores.tolist(), strict=True):
                results[i] = row
        return results

    return score
