"""Reward functions are found by name, called, checked, and run in threads while the device works."""

from __future__ import annotations

import importlib
import importlib.util
import math
import operator
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import UserError, first_line

Texts: TypeAlias = Sequence[str]
Rows: TypeAlias = Sequence[Mapping[str, Any]]
# (prompts, completions, rows) -> one number per completion. Rows are the records that the prompts came from.
Reward: TypeAlias = Callable[[Texts, Texts, Rows], Any]
# Threads shared by all calls of ``submit``. The first call starts them.
_THREADS = ThreadPoolExecutor(thread_name_prefix="jaxalign-rewards")


def compute_rewards(
    reward: Reward, prompts: Texts, completions: Texts, rows: Rows, *, name: str | None = None
) -> NDArray[np.float64]:
    """Calls a reward function and checks that it returns one finite number per completion.

    Args:
        reward: the function.
        prompts: of the examples, ``[B]``.
        completions: one of each prompt, ``[B]``.
        rows: the record of each prompt, ``[B]``.
        name: name of the function in errors; its own name by default.

    Returns:
        The scores, float64 ``[B]`` (rewards cast to integers would lose their fraction).

    Raises:
        UserError: if the function raises, or returns another number of scores or a score that is not finite. The
            message names the function and the rows, counted from 1.

    >>> compute_rewards(lambda prompts, completions, rows: [len(c) / 2 for c in completions], ["p"], ["abc"], [{}])
    array([1.5])
    """
    label = name or str(getattr(reward, "__name__", type(reward).__name__))
    size = len(completions)
    if len(prompts) != size or len(rows) != size:
        raise UserError(
            f"Reward {label}: got {len(prompts)} prompts, {size} completions and {len(rows)} rows. "
            "Give the same number of each."
        )
    try:
        scores = reward(prompts, completions, rows)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"Reward {label}, rows 1 to {size}: the function raised {what}. Fix the function.") from error
    try:
        scores = list(scores)
    except TypeError:
        what = type(scores).__name__
        raise UserError(f"Reward {label} returned a {what}. Return a list of {size} numbers.") from None
    if len(scores) != size:
        raise UserError(f"Reward {label} returned {len(scores)} scores for {size} completions. Return one for each.")
    return np.array([_number(label, i, score, prompts[i]) for i, score in enumerate(scores)], np.float64)


def submit(
    reward: Reward,
    prompts: Texts,
    completions: Texts,
    rows: Rows,
    *,
    name: str | None = None,
    executor: Executor | None = None,
) -> Future[NDArray[np.float64]]:
    """Starts :func:`compute_rewards` in a thread, so that slow Python runs while the device works.

    Args:
        reward: as for :func:`compute_rewards`.
        prompts: as there.
        completions: as there.
        rows: as there.
        name: as there.
        executor: where to run; by default threads shared by all calls. Give a ProcessPoolExecutor for a function that
            computes in Python itself and does not wait for a network or a process.

    Returns:
        A future of the scores. Its ``result()`` raises what :func:`compute_rewards` raises.

    >>> from jaxalign.rewards import length_cap
    >>> future = submit(length_cap(2), ["p"], ["one two"], [{}])
    >>> future.result()
    array([1.])
    """
    return (executor or _THREADS).submit(compute_rewards, reward, prompts, completions, rows, name=name)


def load_reward(name: str) -> Reward:
    """Imports the function that ``module:function`` names, from the working folder or an installed package.

    The working folder stays on ``sys.path``, as under ``python -m``, because the module may import others later.

    Args:
        name: such as ``my_rewards:politeness``, or ``package.module:object.method``.

    Returns:
        The function.

    Raises:
        UserError: if the module or function does not exist, the module fails to import, or it is not a function.

    >>> load_reward("jaxalign.rewards:no_such")
    Traceback (most recent call last):
    jaxalign.errors.UserError: jaxalign.rewards:no_such: module jaxalign.rewards has no 'no_such'. ...
    """
    module_name, colon, path = name.partition(":")
    if not (colon and path) or not all(part.isidentifier() for part in module_name.split(".")):
        raise UserError(f"Reward {name!r} is not of the form module:function. Write, for example, my_rewards:score.")
    module = _import(name, module_name)
    try:
        reward = operator.attrgetter(path)(module)
    except AttributeError:
        raise UserError(
            f"{name}: module {module_name} has no {path!r}. Check the spelling, or define the function there."
        ) from None
    if not callable(reward) or isinstance(reward, type):
        kind = "class" if isinstance(reward, type) else type(reward).__name__
        raise UserError(f"{name} is a {kind}, not a function. Name a function of (prompts, completions, rows).")
    return reward


def _import(name: str, module_name: str) -> Any:
    # The console script, unlike `python -m`, does not look in the working folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise UserError(
                f"{name}: module {error.name!r} is neither in {os.getcwd()} nor installed. Check the spelling."
            ) from None
        raise UserError(f"{name}: {module_name} imports {error.name!r}, which is missing. Install it.") from error
    except Exception as error:  # the user's module may raise anything
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{name}: importing {module_name} raised {what}. Fix the module.") from error


def _number(name: str, index: int, score: Any, prompt: str) -> float:
    try:
        if isinstance(score, (str, bytes, complex)):
            raise TypeError
        value = float(score)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        start = prompt if len(prompt) <= 40 else prompt[:40] + "…"
        shown = repr(score) if len(repr(score)) <= 40 else f"a {type(score).__name__}"
        place = f"Reward {name}, row {index + 1} (prompt {start!r})"
        raise UserError(f"{place}: the score is {shown}. Return a finite number.")
    return value
