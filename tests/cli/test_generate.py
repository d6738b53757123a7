"""``jaxalign generate``: text as it appears, stop strings, several answers, and the configuration of the repository."""

import json
from pathlib import Path

import jax
import pytest

import jaxalign
from jaxalign.cli import main
from jaxalign.errors import UserError
from jaxalign.rollout import generate_text, stream_text
from jaxalign.rollout.text import IncrementalText, encode_prompts
from tests.cli.conftest import byte_tokenizer


@pytest.fixture
def generated(tiny_model, capsys):
    """What the command prints on standard output."""

    def run(*arguments: str) -> str:
        assert main(["generate", "--model.path", str(tiny_model), "--max_new_tokens", "12", *arguments]) == 0
        return capsys.readouterr().out

    return run


def test_text_never_ends_within_a_character():
    tokenizer = byte_tokenizer()
    text = "naïve 🙂 end"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode()), "one token a byte"
    stream = IncrementalText(tokenizer)
    shown = [stream.extend(ids[:length], length == len(ids)) for length in range(1, len(ids) + 1)]
    assert "".join(shown) == text
    assert not any("\ufffd" in piece for piece in shown)
    assert shown.count("") == 1 + 3  # the first bytes of ï and of 🙂
    cut = IncrementalText(tokenizer)
    assert [cut.extend(ids[:3], False), cut.extend(ids[:3], True)] == ["na", "\ufffd"]  # the end may be within one


def test_a_single_answer_comes_token_by_token_and_is_the_whole_one(tiny_model, generated, monkeypatch):
    flushed = []
    monkeypatch.setattr("builtins.print", lambda *parts, **options: flushed.append((parts, options)))
    assert main(["generate", "--model.path", str(tiny_model), "--max_new_tokens", "12", "--prompt", "what?"]) == 0
    monkeypatch.undo()
    assert len(flushed) > 3
    assert all(options["flush"] for _, options in flushed)
    assert "".join(part + options["end"] for (part,), options in flushed) == generated("--prompt", "what?")


def test_stop_ends_an_answer_behind_the_stop_string(generated):
    free = generated("--prompt", "what?").rstrip("\n")
    cut = next(character for character in free[2:] if character != "\ufffd")
    assert generated("--prompt", "what?", "--stop", json.dumps([cut])).rstrip("\n") == free[: free.index(cut) + 1]


def test_several_answers_to_each_prompt_of_a_file(generated, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"prompt": "one?"}\n{"prompt": "two?"}\n{"prompt": "three?"}\n')
    rows = []
    for batch_size in ("1", "3"):
        out = tmp_path / f"{batch_size}.jsonl"
        arguments = ("--num_completions", "2", "--output", str(out), "--batch_size", batch_size)
        shown = generated("--prompts", str(questions), *arguments)
        rows.append([json.loads(line) for line in out.read_text().splitlines()])
        for row in rows[-1]:
            assert f"prompt: {row['prompt']}\nanswer: {row['completion']}\n" in shown
    assert rows[0] == rows[1]
    assert [row["prompt"] for row in rows[0]] == ["one?", "one?", "two?", "two?", "three?", "three?"]
    assert len({row["completion"] for row in rows[0]}) == 6


def test_prompts_of_transcripts_are_chats_and_a_limit_takes_the_first_ones(generated, tmp_path, tiny_model, error_of):
    opening = "\n\nHuman: sky?\n\nAssistant: blue\n\nHuman: sea?\n\nAssistant:"
    file, out = tmp_path / "hh.jsonl", tmp_path / "out.jsonl"
    rows = [{"chosen": f"{opening} deep", "rejected": f"{opening} red"}] * 2
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    generated("--prompts", str(file), "--limit", "1", "--output", str(out))
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["prompt"] == opening
    tokenizer = jaxalign.load_tokenizer(tiny_model)
    chat = "<|user|>sky?<|end|><|assistant|>blue<|end|><|user|>sea?<|end|><|assistant|>"
    assert tokenizer.decode(encode_prompts(tokenizer, [row["prompt"]])[0]) == chat
    file.write_text('{"chosen": "no turns", "rejected": "none"}\n')
    line = error_of(["generate", "--model.path", str(tiny_model), "--prompts", str(file)])
    assert line.startswith(f"{file}, row 1: field 'prompt' is missing, and field 'chosen' is not a transcript")


def test_an_answer_is_reported_when_it_is_complete(tiny_model):
    """In a batch, answers that end early do not wait for the others."""
    model, params = jaxalign.load_model(tiny_model)
    tokenizer = byte_tokenizer()
    settings = {"max_new_tokens": 200, "key": jax.random.key(1), "num_completions": 8, "segment": 8}
    pieces = list(stream_text(model, params, tokenizer, [tokenizer("what?")["input_ids"]], **settings))
    last = {number: at for at, (number, _, is_last) in enumerate(pieces) if is_last}
    assert sorted(last) == list(range(8))
    assert min(last.values()) < len(pieces) // 2, "no answer ended early"


def test_generate_text_takes_strings_chats_and_ids(tiny_model, generated):
    model, params = jaxalign.load_model(tiny_model)
    tokenizer = jaxalign.load_tokenizer(tiny_model)
    settings = {"key": jax.random.key(0), "max_new_tokens": 12}
    chat = [{"role": "user", "content": "what?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    for prompt in ("what?", chat, ids):
        ((text,),) = generate_text(model, params, tokenizer, [prompt], **settings)
        assert text + "\n" == generated("--prompt", "what?")
    assert generate_text(model, params, tokenizer, [], **settings) == []
    # The random numbers belong to the prompt's place and the completion, whatever the batches.
    several = [
        generate_text(model, params, tokenizer, ["a", "b", chat], num_completions=2, batch_size=size, **settings)
        for size in (1, 2, 8)
    ]
    assert several[0] == several[1] == several[2]
    assert [len(texts) for texts in several[0]] == [2, 2, 2]
    greedy = generate_text(model, params, tokenizer, ["a"], num_completions=2, temperature=0.0, **settings)
    assert greedy[0][0] == greedy[0][1]
    plain = generate_text(model, params, tokenizer, ["what?"], chat=False, **settings)
    assert plain != [[generated("--prompt", "what?").rstrip("\n")]]


@pytest.mark.parametrize(
    ("prompt", "settings", "words"),
    [
        ([{"role": "user"}], {}, "Prompt 2: message 1 of field 'messages' is malformed"),
        ([{"role": "pilot", "content": "x"}], {}, "Prompt 2: message 1 of field 'messages' has the role 'pilot'"),
        ([], {}, "Prompt 2 is empty"),
        ("x", {"max_new_tokens": 4000}, "plus max_new_tokens is 40"),
        ([10**6], {}, "The tokenizer makes token id 1000000"),
        ("x", {"top_p": 2.0}, "top_p must be above 0"),
    ],
)
def test_generate_text_refuses(tiny_model, prompt, settings, words):
    model, params = jaxalign.load_model(tiny_model)
    tokenizer = jaxalign.load_tokenizer(tiny_model)
    with pytest.raises(UserError, match=words):
        generate_text(
            model, params, tokenizer, ["x", prompt], **{"key": jax.random.key(0), "max_new_tokens": 2} | settings
        )


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("min_p", "2", "min_p must be 0 or more and at most 1, it is 2.0"),
        ("num_completions", "0", "num_completions is 0. Give finite numbers, 1 or more"),
        ("stop", '[""]', "The stop string '' cannot end a text"),
    ],
)
def test_settings_that_make_no_sense(tiny_model, error_of, setting, value, words):
    assert words in error_of(["generate", "--model.path", str(tiny_model), "--prompt", "x", f"--{setting}", value])


def test_the_configuration_that_comes_with_jaxalign(generated, tiny_model):
    config = Path(jaxalign.__file__).parents[1] / "configs/generate_smollm2.yaml"
    once, again = (
        generated("--config", str(config), "--model.path", str(tiny_model), "--max_new_tokens", "6") for _ in range(2)
    )
    assert once == again
    assert once.strip()
