"""How a reward function is found, called, checked, summed with others, and run beside the device."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import operator
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import UserError, first_line

Texts: TypeAlias = Sequence[str]
Rows: TypeAlias = Sequence[Mapping[str, Any]]
Reward: TypeAlias = Callable[[Texts, Texts, Rows], Any]
"""(prompts, completions, rows) -> one number per completion; ``rows`` are the records that the prompts came from."""


class WeightedScores(NamedTuple):
    """A weighted sum of rewards, and what it was summed from."""

    total: NDArray[np.float64]
    components: dict[str, NDArray[np.float64]]
    """Each reward by its name, before its weight."""


def compute_rewards(
    reward: Reward, prompts: Texts, completions: Texts, rows: Rows, *, name: str | None = None
) -> NDArray[np.float64]:
    """r_i = reward(prompts, completions, rows)[i], checked: one finite number per completion.

    Args:
        reward: the function.
        prompts, completions, rows: one of each per example, ``[B]``.
        name: what to call the function in errors; its own name by default.

    Returns:
        the scores, float64 ``[B]`` (rewards cast to integers would lose their fraction).

    Raises:
        UserError: if the function raises, returns another number of scores, or one that is no finite number; the
            sentence names the function and the rows, counted from 1.

    >>> compute_rewards(lambda prompts, completions, rows: [len(c) / 2 for c in completions], ["p"], ["abc"], [{}])
    array([1.5])
    """
    label = name or str(getattr(reward, "__name__", type(reward).__name__))
    size = len(completions)
    if len(prompts) != size or len(rows) != size:
        raise UserError(
            f"reward {label}: {len(prompts)} prompts, {size} completions and {len(rows)} rows: give one of each"
        )
    try:
        scores = reward(prompts, completions, rows)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"reward {label}, rows 1 to {size}: the function raised {what}: mend it") from error
    try:
        scores = list(scores)
    except TypeError:
        what = type(scores).__name__
        raise UserError(f"reward {label}: it returned a {what}: return a list of {size} numbers") from None
    if len(scores) != size:
        raise UserError(f"reward {label}: it returned {len(scores)} scores for {size} completions: return one for each")
    return np.array([_number(label, i, score, prompts[i]) for i, score in enumerate(scores)], np.float64)


def weighted_sum(
    rewards: Mapping[str, Reward], weights: Mapping[str, float], prompts: Texts, completions: Texts, rows: Rows
) -> WeightedScores:
    """R_i = Σ_k w_k r_k,i, with every r_k,i beside it.

    Args:
        rewards: the functions by name, at least one.
        weights: a finite weight for each of these names.
        prompts, completions, rows: one of each per example, ``[B]``.

    Returns:
        the sum, ``[B]``, and the unweighted scores of each function, ``[B]``.

    Raises:
        UserError: if names and weights do not match, or for what :func:`compute_rewards` refuses.

    >>> from jaxalign.rewards import length_cap, regex
    >>> brief, asks = length_cap(1), regex("[?]$")
    >>> weighted_sum({"brief": brief, "asks": asks}, {"brief": 1.0, "asks": 0.5}, ["p", "p"], ["Why?", "No."], [{}, {}])
    WeightedScores(total=array([1.5, 1. ]), components={'brief': array([1., 1.]), 'asks': array([1., 0.])})
    """
    if not rewards:
        raise UserError("rewards: there is none: name at least one")
    if odd := sorted(set(rewards) ^ set(weights)):
        which = "weight" if odd[0] in rewards else "reward"
        raise UserError(f"rewards: {odd[0]!r} has no {which}: give each reward one weight")
    if bad := [name for name in rewards if not math.isfinite(weights[name])]:
        raise UserError(f"rewards: the weight of {bad[0]!r} is {weights[bad[0]]}: give a finite number")
    components = {
        name: compute_rewards(reward, prompts, completions, rows, name=name) for name, reward in rewards.items()
    }
    total = np.zeros(len(completions))
    for name, scores in components.items():
        total = total + weights[name] * scores
    return WeightedScores(total, components)


def submit(
    reward: Reward,
    prompts: Texts,
    completions: Texts,
    rows: Rows,
    *,
    name: str | None = None,
    executor: Executor | None = None,
) -> Future[NDArray[np.float64]]:
    """Starts :func:`compute_rewards` in a thread, so that slow Python runs while the device works: r = future.result().

    Args:
        reward, prompts, completions, rows, name: as for :func:`compute_rewards`.
        executor: where to run; by default threads shared by all calls. A function that computes in Python itself
            (and does not wait for a network or a process) is better off in a ProcessPoolExecutor.

    Returns:
        a future of the scores; what :func:`compute_rewards` raises, ``result()`` raises.

    >>> from jaxalign.rewards import length_cap
    >>> future = submit(length_cap(2), ["p"], ["one two"], [{}])
    >>> future.result()
    array([1.])
    """
    return (executor or _threads()).submit(compute_rewards, reward, prompts, completions, rows, name=name)


def load_reward(name: str) -> Reward:
    """The function that ``module:function`` names, looked up in the working folder and among installed packages.

    The working folder stays on ``sys.path``, as under ``python -m``, for what the module imports later.

    Args:
        name: such as ``my_rewards:politeness``, or ``package.module:object.method``.

    Returns:
        the function.

    Raises:
        UserError: if there is no such module or function, the module fails to import, or it is not callable.

    >>> load_reward("jaxalign.rewards:no_such")
    Traceback (most recent call last):
    jaxalign.errors.UserError: jaxalign.rewards:no_such: module jaxalign.rewards has no 'no_such': ...
    """
    module_name, colon, path = name.partition(":")
    if not (colon and path) or not all(part.isidentifier() for part in module_name.split(".")):
        raise UserError(f"reward {name!r}: not of the form module:function: write, say, my_rewards:score")
    module = _import(name, module_name)
    try:
        reward = operator.attrgetter(path)(module)
    except AttributeError:
        raise UserError(
            f"{name}: module {module_name} has no {path!r}: check the spelling, or define the function there"
        ) from None
    if not callable(reward) or isinstance(reward, type):
        kind = "class" if isinstance(reward, type) else type(reward).__name__
        raise UserError(f"{name}: it is a {kind}, not a function: name one of (prompts, completions, rows)")
    return reward


def _import(name: str, module_name: str) -> Any:
    if os.getcwd() not in sys.path:  # the console script, unlike `python -m`, does not look in the working folder
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise UserError(
                f"{name}: there is no module {error.name!r} in {os.getcwd()} or installed: check the spelling"
            ) from None
        raise UserError(f"{name}: {module_name} imports {error.name!r}, which is missing: install it") from error
    except Exception as error:  # the user's module may raise anything
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{name}: importing {module_name} raised {what}: mend the module") from error


def _number(name: str, index: int, score: Any, prompt: str) -> float:
    try:
        if isinstance(score, (str, bytes, complex)):
            raise TypeError
        value = float(score)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        start = prompt if len(prompt) <= 40 else prompt[:40] + "…"
        raise UserError(
            f"reward {name}, row {index + 1} (prompt {start!r}): the score is {_shown(score)}: return a finite number"
        )
    return value


def _shown(score: Any) -> str:
    text = repr(score)
    return text if len(text) <= 40 else f"a {type(score).__name__}"


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="jaxalign-rewards")
