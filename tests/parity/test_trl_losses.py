"""A real step of every preference loss equals a step of TRL 1.16's trainers, in value and in every parameter's gradient.

The table in docs/losses.md is made of the errors. ``JAXALIGN_WRITE_TABLES=1`` writes it again.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
pytest.importorskip("trl", reason="TRL is only in the parity environment")

import datasets
import transformers
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

import jaxalign
from jaxalign.errors import UserError
from jaxalign.recipes import dpo
from jaxalign.recipes.preference import build_method
from tests.parity import trl_steps
from tests.parity.trl_steps import BETA, ROWS, TOKENIZER, Errors, Step, combine, compare

# Of float32. Another β, or a term that is missing, makes errors above 1e-2.
VALUE_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
DOCS = Path(__file__).parents[2] / "docs" / "losses.md"
BEGIN, END = "<!-- table of steps -->", "<!-- end of table of steps -->"


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A loss as TRL's configuration names it, and as jaxalign's does.

    Attributes:
        trl: options of TRL's configuration.
        method: settings below ``method``.
        trainer: TRL's trainer.
        zero_reference: the reference's log-probs are 0: a loss of Δ as a loss without a reference.
    """

    trl: dict[str, Any]
    method: dict[str, Any]
    trainer: type = DPOTrainer
    zero_reference: bool = False

    def __str__(self) -> str:
        return ", ".join(f"{name}={_json(value)}" for name, value in self.trl.items())


def _json(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return value if isinstance(value, str) else json.dumps(value)


def of_type(*loss_types: str, method: dict[str, Any], **options: Any) -> Case:
    """A case of ``DPOTrainer``; options that both sides name alike are given once."""
    both = {name: options[name] for name in ("label_smoothing", "ld_alpha") if name in options}
    reference = {} if method["loss"] == "nll" else {"beta": BETA}
    return Case({"loss_type": list(loss_types)} | options, method | reference | both)


SMOOTH = {"label_smoothing": 0.2}
# One case for each loss_type of DPOTrainer, with all other options at their defaults unless the loss needs them.
LOSS_TYPES = {
    "sigmoid": of_type("sigmoid", method={"loss": "dpo"}),
    "hinge": of_type("hinge", method={"loss": "hinge"}),
    "ipo": of_type("ipo", method={"loss": "ipo"}),
    "exo_pair": of_type("exo_pair", method={"loss": "exo_pair"}, **SMOOTH),
    "nca_pair": of_type("nca_pair", method={"loss": "nca_pair"}),
    "robust": of_type("robust", method={"loss": "robust_dpo"}, **SMOOTH),
    "bco_pair": of_type("bco_pair", method={"loss": "bco_pair", "delta": 0.0}),
    "sppo_hard": of_type("sppo_hard", method={"loss": "sppo_hard"}),
    "aot": of_type("aot", method={"loss": "aot"}, **SMOOTH),
    "aot_unpaired": of_type("aot_unpaired", method={"loss": "aot_unpaired"}, **SMOOTH),
    "apo_zero": of_type("apo_zero", method={"loss": "apo_zero"}),
    "apo_down": of_type("apo_down", method={"loss": "apo_down"}),
    "discopop": of_type("discopop", method={"loss": "discopop"}),
    "sft": of_type("sft", method={"loss": "nll"}),
    "sigmoid_norm": of_type("sigmoid_norm", method={"loss": "dpo", "average": True}),
}
FORWARD, JENSEN, ALPHA = {"divergence": "forward_kl"}, {"divergence": "jensen_shannon"}, {"divergence": "alpha_divergence"}
DIVERGENCES = {
    "reverse_kl": of_type("sigmoid", method={"loss": "dpo", "divergence": "reverse_kl"}, f_divergence_type="reverse_kl"),
    "forward_kl": of_type("sigmoid", method={"loss": "dpo"} | FORWARD, f_divergence_type="forward_kl"),
    "js_divergence": of_type("sigmoid", method={"loss": "dpo"} | JENSEN, f_divergence_type="js_divergence"),
    "alpha_divergence": of_type(
        "sigmoid", method={"loss": "dpo", "alpha": 0.3} | ALPHA,
        f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.3,
    ),
}  # fmt: skip
JS = {"f_divergence_type": "js_divergence"}
WPO = {"use_weighting": True}
OPTIONS = [
    of_type("hinge", method={"loss": "hinge"} | JENSEN, **JS),
    of_type("exo_pair", method={"loss": "exo_pair"} | JENSEN, **JS, **SMOOTH),
    of_type("robust", method={"loss": "robust_dpo"} | JENSEN, **JS, **SMOOTH),
    of_type("discopop", method={"loss": "discopop", "tau": 0.2} | JENSEN, **JS, discopop_tau=0.2),
    of_type("sigmoid", method={"loss": "dpo", "wpo": True}, **WPO),
    of_type("ipo", method={"loss": "ipo", "wpo": True}, **WPO),
    of_type("sigmoid", method={"loss": "dpo"}, ld_alpha=0.4),
    of_type("sigmoid", method={"loss": "dpo"}, ld_alpha=0.0),
    of_type("ipo", method={"loss": "ipo"}, ld_alpha=0.4),
    of_type("aot", method={"loss": "aot"}, ld_alpha=0.4),
    of_type(
        "sigmoid", "bco_pair", "sft", method={"loss": {"dpo": 0.8, "bco_pair": 0.2, "nll": 1.0}, "delta": 0.0},
        loss_weights=[0.8, 0.2, 1.0],
    ),
    of_type("apo_zero", "sft", method={"loss": "apo_zero", "sft": 1.0}),
    of_type(
        "ipo", "aot", "discopop", method={"loss": {"ipo": 0.5, "aot": 0.3, "discopop": 0.2}}, loss_weights=[0.5, 0.3, 0.2]
    ),
]  # fmt: skip


def cpo(method: dict[str, Any], *, zero_reference: bool = False, **options: Any) -> Case:
    """A case of ``CPOTrainer``, whose SFT term has the coefficient 1 by default."""
    return Case(options, method | {"beta": BETA}, CPOTrainer, zero_reference)


SIMPO = {"loss": "simpo", "gamma": 0.3}
REFERENCE_FREE = {
    "sigmoid": cpo({"loss": "cpo"}, loss_type="sigmoid"),
    "simpo": cpo(SIMPO, loss_type="simpo", simpo_gamma=0.3, cpo_alpha=0.0),
    "hinge": cpo({"loss": "hinge", "sft": 1.0}, loss_type="hinge", zero_reference=True),
    "ipo": cpo({"loss": "ipo", "sft": 1.0}, loss_type="ipo", zero_reference=True),
}
FREE_OPTIONS = [
    cpo({"loss": "cpo", "sft": 0.4} | SMOOTH, loss_type="sigmoid", cpo_alpha=0.4, **SMOOTH),
    cpo(SIMPO | {"sft": 1.0}, loss_type="simpo", simpo_gamma=0.3),
    cpo(SIMPO | {"loss": "alpha_po", "alpha": 0.25}, loss_type="simpo", simpo_gamma=0.3, cpo_alpha=0.0, alpha=0.25),
]
CASES = [*LOSS_TYPES.values(), *DIVERGENCES.values(), *OPTIONS, *REFERENCE_FREE.values(), *FREE_OPTIONS]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Policy and reference, on disk and in memory."""
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    return trl_steps.make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def errors(models) -> Callable[[Case], Errors]:
    """The errors of a case, computed once."""

    @functools.cache
    def measure(case: Case) -> Errors:
        ours = trl_steps.jaxalign_step(models, case.method, zero_reference=case.zero_reference)
        return compare(ours, trl_steps.trl_step(models, case.trainer, case.trl))

    return measure


def check(errors: Errors) -> None:
    assert errors.loss <= VALUE_TOLERANCE
    assert errors.gradient <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.trainer.__name__} {case}")
def test_a_step_equals_that_of_trl(errors, case):
    check(errors(case))


def names_in(function: Callable, variable: str) -> set[str]:
    """The strings that a function compares a variable with."""
    return set(re.findall(rf'\b{variable} == "(\w+)"', inspect.getsource(function)))


def test_every_loss_type_of_trl_is_covered():
    assert names_in(DPOTrainer._compute_loss, "loss_type") == LOSS_TYPES.keys()
    assert all(case.trl["loss_type"] == [name] for name, case in LOSS_TYPES.items())
    assert names_in(DPOTrainer._compute_loss, "f_divergence_type") == DIVERGENCES.keys()
    assert names_in(CPOTrainer.cpo_loss, "loss_type") == REFERENCE_FREE.keys()


def test_the_batch_is_not_a_special_point(models):
    """Margins of both signs, some beyond the kink of the hinge; answers longer and shorter than the other."""
    trainer = trl_steps.make_trainer(models, DPOTrainer, {})
    batch = next(iter(trainer.get_train_dataloader()))
    chosen, rejected = (a.numpy() for a in trainer.compute_ref_log_probs(trainer.model, batch))
    ref_chosen, ref_rejected = (a.numpy() for a in trainer.compute_ref_log_probs(trainer.ref_model, batch))
    margins = BETA * (chosen - rejected - ref_chosen + ref_rejected)
    assert margins.min() < -0.1
    assert 0 < np.sort(margins)[-2] < 1 < margins.max()
    lengths = np.array([[len(c) for c in tree.completions] for tree in trl_steps.pair_trees()])
    assert {-1, 1} <= set(np.sign(lengths[:, 0] - lengths[:, 1]))


def test_another_beta_is_noticed(models):
    ours = trl_steps.jaxalign_step(models, {"loss": "dpo", "beta": 1.1 * BETA})
    errors = compare(ours, trl_steps.trl_step(models, DPOTrainer, {"loss_type": ["sigmoid"]}))
    assert errors.loss > 1e-2
    assert errors.gradient > 1e-2
