"""A training step of every preference loss equals that of TRL 1.16's trainers, in value and gradient.

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
import torch
import transformers
from trl import DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

import jaxalign
from jaxalign import losses
from jaxalign.errors import UserError
from jaxalign.methods.wirings import WIRINGS, Wiring
from jaxalign.recipes import dpo
from jaxalign.recipes.preference import build_method
from tests.parity import trl_steps
from tests.parity.trl_steps import BETA, ROWS, TOKENIZER, Errors, Logps, combine, compare

# Of float32 (exponentials of log-ratios are the worst). Another β or a missing term makes errors above 1e-2.
VALUE_TOLERANCE, GRADIENT_TOLERANCE = 3e-5, 1e-4
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
FORWARD, JENSEN = {"divergence": "forward_kl"}, {"divergence": "jensen_shannon"}
DIVERGENCES = {
    "reverse_kl": LOSS_TYPES["sigmoid"],
    "forward_kl": of_type("sigmoid", method={"loss": "dpo"} | FORWARD, f_divergence_type="forward_kl"),
    "js_divergence": of_type("sigmoid", method={"loss": "dpo"} | JENSEN, f_divergence_type="js_divergence"),
    "alpha_divergence": of_type(
        "sigmoid", method={"loss": "dpo", "divergence": "alpha_divergence", "alpha": 0.3},
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
        "ipo", "aot", "discopop", method={"loss": {"ipo": 0.5, "aot": 0.3, "discopop": 0.2}},
        loss_weights=[0.5, 0.3, 0.2],
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
CASES = list(
    dict.fromkeys([*LOSS_TYPES.values(), *DIVERGENCES.values(), *OPTIONS, *REFERENCE_FREE.values(), *FREE_OPTIONS])
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Policy and reference, on disk and in memory."""
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is too small for more
    yield trl_steps.make_models(tmp_path_factory.mktemp("models"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def errors(models) -> Callable[[Case], Errors]:
    """The errors of a case, computed once."""

    @functools.cache
    def measure(case: Case) -> Errors:
        step = trl_steps.jaxalign_step(models, case.method, zero_reference=case.zero_reference)
        return compare(step, trl_steps.trl_step(models, case.trainer, case.trl))

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
    """Margins on both sides of 0 and of the hinge's kink, unequal lengths, and sorts that change the pairing."""
    trainer = trl_steps.make_trainer(models, DPOTrainer, {})
    batch = next(iter(trainer.get_train_dataloader()))
    chosen, rejected = (a.numpy() for a in trainer.compute_ref_log_probs(trainer.model, batch))
    ref_chosen, ref_rejected = (a.numpy() for a in trainer.compute_ref_log_probs(trainer.ref_model, batch))
    margins = BETA * (chosen - rejected - ref_chosen + ref_rejected)
    assert margins.min() < -0.1
    assert np.sum(margins < 0.9) >= 2 <= np.sum(margins > 1.1)
    lengths = np.array([[len(c) for c in tree.completions] for tree in trl_steps.pair_trees()])
    assert {-1, 1} <= set(np.sign(lengths[:, 0] - lengths[:, 1]))
    assert list(np.argsort(chosen - rejected)) != list(np.argsort(ref_chosen - ref_rejected))
    assert list(np.argsort(chosen - ref_chosen)) != list(np.argsort(rejected - ref_rejected))


def test_another_beta_is_noticed(models):
    step = trl_steps.jaxalign_step(models, {"loss": "dpo", "beta": 1.1 * BETA})
    errors = compare(step, trl_steps.trl_step(models, DPOTrainer, {"loss_type": ["sigmoid"]}))
    assert errors.loss > 1e-2
    assert errors.gradient > 1e-2


# Formulas of papers, and of TRL where it differs from them. Log-probs are in nats.


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -x)


def sums(pairs: list[Logps]) -> tuple[np.ndarray, np.ndarray]:
    """log π(y|x) of chosen and rejected answers, [B]."""
    return np.array([p.chosen.sum() for p in pairs]), np.array([p.rejected.sum() for p in pairs])


def averages(pairs: list[Logps]) -> tuple[np.ndarray, np.ndarray]:
    """log π(y|x) / |y| of chosen and rejected answers, [B]."""
    return np.array([p.chosen.mean() for p in pairs]), np.array([p.rejected.mean() for p in pairs])


def sft(pairs: list[Logps], *, prompt: bool = False) -> float:
    """The chosen answers' negative log-likelihood per token of the batch, with or without their prompts."""
    tokens = [logps for p in pairs for logps in ([p.prompt] if prompt else []) + [p.chosen]]
    return -np.concatenate(tokens).mean()


def simpo(policy: list[Logps], reference: list[Logps]) -> float:
    """Meng et al. 2024, arXiv:2405.14734, eq. 6."""
    chosen, rejected = averages(policy)
    return -log_sigmoid(BETA * chosen - BETA * rejected - 0.3).mean()


def contrastive(policy: list[Logps], reference: list[Logps]) -> float:
    """CPO, Xu et al. 2024, arXiv:2401.08417, sec. 3: L_prefer + L_NLL, the latter per token as in the authors' code."""
    chosen, rejected = sums(policy)
    return -log_sigmoid(BETA * chosen - BETA * rejected).mean() + sft(policy)


def odds_ratio(policy: list[Logps], reference: list[Logps], *, prompt: bool = False) -> float:
    """ORPO, Hong et al. 2024, arXiv:2403.07691, eqs. 1, 4, 6 and 7, with λ = 0.4."""
    chosen, rejected = (np.exp(x) / (1 - np.exp(x)) for x in averages(policy))
    return sft(policy, prompt=prompt) - 0.4 * log_sigmoid(np.log(chosen / rejected)).mean()


# Formula, where it is printed, settings.
PAPERS = {
    "simpo": (simpo, "SimPO, arXiv:2405.14734, eq. 6", SIMPO | {"beta": BETA}),
    "cpo": (contrastive, "CPO, arXiv:2401.08417, sec. 3", {"loss": "cpo", "beta": BETA}),
    "orpo": (odds_ratio, "ORPO, arXiv:2403.07691, eq. 6, λ = 0.4", {"loss": {"orpo": 0.4}}),
}


@pytest.fixture(scope="module")
def paper_errors(models) -> Callable[[str], Errors]:
    """The errors of a loss against its paper's formula, computed once."""

    @functools.cache
    def measure(name: str) -> Errors:
        formula, _, settings = PAPERS[name]
        return compare(trl_steps.jaxalign_step(models, settings), trl_steps.formula_step(models, formula))

    return measure


@pytest.mark.parametrize("name", PAPERS)
def test_a_step_equals_the_formula_of_the_paper(paper_errors, name):
    check(paper_errors(name))


# Deliberate differences between jaxalign and TRL, and their size.


def test_orpo_of_trl_also_learns_the_prompts(models, paper_errors):
    """TRL's SFT term covers prompt and answer, the paper's the answer alone. The authors' code has a switch for it."""
    of_trl = trl_steps.trl_step(models, ORPOTrainer, {"beta": 0.4})
    formula = functools.partial(odds_ratio, prompt=True)
    check(compare(of_trl, trl_steps.formula_step(models, formula)))
    assert compare(of_trl, trl_steps.formula_step(models, odds_ratio)).gradient > 1e-2
    check(paper_errors("orpo"))


def test_label_smoothing_of_sigmoid(models):
    """TRL ignores it. Here it gives cDPO: TRL's loss, with probability e that of the pairs with swapped answers."""
    step = trl_steps.jaxalign_step(models, {"loss": "dpo", "beta": BETA} | SMOOTH)
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in ROWS]
    right, wrong = (trl_steps.trl_step(models, DPOTrainer, SMOOTH, rows) for rows in (ROWS, swapped))
    check(compare(step, combine((0.8, right), (0.2, wrong))))
    check(compare(trl_steps.trl_step(models, DPOTrainer, {}), right))


def test_wpo_with_an_sft_term(models):
    """TRL 1.16.0 multiplies an expanded tensor in place, which PyTorch refuses. Here the weights are those of pairs."""
    with pytest.raises(RuntimeError, match="single memory location"):
        trl_steps.trl_step(models, DPOTrainer, {"loss_type": ["sigmoid", "sft"]} | WPO)
    step = trl_steps.jaxalign_step(models, {"loss": "dpo", "beta": BETA, "wpo": True, "sft": 0.3})
    weighted = trl_steps.trl_step(models, DPOTrainer, WPO)
    check(compare(step, combine((1, weighted), (0.3, trl_steps.trl_step(models, DPOTrainer, {"loss_type": ["sft"]})))))


def test_divergences_of_length_averages(models):
    """TRL divides the score of the sum by the length, f'(Σh) / T; here the average has a score, f'(Σh / T).

    They agree on the reverse KL, where the score is the identity. No paper defines either.
    """

    def ratios(reduce: Callable, policy: list[Logps], reference: list[Logps]) -> tuple[np.ndarray, ...]:
        return tuple(p - r for p, r in zip(reduce(policy), reduce(reference), strict=True))

    def score(log_ratio: np.ndarray) -> np.ndarray:
        return np.log(2) + log_sigmoid(log_ratio)

    def score_of_average(policy: list[Logps], reference: list[Logps]) -> float:
        chosen, rejected = ratios(averages, policy, reference)
        return -log_sigmoid(BETA * (score(chosen) - score(rejected))).mean()

    def average_of_score(policy: list[Logps], reference: list[Logps]) -> float:
        chosen, rejected = ratios(sums, policy, reference)
        lengths = [np.array([len(answer) for answer in side]) for side in zip(*(p[1:] for p in policy), strict=True)]
        return -log_sigmoid(BETA * (score(chosen) / lengths[0] - score(rejected) / lengths[1])).mean()

    options = {"loss_type": ["sigmoid_norm"], "f_divergence_type": "js_divergence"}
    of_trl = trl_steps.trl_step(models, DPOTrainer, options)
    check(compare(of_trl, trl_steps.formula_step(models, average_of_score)))
    step = trl_steps.jaxalign_step(models, {"loss": "dpo", "beta": BETA, "average": True} | JENSEN)
    check(compare(step, trl_steps.formula_step(models, score_of_average)))
    assert compare(step, of_trl).gradient > 1e-2
    with pytest.raises(UserError, match="loss=ipo does not take divergence"):
        build_method(dpo.load_config(overrides={"method.loss": "ipo", "method.divergence": "forward_kl"}).method, None)


def test_sums_and_averages_in_one_weighted_sum(models, monkeypatch):
    """In TRL every type has its own. Here ``average`` is of all terms, and a row of ``WIRINGS`` makes an exception."""

    def sigmoid_norm(pc, pr, rc, rr, *, beta):
        return losses.dpo(pc, pr, rc, rr, beta=beta)

    monkeypatch.setitem(WIRINGS, sigmoid_norm, Wiring(average=True))
    step = trl_steps.jaxalign_step(models, {"loss": {"dpo": 0.3, "sigmoid_norm": 0.7}, "beta": BETA})
    options = {"loss_type": ["sigmoid", "sigmoid_norm"], "loss_weights": [0.3, 0.7]}
    check(compare(step, trl_steps.trl_step(models, DPOTrainer, options)))


def test_what_spans_a_batch_spans_a_microbatch_in_trl(models):
    """TRL averages its microbatches. Here the SFT term is one mean, and ``aot`` one sort, of the whole batch."""
    parts = ROWS[:2], ROWS[2:]
    halves = [trl_steps.trl_step(models, DPOTrainer, {"loss_type": ["sft"]}, rows) for rows in parts]
    lengths = [len(tree.completions[0]) for tree in trl_steps.pair_trees()]
    share = sum(lengths[:2]) / sum(lengths)
    step = trl_steps.jaxalign_step(models, {"loss": "nll"})
    check(compare(step, combine((share, halves[0]), (1 - share, halves[1]))))
    assert compare(combine((0.5, halves[0]), (0.5, halves[1])), step).gradient > 1e-2

    settings = {"loss": "aot", "beta": BETA}
    halves = [trl_steps.trl_step(models, DPOTrainer, {"loss_type": ["aot"]}, rows) for rows in parts]
    check(compare(trl_steps.jaxalign_step(models, settings, count=2), halves[0]))  # a batch of two pairs
    accumulated = combine((0.5, halves[0]), (0.5, halves[1]))
    assert compare(accumulated, trl_steps.jaxalign_step(models, settings)).gradient > 1e-2


def test_delta_of_bco(models):
    """TRL's δ is 0. Here it is a running mean of rewards, 0 in the first step, unless ``method.delta`` sets it."""
    settings = {"loss": "bco_pair", "beta": BETA}
    of_trl = trl_steps.trl_step(models, DPOTrainer, {"loss_type": ["bco_pair"]})
    check(compare(trl_steps.jaxalign_step(models, settings), of_trl))

    def shifted(policy: list[Logps], reference: list[Logps], *, delta: float) -> float:
        """Jung et al. 2024, arXiv:2404.04656."""
        chosen, rejected = (BETA * (p - r) for p, r in zip(sums(policy), sums(reference), strict=True))
        return -(log_sigmoid(chosen - delta) + log_sigmoid(delta - rejected)).mean()

    check(compare(of_trl, trl_steps.formula_step(models, functools.partial(shifted, delta=0.0))))
    step = trl_steps.jaxalign_step(models, settings | {"delta": 0.7})
    check(compare(step, trl_steps.formula_step(models, functools.partial(shifted, delta=0.7))))


def test_a_run_of_the_recipe_is_a_run_of_the_trainer(models):
    """Three steps of each from one model, with SGD: losses, and parameters at the end."""
    overrides = {
        "method.loss": {"dpo": 1.0, "nll": 0.2}, "method.beta": BETA, "data.holdout": 0, "data.template": "never",
        "data.max_length": 128, "train.batch_size": len(ROWS), "train.steps": 3, "train.row_lengths": [64],
        "optim.optimizer": "sgd", "optim.b1": 0.0, "optim.learning_rate": 0.02, "optim.schedule": "constant",
        "optim.warmup_ratio": 0.0, "optim.max_grad_norm": None, "samples.prompts": 0,
    }  # fmt: skip
    start = jaxalign.load_model(models.directory / "reference")
    result = dpo.train(dpo.load_config(overrides=overrides), model=start, tokenizer=TOKENIZER, rows=ROWS)
    options = {
        "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2], "max_steps": 3, "optim": "sgd",
        "learning_rate": 0.02, "lr_scheduler_type": "constant",
    }  # fmt: skip
    trainer = trl_steps.make_trainer(models, DPOTrainer, options, policy="reference")
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    expected = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert expected[2] < expected[0] - 0.05
    np.testing.assert_allclose([line["loss"] for line in result.history], expected, rtol=VALUE_TOLERANCE)
    jaxalign.save_model(models.directory / "result", result.model, result.params)
    after = trl_steps.load_torch(models.directory / "result").state_dict()
    before = trl_steps.load_torch(models.directory / "reference").state_dict()
    for name, parameter in trainer.model.state_dict().items():
        step = np.linalg.norm(parameter - before[name])
        assert np.linalg.norm(parameter - after[name]) <= GRADIENT_TOLERANCE * step + 1e-6, name


# The table in the documentation.


def call(settings: dict[str, Any]) -> str:
    """Settings below ``method``, but for the β that all cases share."""
    return ", ".join(f"{name}={_json(value)}" for name, value in settings.items() if name != "beta")


def rows_of(text: str) -> dict[tuple[str, str], Errors]:
    """The rows of the table in the documentation."""
    table = text[text.index(BEGIN) : text.index(END)]
    lines = re.findall(r"^\| (.+?) \| `(.+?)` \| ([\d.e+-]+) \| ([\d.e+-]+) \|$", table, flags=re.MULTILINE)
    return {(trl, settings): Errors(float(loss), float(gradient)) for trl, settings, loss, gradient in lines}


def test_table_in_the_documentation(errors, paper_errors):
    measured = {}
    for case in CASES:
        settings = call(case.method) + (", reference log-probs 0" if case.zero_reference else "")
        measured[f"{case.trainer.__name__}, `{case}`", settings] = errors(case)
    for name, (_, source, settings) in PAPERS.items():
        measured[source, call(settings)] = paper_errors(name)
    text = DOCS.read_text()
    if os.environ.get("JAXALIGN_WRITE_TABLES"):
        lines = ["| TRL, or paper in NumPy | jaxalign, below `method` | error of the loss | error of the gradient |"]
        lines.append("|---|---|---|---|")
        for (trl, settings), worst in measured.items():
            lines.append(f"| {trl} | `{settings}` | {worst.loss:.0e} | {worst.gradient:.0e} |")
        text = text[: text.index(BEGIN) + len(BEGIN)] + "\n" + "\n".join(lines) + "\n" + text[text.index(END) :]
        DOCS.write_text(text)
    written = rows_of(text)
    assert written.keys() == measured.keys()
    for row, worst in measured.items():
        assert worst.loss <= max(10 * written[row].loss, 2e-6), f"{row}: the documentation gives {written[row]}"
        assert worst.gradient <= max(10 * written[row].gradient, 1e-5), f"{row}: the documentation gives {written[row]}"
