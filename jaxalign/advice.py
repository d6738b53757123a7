"""Advice on a method: what a data set allows, what each method needs, and which method to start with."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from jaxalign.data.feedback import Signals
from jaxalign.data.files import Source, read_rows
from jaxalign.data.inspect import Inspection, inspect_data
from jaxalign.errors import UserError
from jaxalign.models import lora
from jaxalign.models.config import LoraConfig, ModelConfig
from jaxalign.models.model import Model
from jaxalign.rewards import final_number

# Below this number of examples, a warning is due: with 500, the 95 % interval of an accuracy is ± 4 points wide.
FEW = 500
# Above this share of pairs whose better answer is the longer one, a warning about length is due.
SKEWED = 0.7
# Bytes of a trained float32 parameter: the value, its gradient, and Adam's two moments.
TRAINED_BYTES = 16


class MethodCost(NamedTuple):
    """What a method keeps in memory, in models of the policy's size, and what it computes.

    Attributes:
        method: Its command.
        trained: Number of trained models.
        frozen: Number of frozen models.
        passes: Forward passes over every token of an example. A backward pass counts as two.
        steps: What the passes are.
    """

    method: str
    trained: int
    frozen: int
    passes: float
    steps: str


METHOD_COSTS = (
    MethodCost("sft", 1, 0, 3, "forward and backward"),
    MethodCost("reward", 1, 0, 3, "forward and backward"),
    MethodCost("dpo", 1, 0, 4, "reference once, stored; forward and backward"),
    MethodCost("kto", 1, 1, 6, "reference; policy and reference on mismatched answers; forward and backward"),
    MethodCost("grpo", 1, 1, 5, "sampling, reference; forward and backward; times the answers to a prompt"),
    MethodCost("online_dpo", 1, 2, 6, "sampling, reward, reference; forward and backward"),
    MethodCost("ppo", 1, 2, 10, "sampling, reward, reference, values; two epochs of forward and backward"),
)


class Need(NamedTuple):
    """Memory that a method's models need, without activations.

    Attributes:
        cost: The method.
        full_bytes: Bytes if all parameters are trained.
        lora_bytes: Bytes if adapters are trained.
    """

    cost: MethodCost
    full_bytes: float
    lora_bytes: float


@dataclasses.dataclass(frozen=True)
class Advice:
    """Which method to start with, and why.

    Attributes:
        inspection: Report on the data.
        verifiable: Whether rows contain answers that can be checked.
        parameters: Number of parameters of the model.
        memory: Bytes available.
        needs: Memory that each method needs.
        sentences: The advice. The first sentence names the method.
    """

    inspection: Inspection
    verifiable: bool
    parameters: int
    memory: float
    needs: Sequence[Need]
    sentences: Sequence[str]


def advise(
    source: Source,
    model: ModelConfig,
    *,
    judge: bool = False,
    memory: float | None = None,
    lora_rank: int = 16,
    columns: Mapping[str, str] | None = None,
    signals: Signals | None = None,
) -> Advice:
    """Recommends a method for a data set and a model.

    Args:
        source: Examples, as :func:`jaxalign.data.inspect.inspect_data` reads them.
        model: The model's configuration. Its weights are not needed.
        judge: Whether a judge clearly stronger than the model is available.
        memory: Memory of all devices together, in GiB. By default that of this machine.
        lora_rank: Rank of the adapters of the second estimate.
        columns: Names of fields in this source, as ``{"prompt": "question"}``.
        signals: Fields of a log that say whether an answer was liked.

    Returns:
        The report.

    Raises:
        UserError: If the source cannot be read, or the memory is unknown.
    """
    inspection = inspect_data(source, columns=columns, signals=signals)
    verifiable = has_numeric_answers(source)
    full = count_parameters(model)
    adapters = count_parameters(model, lora_rank) - full
    available = (memory or machine_memory()) * 2**30
    needs = [Need(cost, memory_bytes(cost, full), memory_bytes(cost, full, adapters)) for cost in METHOD_COSTS]
    ppo = next(need for need in needs if need.cost.method == "ppo")
    sentences = write_advice(inspection, verifiable=verifiable, judge=judge, ppo_fits=ppo.full_bytes <= available)
    return Advice(inspection, verifiable, full, available, needs, sentences)


def has_numeric_answers(source: Source) -> bool:
    """Returns whether each of the first 20 rows has a field ``answer`` that ends in a number.

    Such answers can be checked, so that they serve as a reward.

    >>> has_numeric_answers([{"prompt": "1 + 1?", "answer": "#### 2"}]), has_numeric_answers([{"prompt": "Why?"}])
    (True, False)
    """
    rows = itertools.islice(read_rows(source, streaming=True), 20)
    answers = [row.value.get("answer") if isinstance(row.value, dict) else None for row in rows]
    return bool(answers) and all(answer is not None and final_number(str(answer)) is not None for answer in answers)


def count_parameters(config: ModelConfig, rank: int | None = None) -> int:
    """Counts a model's parameters, those of adapters of a rank included."""
    model = Model(config)
    if rank is not None:
        model = dataclasses.replace(model, lora=LoraConfig(rank=rank, alpha=rank))
        lora.check_lora_config(model.lora)  # type: ignore[arg-type]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.param_shapes()))


def memory_bytes(cost: MethodCost, parameters: int, adapters: int | None = None) -> float:
    """Computes the bytes of a method's models.

    Args:
        cost: The method.
        parameters: Number of parameters of a model.
        adapters: Number of parameters of adapters; None trains all parameters. The adapters' base is also the
            reference model.

    >>> kto = MethodCost("kto", 1, 1, 6, "")
    >>> memory_bytes(kto, 100), memory_bytes(kto, 100, 2)
    (2000, 432)
    """
    trained, frozen = (parameters, cost.frozen) if adapters is None else (adapters, max(1, cost.frozen))
    return TRAINED_BYTES * cost.trained * trained + 4 * frozen * parameters


def write_advice(inspection: Inspection, *, verifiable: bool, judge: bool, ppo_fits: bool) -> list[str]:
    """Writes where to start, in sentences. The first one names the method.

    The rules are common practice: DPO for most (Rafailov et al. 2023, arXiv:2305.18290), PPO where exploration matters
    and its models fit (Xu et al. 2024, arXiv:2404.10719), KTO for binary signals (Ethayarajh et al. 2024,
    arXiv:2402.01306), AI labels where a clearly stronger judge exists (Lee et al. 2023, arXiv:2309.00267).

    Args:
        inspection: Report on the data.
        verifiable: Whether rows contain answers that can be checked.
        judge: Whether a stronger judge is available.
        ppo_fits: Whether PPO's models fit into memory if all parameters are trained.
    """
    kind, count = inspection.kind, len(inspection.records)
    sentences = _first_step(kind, verifiable, judge, "its models fit" if ppo_fits else "its models fit with LoRA only")
    if kind in ("preference", "unpaired", "ranking") and judge:
        sentences.append("A stronger judge can label more answers (jaxalign judge). Audit it on these labels first.")
    if kind == "sft" and judge:
        sentences.append("Then use the judge: jaxalign generate on the same prompts, jaxalign judge, jaxalign dpo.")
    if count < FEW:
        sentences.append(f"{count} examples are few: hold some out, and read the intervals.")
    longer = next((share for name, share in inspection.shares.items() if "longe" in name), 0.5)
    if longer > SKEWED:
        sentences.append(
            f"In {100 * longer:.0f} % of pairs the better answer is the longer one, so length may be learned. Watch "
            "the words per answer in jaxalign eval tax, or use the loss simpo, which averages log-probs."
        )
    liked = inspection.shares.get("liked", 0.5)
    if not 0.1 <= liked <= 0.9:
        sentences.append(f"{100 * liked:.0f} % of answers were liked: kto weighs both kinds to balance and reports it.")
    sentences.append("Whatever you train, measure what it cost: jaxalign eval tax --before … --after …")
    return sentences


def _first_step(kind: str, verifiable: bool, judge: bool, fit: str) -> list[str]:
    steps = {
        "preference": [
            "Start with jaxalign dpo: pairs are all it needs, and it holds one model.",
            f"If good answers lie outside the pairs, so that exploration matters: jaxalign reward, then ppo ({fit}).",
        ],
        "unpaired": ["Start with jaxalign kto: it learns from single answers that were liked or not."],
        "ranking": [
            "Start with jaxalign reward: it learns from rankings; its model then serves ppo, online_dpo or best-of-n.",
            f"For ppo, {fit}.",
        ],
        "checked": ["Start with jaxalign grpo and the reward number_match: rows contain answers to check."],
        "sft": ["Start with jaxalign sft: these are demonstrations, which do not say which of two answers is better."],
        "judged": ["Start with jaxalign judge on sampled answers, then dpo: there are prompts, and a stronger judge."],
        "prompt": [
            "These are prompts only: no method can know a good answer from a bad one yet. Collect pairs or thumbs, "
            "write a reward function (jaxalign grpo), or find a clearly stronger judge (jaxalign judge)."
        ],
    }
    if kind in ("sft", "prompt") and verifiable:
        return steps["checked"]
    return steps["judged" if kind == "prompt" and judge else kind]


def machine_memory() -> float:
    """Returns the memory of all local devices in GiB, or that of the host where devices report none.

    Raises:
        UserError: If neither is known.
    """
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    if all(limits):
        return sum(limits) / 2**30
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        raise UserError("The memory of this machine is unknown. Give memory in GiB.") from None
