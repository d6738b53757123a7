"""Preference losses against TRL 1.16's own methods."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import torch
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.experimental.tpo.tpo_trainer import TPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer

from jaxalign import losses
from jaxalign.logprobs import token_logps
from tests.parity.loss_checks import Check, against_torch
from tests.parity.trl_stubs import T, logits_batches, mean_of, outputs_of, stub, with_prompt_column

# Preference pairs: logps [2, B, T] (chosen, rejected), mask and log Σ p² of the same shape, ref_logps [2, B].


def dpo_trainer(logps, ref_logps, mask, log_sum_sq, *, loss_types, weights=(1.0,), **attributes):
    defaults = {
        "beta": 0.1, "label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.3,
        "ld_alpha": None, "use_weighting": False, "precompute_ref_logps": True,
        "args": SimpleNamespace(discopop_tau=0.05),
    }  # fmt: skip
    flat = mask.reshape(-1, T).to(logps.dtype)
    completion_mask = with_prompt_column(flat)
    inputs = {
        "input_ids": torch.zeros_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
        "ref_chosen_logps": ref_logps[0],
        "ref_rejected_logps": ref_logps[1],
    }
    output = outputs_of(logps.reshape(-1, T), flat, log_sum_sq.reshape(-1, T))
    trainer = stub(**(defaults | attributes), loss_types=loss_types, loss_weights=weights)
    return DPOTrainer._compute_loss(trainer, lambda **_: output, inputs, False)


def pairs(batch: int, seed: int = 0) -> list[tuple]:
    """Random batches of pairs, and extreme ones whose log-ratios are ±1e3."""
    rng = np.random.default_rng(seed)
    made = []
    for scale in [0.1, 1.0, 10.0] * 4 + [(a, b) for a in (-1e3, 1e3) for b in (-1e3, 1e3)]:
        logps = -np.abs(rng.normal(size=(2, batch, T))) * (1.0 if isinstance(scale, tuple) else scale)
        mask = rng.random((2, batch, T)) < 0.7
        mask[..., 0] = True
        summed = (logps * mask).sum(-1)
        if isinstance(scale, tuple):
            reference = summed - np.array(scale)[:, None] * rng.uniform(0.9, 1, size=(2, batch))
        else:
            reference = summed + rng.normal(size=(2, batch)) * scale
        made.append((logps, reference, mask, -rng.exponential(size=logps.shape)))
    return made


def by_sums(loss: Callable, **options) -> Callable:
    def ours(logps, ref_logps, mask, log_sum_sq):
        chosen, rejected = losses.sum_logps(logps, mask)
        return jnp.mean(loss(chosen, rejected, *ref_logps, **options))

    return ours


def by_averages(loss: Callable, **options) -> Callable:
    def ours(logps, ref_logps, mask, log_sum_sq):
        chosen, rejected = losses.average_logps(logps, mask)
        return jnp.mean(loss(chosen, rejected, *(ref_logps / jnp.sum(mask, -1)), **options))

    return ours


def ld_dpo(logps, ref_logps, mask, log_sum_sq):
    shared = jnp.min(jnp.sum(mask, -1), axis=0)
    sums = losses.ld_logps(logps, mask, jnp.broadcast_to(shared, mask.shape[:-1]), alpha=0.4)
    return jnp.mean(losses.dpo(*sums, *ref_logps, beta=0.1))


def wpo(logps, ref_logps, mask, log_sum_sq):
    weights = losses.wpo_weights(logps, mask, log_sum_sq)
    return jnp.mean(losses.dpo(*losses.sum_logps(logps, mask), *ref_logps, beta=0.1) * weights[0] * weights[1])


def mpo(logps, ref_logps, mask, log_sum_sq):
    pair = (*losses.sum_logps(logps, mask), *ref_logps)
    preference, quality = losses.dpo(*pair, beta=0.1), losses.bco_pair(*pair, beta=0.1)
    generation = losses.token_mean(losses.nll(logps[0]), mask[0])
    return jnp.mean(0.8 * preference + 0.2 * quality) + generation


def dpo_check(name, ours, loss_type, batch=1, dtype="float64", tolerance=1e-6, **attributes) -> Check:
    types = loss_type if isinstance(loss_type, tuple) else (loss_type,)
    expected = functools.partial(dpo_trainer, loss_types=types, **attributes)
    words = [f"`{' + '.join(types)}`"]
    words += [f"`{name}`" for name in attributes if name not in ("label_smoothing", "f_divergence_type")]
    words += [f"`{attributes['f_divergence_type']}`"] if "f_divergence_type" in attributes else []
    words += [dtype] if dtype != "float64" else []
    label = ", ".join(["`DPOTrainer._compute_loss`", *words])
    return Check(name, label, lambda: against_torch(ours, expected, pairs(batch), dtype=dtype), tolerance)


def divergence_check(name, divergence, expected, **options) -> Check:
    ours = by_sums(losses.dpo, beta=0.1, divergence=divergence)
    return dpo_check(f"`dpo` with `{name}`", ours, "sigmoid", f_divergence_type=expected, **options)


smooth = {"label_smoothing": 0.2}
alpha = functools.partial(losses.alpha_divergence, alpha=0.3)  # not ½, which α and 1 - α would share
PAIRWISE = [
    dpo_check("`dpo`", by_sums(losses.dpo, beta=0.1), "sigmoid"),
    dpo_check("`robust_dpo`", by_sums(losses.robust_dpo, beta=0.1, **smooth), "robust", **smooth),
    dpo_check("`ipo`", by_averages(losses.ipo, beta=0.1), "ipo"),
    dpo_check("`hinge`", by_sums(losses.hinge, beta=0.1), "hinge"),
    dpo_check("`exo_pair`", by_sums(losses.exo_pair, beta=0.1, **smooth), "exo_pair", **smooth),
    dpo_check("`nca_pair`", by_sums(losses.nca_pair, beta=0.1), "nca_pair"),
    dpo_check("`bco_pair`", by_sums(losses.bco_pair, beta=0.1), "bco_pair"),
    dpo_check("`sppo_hard`", by_sums(losses.sppo_hard, beta=0.1), "sppo_hard"),
    dpo_check("`aot`", by_sums(losses.aot, beta=0.1, **smooth), "aot", batch=5, **smooth),
    dpo_check("`aot_unpaired`", by_sums(losses.aot_unpaired, beta=0.1, **smooth), "aot_unpaired", batch=5, **smooth),
    dpo_check("`apo_zero`", by_sums(losses.apo_zero, beta=0.1), "apo_zero"),
    dpo_check("`apo_down`", by_sums(losses.apo_down, beta=0.1), "apo_down"),
    dpo_check("`discopop`", by_sums(losses.discopop, beta=0.1), "discopop"),
    dpo_check("`dpo` on `average_logps`", by_averages(losses.dpo, beta=0.1), "sigmoid_norm"),
    divergence_check("forward_kl", losses.forward_kl, "forward_kl"),
    divergence_check("jensen_shannon", losses.jensen_shannon, "js_divergence"),
    divergence_check("alpha_divergence", alpha, "alpha_divergence", dtype="float32", tolerance=1e-4),
    dpo_check("`dpo` on `ld_logps` (LD-DPO)", ld_dpo, "sigmoid", ld_alpha=0.4),
    dpo_check("`dpo` × `wpo_weights` (WPO)", wpo, "sigmoid", use_weighting=True),
    dpo_check("0.8 `dpo` + 0.2 `bco_pair` + `nll` (MPO)", mpo, ("sigmoid", "bco_pair", "sft"), weights=(0.8, 0.2, 1.0)),
]


# KTO: logps, ref_logps, kl_logps, ref_kl_logps [B], desirable [B].


def kto_trainer(logps, ref_logps, desirable, kl_logps, ref_kl_logps, *, loss_type):
    mask = torch.ones_like(logps)[:, None]
    completion_mask = with_prompt_column(mask)
    batch = {
        "label": desirable,
        "input_ids": torch.zeros_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
        "ref_logps": ref_logps,
        "ref_KL_logps": ref_kl_logps,
    }
    trainer = stub(
        beta=0.1, loss_type=loss_type, desirable_weight=1.5, undesirable_weight=0.5, precompute_ref_logps=True,
        calculate_KL=loss_type == "kto", _compute_kl_logps=lambda model, batch: kl_logps,
    )  # fmt: skip
    return KTOTrainer._compute_loss(trainer, lambda **_: outputs_of(logps[:, None], mask), batch, False)


def kto(logps, ref_logps, desirable, kl_logps, ref_kl_logps):
    kl = losses.kto_kl(kl_logps, ref_kl_logps)
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    return jnp.mean(losses.kto(logps, ref_logps, desirable, kl, beta=0.1, **weights))


def apo_zero_unpaired(logps, ref_logps, desirable, kl_logps, ref_kl_logps):
    loss = losses.apo_zero_unpaired(logps, ref_logps, desirable, beta=0.1)
    return jnp.mean(jnp.where(desirable, 1.5, 0.5) * loss)


def labelled() -> list[tuple]:
    rng = np.random.default_rng(1)
    made = []
    for scale in [0.1, 1.0, 10.0, 1e3] * 4:
        logps, kl_logps = -np.abs(rng.normal(size=(2, 6))) * scale
        noise = rng.normal(size=(2, 6)) * scale
        made.append((logps, logps + noise[0], rng.random(6) < 0.5, kl_logps, kl_logps + noise[1]))
    return made


def kto_check(name, ours, loss_type) -> Check:
    expected = functools.partial(kto_trainer, loss_type=loss_type)
    against = f"`KTOTrainer._compute_loss`, `{loss_type}`"
    return Check(name, against, lambda: against_torch(ours, expected, labelled()))


UNPAIRED = [
    kto_check("`kto` with `kto_kl`", kto, "kto"),
    kto_check("`apo_zero_unpaired`", apo_zero_unpaired, "apo_zero_unpaired"),
]


# Without a reference: chosen and rejected log-probs [B].


def free(scales=(0.1, 1.0, 10.0, 1e3)) -> list[tuple]:
    rng = np.random.default_rng(2)
    return [tuple(-np.abs(rng.normal(size=(2, 6))) * scale - 1e-3) for scale in scales for _ in range(4)]


def without_reference(loss: Callable) -> Callable:
    return mean_of(lambda chosen, rejected: loss(chosen, rejected, 0 * chosen, 0 * rejected, beta=2.0))


def cpo_trainer(chosen, rejected, *, loss_type="sigmoid", alpha=0.0, label_smoothing=0.2):
    trainer = stub(beta=2.0, simpo_gamma=0.5, loss_type=loss_type, alpha=alpha, label_smoothing=label_smoothing)
    return CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].mean()


def orpo_trainer(chosen, rejected):
    return -ORPOTrainer.odds_ratio_loss(stub(beta=1.0), chosen, rejected)[0].mean()


def tpo_trainer(logits, targets, mask, *, loss_type):
    completion_mask = with_prompt_column(mask.to(logits.dtype))
    inputs = {
        "input_ids": torch.cat([torch.zeros_like(targets[:, :1]), targets], 1),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
    }
    padded = torch.cat([logits, torch.zeros_like(logits[:, :1])], 1)
    trainer = stub(tpo_alpha=0.0, loss_type=loss_type, beta=2.0, label_smoothing=0.2, tpo_l_gamma=0.5)
    return TPOTrainer._compute_loss(trainer, lambda **_: SimpleNamespace(logits=padded), inputs, False)


def tpo(logits, targets, mask, *, loss, reduce):
    chosen, rejected = reduce(token_logps(logits, targets), mask).reshape(2, -1)
    return jnp.mean(loss(chosen, rejected))


def free_check(name, ours, expected, against, batches=free, **options) -> Check:
    return Check(name, against, lambda: against_torch(ours, expected, batches(), 2, **{"dtype": "float64"} | options))


simpo = functools.partial(losses.simpo, beta=2.0, gamma=0.5, **smooth)
cpo = functools.partial(losses.cpo, beta=2.0, **smooth)
alpha_po = functools.partial(losses.alpha_po, beta=2.0, gamma=0.5, alpha=0.25, **smooth)


REFERENCE_FREE = [
    free_check(
        "`simpo`",
        mean_of(simpo),
        functools.partial(cpo_trainer, loss_type="simpo"),
        "`CPOTrainer.cpo_loss`, `simpo`",
    ),
    free_check("`cpo`", mean_of(cpo), cpo_trainer, "`CPOTrainer.cpo_loss`, `sigmoid`"),
    *(
        free_check(
            f"`{loss.__name__}` with reference 0",
            without_reference(loss),
            functools.partial(cpo_trainer, loss_type=loss.__name__, label_smoothing=0.0),
            f"`CPOTrainer.cpo_loss`, `{loss.__name__}`",
        )
        for loss in (losses.hinge, losses.ipo)
    ),
    free_check(
        "`alpha_po`",
        mean_of(alpha_po),
        functools.partial(cpo_trainer, loss_type="simpo", alpha=0.25),
        "`CPOTrainer.cpo_loss`, `simpo`, `alpha`",
        functools.partial(free, (0.1, 1.0, 10.0)),
    ),
    Check(
        "`orpo`",
        "`ORPOTrainer.odds_ratio_loss`, float32 inside",
        lambda: against_torch(mean_of(losses.orpo), orpo_trainer, free(), 2, "float32"),
        1e-4,
    ),
    Check(
        "`cpo` on `token_logps`",
        "`TPOTrainer._compute_loss`, `sigmoid`",
        lambda: against_torch(
            lambda *args: tpo(*args, loss=cpo, reduce=losses.sum_logps),
            functools.partial(tpo_trainer, loss_type="sigmoid"),
            logits_batches(),
        ),
    ),
    Check(
        "`simpo` on `token_logps`",
        "`TPOTrainer._compute_loss`, `tpo-l`",
        lambda: against_torch(
            lambda *args: tpo(*args, loss=simpo, reduce=losses.average_logps),
            functools.partial(tpo_trainer, loss_type="tpo-l"),
            logits_batches(),
        ),
    ),
]


# Reward models: scores of chosen and rejected, and a margin [B].


def reward_trainer(chosen, rejected, margin):
    trainer = stub(args=SimpleNamespace(center_rewards_coefficient=0.01))
    logits = torch.cat([chosen, rejected])[:, None]
    inputs = {"margin": margin, "attention_mask": None}
    return RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), inputs)


def reward(chosen, rejected, margin):
    loss = losses.bradley_terry(chosen, rejected, margin=margin) + 0.01 * losses.reward_centering(chosen, rejected)
    return jnp.mean(loss)


def scores() -> list[tuple]:
    rng = np.random.default_rng(5)
    return [(*rng.normal(size=(2, 6)) * scale, rng.random(6)) for scale in (0.1, 1.0, 10.0, 1e3)]


REWARDS = [
    Check(
        "`bradley_terry` + c `reward_centering`",
        "`RewardTrainer.compute_loss`",
        lambda: against_torch(reward, reward_trainer, scores(), 2),
    ),
]

CHECKS = [*PAIRWISE, *UNPAIRED, *REFERENCE_FREE, *REWARDS]
