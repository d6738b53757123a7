"""One training step of jaxalign, of TRL's trainers, and of a formula in NumPy: value and gradient of every parameter.

All three see the same texts and the same random Llama, which ``save_model`` writes and ``transformers`` reads::

    texts -> TRL's tokenisation, padded rows    -> Trainer.training_step -> loss, gradients by tensor name
    texts -> prompt trees, packed microbatches  -> loop.make_step        -> loss, gradients by tensor name
    texts -> one unpadded row for each text     -> formula of log-probs  -> loss, gradients by tensor name

The policy is the reference plus noise: at the reference itself most preference losses have the same gradient.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from safetensors.numpy import load_file
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

import jaxalign
from jaxalign import loop
from jaxalign.data.batches import attach, batches
from jaxalign.data.kinds import Preference
from jaxalign.data.load import read_examples
from jaxalign.data.tokenize import tokenize_completions
from jaxalign.data.trees import Tree
from jaxalign.models.config import from_hf_config
from jaxalign.models.model import Model
from jaxalign.recipes import dpo
from jaxalign.recipes.preference import build_method
from tests.cli.conftest import byte_tokenizer

BETA = 0.5
CONFIGS = {DPOTrainer: DPOConfig, CPOTrainer: CPOConfig, ORPOTrainer: ORPOConfig}
# Answers of unequal length, the longer one chosen or rejected.
ROWS = [
    {"prompt": "what is the sky?", "chosen": " blue", "rejected": " it is red"},
    {"prompt": "the grass is", "chosen": " ok", "rejected": " red"},
    {"prompt": "sea", "chosen": " green and tall", "rejected": " no"},
    {"prompt": "a", "chosen": " tall", "rejected": " low!"},
]
TOKENIZER = byte_tokenizer()
TINY = {
    "model_type": "llama",
    "vocab_size": len(TOKENIZER),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 128,
    "eos_token_id": TOKENIZER.eos_token_id,
    "initializer_range": 0.3,
}
NOISE = 0.15
# As fast as the settings in tests/conftest.py, which the parity environment does not use.
FAST_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
# An optimiser that changes no parameter and stores the gradient as its state.
RECORD = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradient, state, params=None: (jax.tree.map(jnp.zeros_like, gradient), gradient),
)


class Step(NamedTuple):
    """The loss of a step, and its gradient by the tensor's name in the files of ``transformers``."""

    loss: float
    gradients: dict[str, np.ndarray]


class Errors(NamedTuple):
    """Relative error of the loss, and of the gradient: the worst ‖a - b‖ / ‖b‖ over the tensors."""

    loss: float
    gradient: float


class Logps(NamedTuple):
    """Log-probs of a pair's tokens: the prompt's after its first, and those of both answers, [T] each, in nats."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


@dataclasses.dataclass(frozen=True)
class Models:
    """Policy and reference in ``directory``, and in memory."""

    directory: Path
    model: Model
    policy: Any
    reference: Any


def make_models(directory: Path) -> Models:
    """Writes a random reference and a policy near it, and reads them."""
    model = Model(from_hf_config(TINY))
    reference = model.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(reference)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + NOISE * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    for name, params in {"reference": reference, "policy": jax.tree.unflatten(structure, noisy)}.items():
        jaxalign.save_model(directory / name, model, params, TOKENIZER)
    model, policy = jaxalign.load_model(directory / "policy")
    return Models(directory, model, policy, jaxalign.load_model(directory / "reference")[1])


def load_torch(directory: Path) -> transformers.PreTrainedModel:
    """Reads a model with ``transformers``."""
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def make_trainer(
    models: Models, trainer_type: type, options: dict, policy: str = "policy", rows: Sequence = ROWS
) -> Any:
    """Returns a TRL trainer that takes all rows as one batch."""
    references = {"ref_model": load_torch(models.directory / "reference")} if trainer_type is DPOTrainer else {}
    settings = {
        "beta": BETA, "per_device_train_batch_size": len(rows), "max_length": 128, "max_grad_norm": 0.0,
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 1,
    }  # fmt: skip
    return trainer_type(
        load_torch(models.directory / policy),
        args=CONFIGS[trainer_type](str(models.directory / "trl"), **settings | options),
        train_dataset=datasets.Dataset.from_list(list(rows)),
        processing_class=TOKENIZER,
        **references,
    )


def trl_step(models: Models, trainer_type: type, options: dict, rows: Sequence = ROWS) -> Step:
    """Runs the trainer's own ``training_step``: the loss of a batch and its backward pass."""
    trainer = make_trainer(models, trainer_type, options, rows=rows)
    trainer.current_gradient_accumulation_steps = 1  # as ``Trainer.train`` sets it
    loss = trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))
    return Step(loss.item(), torch_gradients(trainer.model))


def torch_gradients(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns the gradient of every parameter, zeros where the loss does not depend on it."""
    zero = lambda p: np.zeros(p.shape, np.float32)  # noqa: E731
    return {name: zero(p) if p.grad is None else p.grad.numpy() for name, p in model.named_parameters()}


@functools.cache
def pair_trees() -> list[Tree]:
    """Returns the rows as prompt trees, tokenised as ``recipes.dpo`` does without a chat template."""
    records, _ = read_examples(Preference, None, rows=ROWS, holdout=0, seed=0)
    return tokenize_completions(records, TOKENIZER, template="never")[0]


def jaxalign_step(
    models: Models, settings: dict[str, Any], *, zero_reference: bool = False, count: int = len(ROWS)
) -> Step:
    """Runs one step of ``loop.make_step`` with the method that the settings below ``method`` name.

    Args:
        models: Policy and reference.
        settings: The settings, as ``recipes.dpo.load_config`` and the command line take them.
        zero_reference: Cache log-probs 0 as those of the reference.
        count: Number of rows, from the first.
    """
    config = dpo.load_config(overrides={f"method.{name}": value for name, value in settings.items()})
    method = build_method(config.method, models.model)
    trees = pair_trees()[:count]
    if zero_reference:
        trees = attach(trees, ref_logps=np.zeros((count, 2)))
    packed = batches(trees, batch_size=count, shapes=[(64, 64)])[0]  # several microbatches
    batch = loop.place_batch(packed.rows, packed.used, models.model.mesh)
    params = jax.tree.map(jnp.copy, models.policy)  # the step donates its state
    state = loop.init_state(params, RECORD, jax.random.key(0), method_state=method.method_state)
    frozen = None if zero_reference else models.reference
    step = loop.make_step(method, RECORD, state, frozen=frozen)
    compiled = step.lower(state, batch).compile(FAST_COMPILATION)
    state, metrics = compiled(state, frozen, None, batch)
    with tempfile.TemporaryDirectory() as directory:  # the gradient under the names that the parameters have in a file
        jaxalign.save_model(directory, models.model, state.opt_state)
        return Step(float(metrics["loss"]), load_file(Path(directory) / "model.safetensors"))


def formula_step(models: Models, formula: Callable[[list[Logps], list[Logps]], float]) -> Step:
    """Computes a loss written in NumPy, ``formula(policy, reference)``, and its gradient.

    The formula is differentiated numerically for the log-prob of every token, the model by PyTorch.
    """
    policy = load_torch(models.directory / "policy")
    with torch.no_grad():
        reference = _as_numpy(_token_logps(load_torch(models.directory / "reference")))
    tensors = _token_logps(policy)
    pairs = _as_numpy(tensors)
    for pair, weights in zip(tensors, _slopes(lambda: formula(pairs, reference), pairs), strict=True):
        for logps, weight in zip(pair, weights, strict=True):
            if logps.numel():
                logps.backward(torch.tensor(weight), retain_graph=True)
    return Step(formula(pairs, reference), torch_gradients(policy))


def _token_logps(model: torch.nn.Module) -> list[Logps]:
    """Returns the log-probs of every token of each pair, as float64 tensors."""
    pairs = []
    for tree in pair_trees():
        answers = []
        for completion in tree.completions:
            text = torch.tensor(np.concatenate([tree.prompt, completion]))[None].long()
            logps = torch.log_softmax(model(input_ids=text).logits[0, :-1].double(), -1)
            answers.append(logps.gather(-1, text[0, 1:, None])[:, 0])
        split = len(tree.prompt) - 1
        pairs.append(Logps(answers[0][:split], answers[0][split:], answers[1][split:]))
    return pairs


def _as_numpy(pairs: list[Logps]) -> list[Logps]:
    return [Logps(*(logps.detach().numpy().copy() for logps in pair)) for pair in pairs]


def _slopes(value: Callable[[], float], pairs: list[Logps], step: float = 1e-3) -> list[Logps]:
    """Returns the derivative of ``value()`` for every entry of the arrays, by central differences of fourth order."""
    slopes = [Logps(*map(np.zeros_like, pair)) for pair in pairs]
    for pair, slope in zip(pairs, slopes, strict=True):
        for array, out in zip(pair, slope, strict=True):
            for i, start in enumerate(array.tolist()):
                for shift, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
                    array[i] = start + shift * step
                    out[i] += weight * value() / (12 * step)
                array[i] = start
    return slopes


def compare(step: Step, expected: Step) -> Errors:
    """Returns the errors of a step; its tensors must have the expected names and shapes."""
    assert step.gradients.keys() == expected.gradients.keys()
    norm = lambda x: float(np.linalg.norm(np.asarray(x, np.float64)))  # noqa: E731
    worst = max(norm(step.gradients[n] - g) / max(norm(g), 1e-12) for n, g in expected.gradients.items())
    return Errors(abs(step.loss - expected.loss) / max(abs(expected.loss), 1e-12), worst)


def combine(*terms: tuple[float, Step]) -> Step:
    """Returns a weighted sum of steps."""
    names = terms[0][1].gradients
    gradients = {name: sum(weight * step.gradients[name] for weight, step in terms) for name in names}
    return Step(sum(weight * step.loss for weight, step in terms), gradients)
