"""Adapters saved here compute the same in PEFT, and PEFT's compute the same here."""

import dataclasses

import jax
import numpy as np
import pytest

import jaxalign
from jaxalign.data.batches import evaluation_batches
from jaxalign.data.trees import Tree
from jaxalign.loop import OnMesh
from jaxalign.methods.reward import completion_scores, from_language_model
from jaxalign.models import lora
from jaxalign.models.config import LoraConfig
from jaxalign.models.model import Model
from jaxalign.models.params import union
from tests import tiny

torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
peft = pytest.importorskip("peft", reason="parity needs the extra `parity`")
transformers = pytest.importorskip("transformers")

TOKENS = np.random.default_rng(0).integers(0, 64, (3, 11))


@pytest.fixture
def base(tmp_path):
    """A model on disk, and here."""
    model = Model(tiny.config(**tiny.GROUPED, vocab_size=64, initializer_range=0.3))
    params = model.init(jax.random.key(0))
    jaxalign.save_model(tmp_path / "base", model, params)
    return tmp_path / "base", model, params


def their_logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def their_base(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", ["_proj", "(q|down)_proj"])
def test_ours_in_peft(base, tmp_path, targets, rslora):
    directory, model, params = base
    model = dataclasses.replace(model, lora=LoraConfig(4, 12.0, targets, rslora))
    noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape)  # noqa: E731  # a fresh B is zero
    adapters = jax.tree.map(noise, lora.init(model, jax.random.key(2)))
    lora.save(tmp_path / "adapter", model, adapters, str(directory))
    torch_model = peft.PeftModel.from_pretrained(their_base(directory), tmp_path / "adapter")
    ours = np.asarray(model.logits(union(adapters, params), TOKENS))
    plain = np.asarray(lora.base_model(model).logits(params, TOKENS))
    assert np.abs(ours - plain).max() > 0.1, "the adapters do something"
    np.testing.assert_allclose(their_logits(torch_model), ours, atol=2e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_theirs_here(base, tmp_path, rslora):
    directory, model, params = base
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["v_proj", "up_proj"],
        use_rslora=rslora,
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    torch_model = peft.get_peft_model(their_base(directory), config)
    torch_model.save_pretrained(tmp_path / "adapter")
    adapted, adapters = lora.load(tmp_path / "adapter", model)
    ours = np.asarray(adapted.logits(union(adapters, params), TOKENS))
    assert np.abs(ours - np.asarray(model.logits(params, TOKENS))).max() > 0.1
    np.testing.assert_allclose(their_logits(torch_model), ours, atol=2e-5)


def test_a_reward_models_adapters_in_peft(base, tmp_path):
    """Adapters with heads give PEFT's sequence classifier on the same base the same scores."""
    directory, model, params = base
    scorer, weights = from_language_model(model, params, jax.random.key(3), heads=2)
    scorer = dataclasses.replace(scorer, lora=LoraConfig(4, 12.0))
    noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape)  # noqa: E731
    adapters = {**jax.tree.map(noise, lora.init(scorer, jax.random.key(2))), "score": weights["score"]}
    lora.save(tmp_path / "adapter", scorer, adapters, str(directory))
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    torch_model = load(directory, dtype=torch.float32, num_labels=2, pad_token_id=0)
    torch_model = peft.PeftModel.from_pretrained(torch_model, tmp_path / "adapter").eval()
    tokens = np.where(TOKENS == 0, 1, TOKENS)  # 0 pads there
    with torch.no_grad():
        want = torch_model(torch.tensor(tokens)).logits.numpy()
    on_mesh = OnMesh(evaluation_batches([Tree.of(row[:4], [row[4:]]) for row in tokens], batch_size=3), scorer.mesh)
    scores = completion_scores(scorer, union(adapters, {k: v for k, v in weights.items() if k != "score"}), on_mesh)
    np.testing.assert_allclose(want, scores[:, 0], atol=2e-5)
