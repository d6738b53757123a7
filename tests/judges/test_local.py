"""A model of ours as a judge, against its plain logits; no question sees another."""

import jax
import numpy as np
import pytest

from jaxalign.data.encode import Encoder
from jaxalign.data.messages import Message
from jaxalign.errors import UserError
from jaxalign.judges import judge_pairs
from jaxalign.judges.local import label_logps, local_judge, local_scores
from jaxalign.models.model import Model
from tests import tiny
from tests.cli.conftest import byte_tokenizer


@pytest.fixture(scope="module")
def judge():
    tokenizer = byte_tokenizer()
    config = tiny.config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.4,
    )
    model = Model(config)
    return model, model.init(jax.random.key(0)), tokenizer


def question(text):
    return [{"role": "user", "content": text}]


LABELS = ["Score: 1", "Score: 10", "no"]


@pytest.mark.parametrize("chat", [True, False], ids=["chat template", "plain text"])
def test_label_probabilities_are_those_of_the_plain_logits(judge, chat):
    model, params, tokenizer = judge
    if not chat:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = None
    texts = ["short", "a rather longer question, this one", "why <|end|> not?"]
    logps_of_labels = label_logps(model, params, tokenizer, [question(text) for text in texts], LABELS)
    assert logps_of_labels.shape == (3, 3)
    encoder, plain = Encoder(tokenizer), jax.jit(model.logits)
    for i, text in enumerate(texts):
        if chat:
            prompt, completions = encoder.conversation([Message("user", text)], LABELS)
        else:
            prompt = encoder.document(text + "\n")
            completions = [[*encoder.continuation(label), tokenizer.eos_token_id] for label in LABELS]
        for k, completion in enumerate(completions):
            assert completion[-1] == tokenizer.eos_token_id
            ids = np.zeros((1, 96), np.int32)  # one length, one program
            ids[0, : len(prompt + completion)] = prompt + completion
            logits = plain(params, ids, np.arange(96)[None] < len(prompt + completion))[0]
            logps = jax.nn.log_softmax(logits)[len(prompt) - 1 : len(prompt + completion) - 1]
            expected = np.sum(logps[np.arange(len(completion)), np.array(completion)])
            assert logps_of_labels[i, k] == pytest.approx(float(expected), abs=2e-3)


def test_a_question_does_not_depend_on_its_neighbours(judge):
    texts = [f"question {i} " * (1 + i % 7) for i in range(300)]  # more than one chunk
    together = label_logps(*judge, [question(text) for text in texts], LABELS[:2])
    assert np.isfinite(together).all()
    for i in (0, 6, 255, 256, 299):
        np.testing.assert_allclose(label_logps(*judge, [question(texts[i])], LABELS[:2])[0], together[i], atol=2e-3)


def test_it_judges_pairs_in_both_orders(judge):
    judged = judge_pairs(local_judge(*judge), ["p", "q"], ["one", "three"], ["two", "three"])
    for pair in judged:
        for verdict, p in zip((pair.first_order, pair.second_order), pair.probabilities, strict=True):
            assert verdict == ("first" if p > 0.5 else "second")
    assert judged[1].probabilities[0] == pytest.approx(judged[1].probabilities[1])  # the same responses: one question
    logs = [reply.logprobs[0] for reply in local_judge(*judge, ties=True)([question("x")])]
    assert np.exp(list(logs[0].values())).sum() == pytest.approx(1, abs=1e-5)
    assert set(logs[0]) == {"A", "B", "tie"}


def test_expected_scores(judge):
    scores = local_scores(*judge, ["p", "q"], ["good", "bad"])
    assert scores.shape == (2,)
    assert ((scores > 1) & (scores < 10)).all()
    assert scores[0] != scores[1]


def test_a_question_that_is_too_long_is_refused(judge):
    with pytest.raises(UserError, match=r"Example 2 has \d+ tokens, and the model takes 2048"):
        label_logps(*judge, [question("x"), question("x" * 3000)], LABELS)
