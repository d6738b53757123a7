"""``jaxalign generate``: text as it appears, stop strings, several answers, and the configuration of the repository."""

import json
from pathlib import Path

import pytest

import jaxalign
from jaxalign.cli import main
from jaxalign.data.encode import Encoder
from jaxalign.rollout.text import TextSoFar, encode_prompt, pieces
from tests.cli.conftest import byte_tokenizer


@pytest.fixture
def said(tiny_model, capsys):
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
    stream = TextSoFar(tokenizer)
    shown = [stream.more(ids[:length], length == len(ids)) for length in range(1, len(ids) + 1)]
    assert "".join(shown) == text
    assert not any("\ufffd" in piece for piece in shown)
    assert shown.count("") == 1 + 3  # the first bytes of ï and of 🙂
    cut = TextSoFar(tokenizer)
    assert [cut.more(ids[:3], False), cut.more(ids[:3], True)] == ["na", "\ufffd"]  # the end may be within one


def test_a_single_answer_comes_token_by_token_and_is_the_whole_one(tiny_model, said, monkeypatch):
    flushed = []
    monkeypatch.setattr("builtins.print", lambda *parts, **options: flushed.append((parts, options)))
    assert main(["generate", "--model.path", str(tiny_model), "--max_new_tokens", "12", "--prompt", "what?"]) == 0
    monkeypatch.undo()
    assert len(flushed) > 3
    assert all(options["flush"] for _, options in flushed)
    assert "".join(part + options["end"] for (part,), options in flushed) == said("--prompt", "what?")


def test_stop_ends_an_answer_behind_the_stop_string(said):
    free = said("--prompt", "what?").rstrip("\n")
    cut = next(character for character in free[2:] if character != "\ufffd")
    assert said("--prompt", "what?", "--stop", json.dumps([cut])).rstrip("\n") == free[: free.index(cut) + 1]


def test_several_answers_to_each_prompt_of_a_file(said, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"prompt": "one?"}\n{"prompt": "two?"}\n{"prompt": "three?"}\n')
    rows = []
    for batch_size in ("1", "3"):
        out = tmp_path / f"{batch_size}.jsonl"
        arguments = ("--num_completions", "2", "--output", str(out), "--batch_size", batch_size)
        shown = said("--prompts", str(questions), *arguments)
        rows.append([json.loads(line) for line in out.read_text().splitlines()])
        for row in rows[-1]:
            assert f"prompt: {row['prompt']}\nanswer: {row['completion']}\n" in shown
    assert rows[0] == rows[1]
    assert [row["prompt"] for row in rows[0]] == ["one?", "one?", "two?", "two?", "three?", "three?"]
    assert len({row["completion"] for row in rows[0]}) == 6


def test_prompts_of_transcripts_are_chats_and_a_limit_takes_the_first_ones(said, tmp_path, tiny_model, told):
    opening = "\n\nHuman: sky?\n\nAssistant: blue\n\nHuman: sea?\n\nAssistant:"
    file, out = tmp_path / "hh.jsonl", tmp_path / "out.jsonl"
    rows = [{"chosen": f"{opening} deep", "rejected": f"{opening} red"}] * 2
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said("--prompts", str(file), "--limit", "1", "--output", str(out))
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["prompt"] == opening
    tokenizer = jaxalign.load_tokenizer(tiny_model)
    chat = "<|user|>sky?<|end|><|assistant|>blue<|end|><|user|>sea?<|end|><|assistant|>"
    assert tokenizer.decode(encode_prompt(Encoder(tokenizer), row["prompt"], True, 1)) == chat
    file.write_text('{"chosen": "no turns", "rejected": "none"}\n')
    line = told(["generate", "--model.path", str(tiny_model), "--prompts", str(file)])
    assert line.startswith(f"{file}, row 1: there is no field 'prompt', and field 'chosen' is not a transcript")


def test_an_answer_is_told_when_it_is_done(tiny_model):
    """In a batch, answers that end early do not wait for the others."""
    import jax

    model, params = jaxalign.load_model(tiny_model)
    tokenizer = byte_tokenizer()
    settings = {"max_new_tokens": 200, "key": jax.random.key(1), "num_completions": 8, "segment": 8}
    told = list(pieces(model, params, tokenizer, [tokenizer("what?")["input_ids"]], **settings))
    last = {number: at for at, (number, _, done) in enumerate(told) if done}
    assert sorted(last) == list(range(8))
    assert min(last.values()) < len(told) // 2, "no answer ended early"


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("min_p", "2", "min_p must be 0 or more and at most 1, it is 2.0"),
        ("num_completions", "0", "num_completions must be 1 or more, it is 0"),
        ("stop", '[""]', "the stop string '' can end nothing"),
    ],
)
def test_settings_that_make_no_sense(tiny_model, told, setting, value, words):
    assert words in told(["generate", "--model.path", str(tiny_model), "--prompt", "x", f"--{setting}", value])


def test_the_configuration_that_comes_with_jaxalign(said, tiny_model):
    config = Path(jaxalign.__file__).parents[1] / "configs/generate_smollm2.yaml"
    once, again = (
        said("--config", str(config), "--model.path", str(tiny_model), "--max_new_tokens", "6") for _ in range(2)
    )
    assert once == again
    assert once.strip()
