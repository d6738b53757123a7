"""Stubs for TRL's trainers and models, enough to call their loss methods unbound; and small helpers of the checks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import torch

T = 3
SELF = SimpleNamespace(training=False)  # a model in evaluation mode: TRL then divides by no accumulation steps


def same(x, **_):
    return x


ACCELERATOR = SimpleNamespace(
    device="cpu", gather=same, gather_for_metrics=same, reduce=same, num_processes=1, parallelism_config=None
)


def stub(**attributes) -> SimpleNamespace:
    common = {
        "model": SELF,
        "accelerator": ACCELERATOR,
        "aux_loss_enabled": False,
        "_metrics": {"eval": defaultdict(list)},
        "_total_train_tokens": 0,
    }
    return SimpleNamespace(**(common | attributes))


def outputs_of(log_probs, mask, log_sum_sq_probs=None):
    """What TRL's fused head returns: zeros on ignored positions."""
    zeros = torch.zeros_like(log_probs)
    return SimpleNamespace(
        log_probs=log_probs * mask,
        label_mask=mask,
        log_sum_sq_probs=log_sum_sq_probs,
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros > 0,
    )


def with_prompt_column(mask):
    return torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1).long()


def mean_of(loss: Callable) -> Callable:
    return lambda *args: jnp.mean(loss(*args))


def logits_batches(vocab_size=11) -> list[tuple]:
    rng = np.random.default_rng(3)
    made = []
    for scale in [0.1, 1.0, 10.0] * 3:
        mask = rng.random((4, T)) < 0.7
        mask[:, 0] = True
        logits = rng.normal(size=(4, T, vocab_size)) * scale
        made.append((logits, rng.integers(0, vocab_size, size=(4, T)), mask))
    return made
