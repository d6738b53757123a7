"""KTO from logits to loss and gradient against TRL's trainer, which runs a stub model on padded rows of the same texts.

The stub's logits are a table's row for each token (a bigram model), so that its gradient is all of the pass. TRL
estimates its baseline over what a rank has at a time: one rank with the whole batch, two ranks whose estimates it
gathers, and one rank that accumulates gradients, each microbatch with a baseline of its own.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
pytest.importorskip("trl", reason="TRL is only in the parity environment")

import torch
from trl.trainer.kto_trainer import KTOTrainer

from jaxalign.data.batches import evaluation_batches
from jaxalign.data.mismatched import Mismatched
from jaxalign.data.trees import Tree
from jaxalign.loop import gradients, place_batch
from jaxalign.losses.metrics import mean
from jaxalign.methods import kto
from jaxalign.models.sharding import make_mesh
from tests.methods.bigrams import Bigrams, tables
from tests.parity.loss_checks import relative_error
from tests.parity.trl_stubs import ACCELERATOR, stub

VOCABULARY, BETA, D, U = 13, 0.3, 1.5, 0.75


class TorchBigrams(torch.nn.Module):
    """The same with the interface of TRL's fused head."""

    is_gradient_checkpointing = False

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(table))
        self.eval()

    def forward(self, input_ids, labels, **_):
        logps = torch.log_softmax(self.table[input_ids[:, :-1]], -1)
        counted = labels[:, 1:] != -100
        taken = logps.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0] * counted
        return SimpleNamespace(
            log_probs=taken, entropy=torch.zeros_like(taken), mean_logits=torch.zeros_like(taken), label_mask=counted
        )


def examples(count, seed):
    random = np.random.default_rng(seed)
    text = lambda: random.integers(0, VOCABULARY, random.integers(1, 7)).tolist()  # noqa: E731
    trees = [Tree.of(text(), [text()], label=bool(random.random() < 0.4)) for _ in range(count)]
    source = Mismatched(evaluation_batches(trees, batch_size=count), trees, trees, seed)
    return trees, source, [source.mismatched_tree(0, i) for i in range(count)]


def padded(trees, prefix=""):
    width = max(map(len, trees))
    rows = {name: torch.zeros(len(trees), width, dtype=torch.long) for name in ("ids", "there", "completion")}
    for i, tree in enumerate(trees):
        text = [*tree.prompt.tolist(), *tree.completions[0].tolist()]
        rows["ids"][i, : len(text)] = torch.tensor(text)
        rows["there"][i, : len(text)] = 1
        rows["completion"][i, len(tree.prompt) : len(text)] = 1
    return {
        f"{prefix}input_ids": rows["ids"],
        f"{prefix}attention_mask": rows["there"],
        f"{prefix}completion_mask": rows["completion"],
    }


def trl_step(table, reference, trees, others, *, loss_type, kls=None):
    """(loss, gradient, kl) of one rank; ``kls``: what all ranks estimated, which the accelerator gathers first."""
    model, frozen = TorchBigrams(table), TorchBigrams(reference)
    gathered = []

    def gather(x):
        gathered.append(x)
        return torch.tensor(kls) if kls is not None and len(gathered) == 1 else x

    batch = {**padded(trees), **padded(others, "KL_")}
    batch["label"] = torch.tensor([bool(tree.extras["label"][0]) for tree in trees])
    trainer = stub(
        model=model, ref_model=frozen, beta=BETA, loss_type=loss_type, desirable_weight=D, undesirable_weight=U,
        precompute_ref_logps=False, calculate_KL=loss_type == "kto",
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        accelerator=SimpleNamespace(**{**vars(ACCELERATOR), "gather_for_metrics": gather}),
    )  # fmt: skip
    trainer._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(trainer, model, batch)
    loss = KTOTrainer._compute_loss(trainer, model, batch, False)
    loss.backward()
    return loss.item(), model.table.grad.numpy(), gathered[0].item()


def ours(table, reference, source, method, step=0):
    mesh = make_mesh()
    batch = place_batch(*source.batches[step], mesh, source[step].mismatched)
    run = jax.jit(lambda p, f, b: gradients(method, p, f, (), b))
    (loss, metrics), grads, _ = run(jnp.asarray(table), jnp.asarray(reference), batch)
    return float(loss), np.asarray(grads), {name: float(value) for name, value in mean(metrics).items()}


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_one_rank_with_the_whole_batch(loss_type, scale, seed):
    table, reference = tables(seed, VOCABULARY, scale)
    trees, source, others = examples(6, seed)
    method = getattr(kto, loss_type)(Bigrams(), beta=BETA, desirable_weight=D, undesirable_weight=U)
    loss, grads, kl = trl_step(table, reference, trees, others, loss_type=loss_type)
    value, gradient, metrics = ours(table, reference, source, method)
    assert relative_error(value, loss) <= 1e-10
    assert relative_error(gradient, grads) <= 1e-8  # entry by entry
    if loss_type == "kto":
        assert relative_error(metrics["kl"], max(kl, 0.0)) <= 1e-10


def positive(count):
    """Tables and examples of a positive baseline, without which clamps and means would hide what differs."""
    for seed in range(100):
        (table, reference), (trees, source, others) = tables(seed, VOCABULARY, 1.0), examples(count, seed)
        _, _, kl = trl_step(table, reference, trees, others, loss_type="kto")
        if kl > 0.3:
            return table, reference, trees, source, others
    raise AssertionError


def test_two_ranks_whose_estimates_are_gathered():
    """TRL averages the ranks' means, then clamps: with ranks of one size, the mean over the whole batch."""
    table, reference, trees, source, others = positive(8)
    halves = [(trees[:4], others[:4]), (trees[4:], others[4:])]
    kls = [trl_step(table, reference, *half, loss_type="kto")[2] for half in halves]
    ranks = [trl_step(table, reference, *half, loss_type="kto", kls=kls) for half in halves]
    method = kto.kto(Bigrams(), beta=BETA, desirable_weight=D, undesirable_weight=U)
    value, gradient, metrics = ours(table, reference, source, method)
    assert relative_error(value, np.mean([rank[0] for rank in ranks])) <= 1e-10
    assert relative_error(gradient, np.mean([rank[1] for rank in ranks], axis=0)) <= 1e-8
    assert relative_error(metrics["kl"], np.mean(kls)) <= 1e-10


def test_accumulated_microbatches_have_baselines_of_their_own():
    """In TRL how the batch is cut changes the update; here the same parts are so only as batches of their own."""
    table, reference, trees, source, others = positive(8)
    parts = [trl_step(table, reference, trees[i : i + 2], others[i : i + 2], loss_type="kto") for i in range(0, 8, 2)]
    method = kto.kto(Bigrams(), beta=BETA, desirable_weight=D, undesirable_weight=U)
    whole = ours(table, reference, source, method)
    assert relative_error(whole[0], np.mean([part[0] for part in parts])) > 1e-3
    cut = Mismatched(evaluation_batches(trees, batch_size=2), trees, trees, source.seed, by_step=False)
    batches = [ours(table, reference, cut, method, step) for step in range(4)]
    assert relative_error(np.array([b[0] for b in batches]), np.array([part[0] for part in parts])) <= 1e-10
    for batch, part in zip(batches, parts, strict=True):
        assert relative_error(batch[1], part[1]) <= 1e-8
