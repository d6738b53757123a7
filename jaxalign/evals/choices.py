"""Multiple choice by likelihood: the model chooses the text that it finds most likely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxalign.data.encode import Encoder
from jaxalign.data.files import Problem
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.evals.config import TEMPLATE
from jaxalign.evals.outcome import Outcome
from jaxalign.methods.scoring import tree_logps
from jaxalign.models.model import Model


class Choice(NamedTuple):
    """An item: a prompt ('' to compare whole texts), the choices, and the index of the right one."""

    prompt: str
    choices: tuple[str, ...]
    label: int


def parse_choice(row: Mapping[str, Any], label: int | None = None) -> Choice:
    """Returns the item of a row, whose format follows from its fields.

    ======================================================  ====================
    fields                                                  format of
    ======================================================  ====================
    goal, sol1, sol2, label (or a file of labels)           PIQA
    sentence_good, sentence_bad                             BLiMP
    question, mc1_targets: {choices, labels} or {text: 0}   TruthfulQA
    question, choices: {text, label}, answerKey             ARC
    prompt or question, choices, label or answer            anything else
    ======================================================  ====================

    Args:
        row: a row of a data set.
        label: index of the right choice, for a data set with a separate file of labels.

    Returns:
        The item.

    Raises:
        Problem: If the row has none of these formats, or a wrong label.

    >>> parse_choice({"sentence_good": "She runs.", "sentence_bad": "She run."})
    Choice(prompt='', choices=('She runs.', 'She run.'), label=0)
    >>> parse_choice({"goal": "open a jar", "sol1": "twist", "sol2": "sing"}, 0).choices
    ('twist', 'sing')
    """
    right: Any = label
    if {"goal", "sol1", "sol2"} <= row.keys():
        prompt, choices = row["goal"], [row["sol1"], row["sol2"]]
    elif {"sentence_good", "sentence_bad"} <= row.keys():
        prompt, choices, right = "", [row["sentence_good"], row["sentence_bad"]], 0
    elif isinstance(row.get("mc1_targets"), Mapping):
        targets = row["mc1_targets"]
        listed = {"choices", "labels"} <= targets.keys()
        choices = list(targets["choices"] if listed else targets)
        marks = list(targets["labels"] if listed else targets.values())
        if marks.count(1) != 1 or len(marks) != len(choices):
            raise Problem("labels", "mc1_targets must mark exactly one choice with 1")
        prompt, right = row.get("question", ""), marks.index(1)
    elif "choices" in row:
        prompt, choices = row.get("prompt", row.get("question", "")), row["choices"]
        letters = choices.get("label") if isinstance(choices, Mapping) else None
        choices = choices.get("text", []) if isinstance(choices, Mapping) else choices
        if right is None and isinstance(letters, list) and "answerKey" in row:
            if row["answerKey"] not in letters:
                raise Problem("label", "answerKey must be one of the choices' labels")
            right = letters.index(row["answerKey"])
    else:
        raise Problem("fields", "it has no choices. Give goal, sol1 and sol2, or sentence_good, or choices")
    if right is None:
        right = row.get("label", row.get("answer"))
    texts = [prompt, *choices] if isinstance(choices, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise Problem("types", "the prompt and every choice must be a string")
    if isinstance(right, str) and right.strip().isdecimal():
        right = int(right)
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
        raise Problem("label", f"the label must be the number of a choice, from 0 to {len(choices) - 1}")
    if len(choices) < 2 or not all(choices):
        raise Problem("choices", "it needs two choices or more, none of them empty")
    return Choice(prompt, tuple(choices), right)


def multiple_choice(
    name: str, model: Model, params: Any, tokenizer: Any, items: Sequence[Choice], *, template: str = TEMPLATE
) -> list[Outcome]:
    """Measures the accuracy of argmax_k log π(choice_k | prompt), and of the same per byte of the choice.

    Prompt and choices are one prompt tree; a space separates the prompt and a choice. Whole texts (no prompt) follow
    the BOS token, or EOS if the tokenizer has no BOS. As in Gao et al., lm-evaluation-harness (``acc``, ``acc_norm``).

    Args:
        name: name of the task.
        model: a language model.
        params: its parameters.
        tokenizer: its tokenizer.
        items: the items.
        template: text around ``{prompt}``.

    Returns:
        ``name/accuracy``, ``name/accuracy_per_byte``, and ``name/brier``: Σ_k (p_k - y_k)² of the normalised
        probabilities of the choices, 0 at best (Brier 1950,
        https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2).

    Raises:
        UserError: for a template without ``{prompt}``, or an item that is too long.
    """
    trees = choice_trees(tokenizer, items, template)
    logps = tree_logps(model, params, trees)
    sizes = [np.array([len(text.encode()) for text in item.choices]) for item in items]
    right, per_byte, brier = [], [], []
    for values, size, item in zip(logps, sizes, items, strict=True):
        right.append(int(np.argmax(values)) == item.label)
        per_byte.append(int(np.argmax(values / size)) == item.label)
        brier.append(brier_score(values, item.label))
    return [
        Outcome.mean(f"{name}/accuracy", right, share=True),
        Outcome.mean(f"{name}/accuracy_per_byte", per_byte, share=True),
        Outcome.mean(f"{name}/brier", brier, good="less"),
    ]


def brier_score(logps: np.ndarray, label: int) -> float:
    """Returns Σ_k (p_k - y_k)² of the choices' log-probabilities ``[K]``, normalised over the choices."""
    shares = np.exp(logps - np.logaddexp.reduce(logps))
    return float(np.sum((shares - np.eye(len(shares))[label]) ** 2))


def check_template(template: str) -> None:
    """Raises UserError for a template without ``{prompt}``."""
    if "{prompt}" not in template:
        raise UserError(f"template {template!r} does not contain {{prompt}}. Write {{prompt}} where the prompt goes.")


def choice_trees(tokenizer: Any, items: Sequence[Choice], template: str = TEMPLATE) -> list[Tree]:
    """Returns the items as prompt trees, whose completions are the choices."""
    check_template(template)
    encoder = Encoder(tokenizer)
    opening = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    trees = []
    for item in items:
        question = template.replace("{prompt}", item.prompt)
        prompt = encoder.document(question) if item.prompt else encoder.bos or [opening]
        space = " " if item.prompt else ""
        trees.append(Tree.of(prompt, [encoder.continuation(space + text) for text in item.choices]))
    return trees
