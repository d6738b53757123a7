"""Policy-gradient, supervised and distillation losses against TRL 1.16's own methods."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import torch
from trl.experimental.a2po.a2po_trainer import A2POTrainer
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from jaxalign import losses
from jaxalign.logprobs import fused_token_statistics, kl_estimate, token_entropy, token_logps
from tests.parity.loss_checks import Check, against_torch
from tests.parity.trl_stubs import SELF, T, logits_batches, mean_of, outputs_of, stub

# Policy gradients: logps, old_logps [B, T], advantages [B], mask [B, T], ref_logps [B, T].


def grpo_trainer(logps, old_logps, advantages, mask, ref_logps, *, trainer=GRPOTrainer, level="token", **attributes):
    args = {
        "delta": None, "use_bias_correction_kl": False, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0,
    }  # fmt: skip
    defaults = {
        "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "importance_sampling_level": level, "beta": 0.0,
        "loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.3, "use_vllm": False, "max_completion_length": 7,
        "_entropy_bonus_enabled": False,
    }  # fmt: skip
    args |= {name: attributes.pop(name) for name in list(attributes) if name in args}
    whole = mask.to(logps.dtype)
    inputs = {
        "prompt_ids": torch.zeros(len(logps), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(logps), 1, dtype=torch.long),
        "completion_ids": torch.zeros(logps.shape, dtype=torch.long),
        "completion_mask": whole,
        "advantages": advantages,
        "old_per_token_logps": old_logps,
        "old_logps": (old_logps * whole).sum(1),
        "ref_per_token_logps": ref_logps,
        "num_items_in_batch": whole.sum(),
    }
    self = stub(
        **(defaults | attributes),
        args=SimpleNamespace(**args),
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
    )
    return trainer._compute_loss(self, SELF, inputs)


def policies(extreme: float = 500.0) -> list[tuple]:
    """Random batches, and extreme ones whose log-ratios are ±500."""
    rng = np.random.default_rng(4)
    made = []
    for scale in [0.01, 0.1, 1.0, 10.0] * 4 + [extreme, -extreme]:
        mask = rng.random((5, T)) < 0.7
        mask[:, 0] = True
        old_logps = -rng.exponential(size=(5, T))
        shift = rng.normal(size=(5, T)) * scale if abs(scale) < extreme else np.full((5, T), scale)
        ref_logps = old_logps + rng.normal(size=(5, T)) * min(abs(scale), 10)
        made.append((old_logps + shift, old_logps, rng.normal(size=5), mask, ref_logps))
    return made


def by_tokens(loss: Callable, reduction: Callable, **options) -> Callable:
    def ours(logps, old_logps, advantages, mask, ref_logps):
        per_token = loss(logps, old_logps, jnp.broadcast_to(advantages[:, None], logps.shape), **options)
        return reduction(per_token, mask)

    return ours


def by_sequences(loss: Callable, **options) -> Callable:
    return lambda logps, old, advantages, mask, ref: jnp.mean(loss(logps, old, advantages, mask, **options))


def vespo(logps, old_logps, advantages, mask, ref_logps):
    return losses.token_mean(losses.vespo(logps, old_logps, advantages, mask), mask)


def rloo(logps, old_logps, advantages, mask, ref_logps):
    sums = losses.sum_logps(logps, mask), losses.sum_logps(old_logps, mask)
    return jnp.mean(losses.ppo_clip(*sums, advantages, **bounds))


def with_kl(logps, old_logps, advantages, mask, ref_logps):
    per_token = losses.ppo_clip(logps, old_logps, jnp.broadcast_to(advantages[:, None], logps.shape), **bounds)
    return losses.sequence_mean(per_token + 0.04 * kl_estimate(logps, ref_logps, estimator="k3"), mask)


def off_policy(logps, old_logps, advantages, mask, ref_logps):
    per_token = losses.ppo_clip(logps, old_logps, jnp.broadcast_to(advantages[:, None], logps.shape), **bounds)
    keep = losses.off_policy_mask(logps, old_logps, advantages, mask, max_kl=0.05)
    return losses.sequence_mean(per_token * keep[:, None], mask)


def policy_check(name, ours, against, batches=policies, **options) -> Check:
    expected = functools.partial(grpo_trainer, **options)
    return Check(name, against, lambda: against_torch(ours, expected, batches()))


bounds = {"clip_low": 0.2, "clip_high": 0.3}


def ppo_check(reduction: Callable, loss_type: str) -> Check:
    name = getattr(reduction, "func", reduction).__name__
    ours = by_tokens(losses.ppo_clip, reduction, **bounds)
    return policy_check(f"`ppo_clip`, `{name}`", ours, GRPO + f"`{loss_type}`", loss_type=loss_type)


GRPO = "`GRPOTrainer._compute_loss`, "
dual_clip = by_tokens(losses.dual_clip, losses.sequence_mean, max_ratio=3.0, **bounds)
cispo = by_tokens(losses.cispo, losses.token_mean, max_ratio=5.0)
gmpo = by_sequences(losses.gmpo, clip=0.4)
log_bounds = {"epsilon_low": 0.4, "epsilon_high": 0.4}
threshold = {"off_policy_mask_threshold": 0.05}
POLICY = [
    ppo_check(losses.sequence_mean, "grpo"),
    ppo_check(losses.token_mean, "bnpo"),
    ppo_check(losses.token_mean, "dapo"),
    ppo_check(functools.partial(losses.fixed_length_mean, length=7), "dr_grpo"),
    ppo_check(losses.sequence_sum, "luspo"),
    policy_check("`ppo_clip` of sequences (RLOO)", rloo, "`RLOOTrainer._compute_loss`", trainer=RLOOTrainer),
    policy_check("`ppo_clip` + β `kl_estimate`, `k3`", with_kl, GRPO + "`grpo`, `beta`", beta=0.04),
    policy_check("`ppo_clip` × `off_policy_mask`", off_policy, GRPO + "`off_policy_mask_threshold`", **threshold),
    policy_check("`dual_clip`", dual_clip, GRPO + "`grpo`, `delta`", delta=3.0),
    policy_check("`gspo`", by_sequences(losses.gspo, **bounds), GRPO + "`sequence` level", level="sequence"),
    policy_check("`gmpo`", gmpo, "`GMPOTrainer._compute_loss`", trainer=GMPOTrainer, **log_bounds),
    policy_check("`cispo`", cispo, GRPO + "`cispo`", loss_type="cispo", epsilon_high=5.0),
    policy_check("`sapo`", by_tokens(losses.sapo, losses.sequence_mean), GRPO + "`sapo`", loss_type="sapo"),
    policy_check("`vespo`", vespo, GRPO + "`vespo`", loss_type="vespo"),
]


# Supervised, distillation, statistics of tokens.


def sft_trainer(logps, mask, *, loss_type):
    trainer = stub(
        args=SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=False),
        compute_loss_func=None,
        label_smoother=None,
    )
    output = outputs_of(logps, mask.to(logps.dtype))
    return SFTTrainer.compute_loss(trainer, lambda **_: output, {"attention_mask": mask, "labels": None})


def tokens() -> list[tuple]:
    return [(logps, mask) for logps, _, _, mask, _ in policies()]


def gkd_trainer(student, teacher, *, beta):
    return (
        GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=1.5, reduction="none").sum(-1).mean()
    )


def distributions() -> list[tuple]:
    rng = np.random.default_rng(6)
    return [tuple(rng.normal(size=(2, 4, 9)) * scale) for scale in (0.1, 1.0, 10.0) for _ in range(3)]


def gkd_check(name, loss, beta) -> Check:
    ours, expected = mean_of(functools.partial(loss, temperature=1.5)), functools.partial(gkd_trainer, beta=beta)
    against = f"`GKDTrainer.generalized_jsd_loss`, `beta={beta}`"
    return Check(name, against, lambda: against_torch(ours, expected, distributions()))


def a2po_trainer(logps, ref_logps, rewards, v_star):
    trainer = stub(args=SimpleNamespace(beta2=0.1), _get_sequence_logps=lambda *_: logps)
    inputs = {"input_ids": None, "attention_mask": None, "logits_to_keep": None}
    inputs |= {"ref_logps": ref_logps, "rewards": rewards, "v_star": v_star}
    return A2POTrainer.compute_loss(trainer, SELF, inputs)


def completions() -> list[tuple]:
    rng = np.random.default_rng(7)
    return [tuple(rng.normal(size=(4, 6)) * scale) for scale in (0.1, 1.0, 10.0, 1e3)]


def through_head(statistic: Callable) -> Callable:
    """A statistic of the fused head on the identity, whose logits are its inputs."""

    def ours(logits, targets, mask):
        head = jnp.eye(logits.shape[-1], dtype=logits.dtype)
        return jnp.mean(statistic(fused_token_statistics(logits, head, targets, chunk_size=4)))

    return ours


def sft_check(name, loss) -> Check:
    expected = functools.partial(sft_trainer, loss_type=name)
    ours = lambda logps, mask: losses.token_mean(loss(logps), mask)  # noqa: E731
    return Check(f"`{name}`", f"`SFTTrainer.compute_loss`, `{name}`", lambda: against_torch(ours, expected, tokens()))


def statistic_check(name, ours, expected, against) -> Check:
    return Check(name, against, lambda: against_torch(ours, expected, logits_batches()))


def selected(logits, targets, mask):
    return selective_log_softmax(logits, targets).mean()


def entropies(logits, targets, mask):
    return entropy_from_logits(logits).mean()


REST = [
    sft_check("nll", losses.nll),
    sft_check("dft", losses.dft),
    gkd_check("`generalized_jsd`", functools.partial(losses.generalized_jsd, beta=0.3), 0.3),
    gkd_check("`distill_forward_kl`", losses.distill_forward_kl, 0),
    gkd_check("`distill_reverse_kl`", losses.distill_reverse_kl, 1),
    Check(
        "`a_star_po`",
        "`A2POTrainer.compute_loss`",
        lambda: against_torch(mean_of(functools.partial(losses.a_star_po, beta=0.1)), a2po_trainer, completions()),
    ),
    statistic_check(
        "`token_logps`", lambda z, t, m: jnp.mean(token_logps(z, t)), selected, "`trainer.utils.selective_log_softmax`"
    ),
    statistic_check(
        "`token_entropy`", lambda z, t, m: jnp.mean(token_entropy(z)), entropies, "`trainer.utils.entropy_from_logits`"
    ),
    statistic_check(
        "`fused_token_logps`", through_head(lambda s: s.logps), selected, "`trainer.utils.selective_log_softmax`"
    ),
    statistic_check(
        "`fused_token_statistics`, entropy",
        through_head(lambda s: s.entropy),
        entropies,
        "`trainer.utils.entropy_from_logits`",
    ),
]

CHECKS = [*POLICY, *REST]
