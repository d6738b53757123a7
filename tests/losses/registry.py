"""Every loss and advantage function with how to make its arguments: what the law tests run over."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxalign import advantages, losses

B, T, K, V = 4, 6, 3, 5  # examples, tokens, candidates, vocabulary


class Arg(NamedTuple):
    """An argument: what stands in it, its axes after the leading ones, and whether it is trained."""

    name: str
    kind: str
    axes: tuple[int, ...]
    trained: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A function with its hyper-parameters bound.

    Attributes:
      axes: of the result, after the leading ones.
      couples: the examples of the last axis are not independent.
      mask: name of the mask argument, whose last axis is time (or candidates).
    """

    fn: Callable
    options: dict
    args: tuple[Arg, ...]
    couples: bool = False
    mask: str | None = None

    @property
    def name(self) -> str:
        extra = [f"{k}={getattr(v, '__name__', v)}" for k, v in self.options.items() if k not in ("beta", "gamma")]
        return "-".join([self.fn.__name__, *extra])

    @functools.cached_property
    def call(self) -> Callable:
        """The function of its arguments alone, in order."""
        return functools.partial(self.fn, **self.options)

    @property
    def trained(self) -> tuple[int, ...]:
        return tuple(i for i, arg in enumerate(self.args) if arg.trained)

    def make(
        self, seed: int, lead: tuple[int, ...] = (), scale: float = 1.0, dtype: type = np.float64
    ) -> list[np.ndarray]:
        """Random arguments with the given leading axes; ``scale`` stretches log-probabilities."""
        rng = np.random.default_rng(seed)
        made = [_make(rng, arg, lead, scale) for arg in self.args]
        return [x.astype(dtype) if x.dtype == np.float64 else x for x in made]


def _make(rng: np.random.Generator, arg: Arg, lead: tuple[int, ...], scale: float) -> np.ndarray:
    shape = () if arg.kind == "scalar" else lead + arg.axes
    if arg.kind == "logps":
        return -np.abs(rng.normal(size=shape)) * scale
    if arg.kind == "avg_logps":
        return -rng.exponential(size=shape) * scale - 1e-3
    if arg.kind in ("real", "scalar"):
        return rng.normal(size=shape)
    if arg.kind == "bool":
        return rng.random(shape) < 0.6
    if arg.kind == "length":
        return rng.integers(0, T + 1, size=shape)
    raise AssertionError(arg.kind)


def _args(kind: str, axes: tuple[int, ...], trained: str, constant: str = "") -> tuple[Arg, ...]:
    return tuple(Arg(n, kind, axes, True) for n in trained.split()) + tuple(
        Arg(n, kind, axes) for n in constant.split()
    )


PAIR = _args(
    "logps", (B,), "policy_chosen_logps policy_rejected_logps", "reference_chosen_logps reference_rejected_logps"
)
AVERAGES = _args("avg_logps", (B,), "policy_chosen_avg_logps policy_rejected_avg_logps")
LABELLED = (*_args("logps", (B,), "policy_logps", "reference_logps"), Arg("desirable", "bool", (B,)))
TOKENS = (*_args("logps", (B, T), "logps", "old_logps"), Arg("advantages", "real", (B, T)))
SEQUENCES = (*TOKENS[:2], Arg("advantages", "real", (B,)), Arg("mask", "bool", (B, T)))
MASKED = (TOKENS[0], Arg("mask", "bool", (B, T)))
LOGITS = (Arg("student_logits", "real", (B, V), True), Arg("teacher_logits", "real", (B, V)))
alpha = functools.partial(losses.alpha_divergence, alpha=0.3)
alpha.__name__ = "alpha"  # type: ignore[attr-defined]

CASES = [
    Case(losses.dpo, {"beta": 0.1}, PAIR),
    Case(losses.dpo, {"beta": 0.1, "label_smoothing": 0.2}, PAIR),
    Case(losses.dpo, {"beta": 0.1, "divergence": losses.forward_kl}, PAIR),
    Case(losses.dpo, {"beta": 0.1, "divergence": losses.jensen_shannon}, PAIR),
    Case(losses.dpo, {"beta": 0.1, "divergence": alpha}, PAIR),
    Case(losses.robust_dpo, {"beta": 0.1, "label_smoothing": 0.2}, PAIR),
    Case(losses.ipo, {"beta": 0.1}, PAIR),
    Case(losses.hinge, {"beta": 0.1}, PAIR),
    Case(losses.exo_pair, {"beta": 0.1, "label_smoothing": 0.2}, PAIR),
    Case(losses.nca_pair, {"beta": 0.1}, PAIR),
    Case(losses.bco_pair, {"beta": 0.1, "delta": 0.3}, PAIR),
    Case(losses.sppo_hard, {"beta": 0.1}, PAIR),
    Case(losses.aot, {"beta": 0.1, "label_smoothing": 0.2}, PAIR, couples=True),
    Case(losses.aot_unpaired, {"beta": 0.1}, PAIR, couples=True),
    Case(losses.apo_zero, {"beta": 0.1}, PAIR),
    Case(losses.apo_down, {"beta": 0.1}, PAIR),
    Case(losses.discopop, {"beta": 0.1}, PAIR),
    Case(losses.simpo, {"beta": 2.0, "gamma": 0.5}, AVERAGES),
    Case(losses.alpha_po, {"beta": 2.0, "gamma": 0.5, "alpha": 0.25}, AVERAGES),
    Case(losses.simper, {}, AVERAGES),
    Case(losses.cpo, {"beta": 0.1}, PAIR[:2]),
    Case(losses.orpo, {}, AVERAGES),
    Case(
        losses.kto,
        {"beta": 0.1, "desirable_weight": 1.5, "undesirable_weight": 0.5},
        (*LABELLED, Arg("kl", "scalar", ())),
    ),
    Case(losses.kto_kl, {}, _args("logps", (B,), "", "policy_kl_logps reference_kl_logps"), couples=True),
    Case(losses.apo_zero_unpaired, {"beta": 0.1}, LABELLED),
    Case(losses.bco, {"beta": 0.1}, (*LABELLED, Arg("delta", "scalar", ()))),
    Case(losses.bradley_terry, {"margin": 0.5}, _args("real", (B,), "chosen_rewards rejected_rewards")),
    Case(losses.reward_centering, {}, _args("real", (B,), "chosen_rewards rejected_rewards")),
    Case(losses.plackett_luce, {}, (Arg("rewards", "real", (B, K), True),)),
    Case(losses.plackett_luce, {}, (Arg("rewards", "real", (B, K), True), Arg("mask", "bool", (B, K))), mask="mask"),
    Case(losses.reinforce, {}, (TOKENS[0], TOKENS[2])),
    Case(losses.ppo_clip, {"clip_low": 0.2, "clip_high": 0.3}, TOKENS),
    Case(losses.dual_clip, {"max_ratio": 3.0}, TOKENS),
    Case(losses.value_clip, {"clip": 0.2}, _args("real", (B, T), "values", "old_values returns")),
    Case(losses.cispo, {"max_ratio": 5.0}, TOKENS),
    Case(losses.sapo, {}, TOKENS),
    Case(losses.gspo, {"clip_low": 0.2, "clip_high": 0.3}, SEQUENCES, mask="mask"),
    Case(losses.gmpo, {"clip": 0.4}, SEQUENCES, mask="mask"),
    Case(losses.vespo, {}, SEQUENCES, mask="mask"),
    Case(
        losses.a_star_po,
        {"beta": 0.1},
        (*_args("logps", (B,), "logps", "ref_logps"), *_args("real", (B,), "", "rewards optimal_values")),
    ),
    Case(losses.optimal_value, {"beta": 0.5}, (Arg("rewards", "real", (B, K), True),)),
    Case(losses.nll, {}, TOKENS[:1]),
    Case(losses.dft, {}, TOKENS[:1]),
    Case(losses.distill_forward_kl, {"temperature": 2.0}, LOGITS),
    Case(losses.distill_reverse_kl, {}, LOGITS),
    Case(losses.generalized_jsd, {"beta": 0.3}, LOGITS),
    Case(losses.sum_logps, {}, MASKED, mask="mask"),
    Case(losses.average_logps, {}, MASKED, mask="mask"),
    Case(losses.ld_logps, {"alpha": 0.5}, (*MASKED, Arg("shared_length", "length", (B,))), mask="mask"),
    Case(losses.wpo_weights, {}, (Arg("logps", "logps", (B, T)), MASKED[1]), mask="mask"),
    Case(advantages.group_relative, {}, (Arg("rewards", "real", (B, K), True),)),
    Case(advantages.leave_one_out, {}, (Arg("rewards", "real", (B, K), True),)),
    Case(
        advantages.gae,
        {"gamma": 0.9, "lam": 0.8},
        (*_args("real", (B, T), "rewards values"), Arg("mask", "bool", (B, T))),
        mask="mask",
    ),
    Case(
        advantages.kl_shaped_rewards,
        {"beta": 0.1},
        (Arg("scores", "real", (B,)), TOKENS[0], Arg("ref_logps", "logps", (B, T)), Arg("mask", "bool", (B, T))),
        mask="mask",
    ),
]  # fmt: skip

PUBLIC = {
    name for name, value in vars(losses).items() if not (name.startswith("_") or inspect.ismodule(value))
}  # what `losses` exports

# Public names of `losses` that are not losses: links, divergences, reductions and controllers.
OTHERS = {
    "KLState", "adaptive_kl", "alpha_divergence", "best_of_n_kl", "fixed_kl", "fixed_length_mean",
    "fixed_length_mean_weights", "forward_kl", "jensen_shannon", "log_ratios", "logistic_link",
    "off_policy_mask", "reverse_kl", "sequence_mean", "sequence_mean_weights", "sequence_sum", "sequence_sum_weights",
    "token_mean", "token_mean_weights", "weighted_sum",
}  # fmt: skip
