"""Streams: the records that reading gives, one by one, with the same order, a split of their own, and a place."""

import gzip
import itertools
import json

import pytest

from jaxalign.data.kinds import Prompt
from jaxalign.data.records import is_held_out, read_records, stream_records
from jaxalign.errors import UserError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    rows = [json.dumps({"prompt": f"{i % 40}?", "id": i}) for i in range(60)]
    path.write_bytes(gzip.compress("\n".join([*rows[:20], "{", *rows[20:]]).encode()))
    return path


def test_a_stream_is_what_reading_gives(file):
    bad = []
    streamed = list(stream_records(Prompt, file, on_error="skip", on_bad=bad.append))
    records, report = read_records(Prompt, file, on_error="skip")
    assert streamed == records
    assert tuple(bad) == report.skipped
    with pytest.raises(UserError, match=r"a\.jsonl\.gz, row 21: the row is not JSON"):
        list(stream_records(Prompt, file))


def test_nothing_is_read_before_its_turn(file):
    assert len(list(itertools.islice(stream_records(Prompt, file), 20))) == 20  # the bad row is behind them
    file.write_bytes(file.read_bytes()[:-20])
    assert next(stream_records(Prompt, file)).row == 1
    with pytest.raises(UserError, match="ends early"):
        list(stream_records(Prompt, file, on_error="skip"))


def test_a_stream_continues_where_it_stopped(file):
    whole = list(stream_records(Prompt, file, on_error="skip"))
    for start in (0, 7, 21, 61, 99):
        rest = list(stream_records(Prompt, file, on_error="skip", start=start))
        assert rest == [record for record in whole if record.row > start]


def test_no_prompt_is_on_both_sides_of_a_streams_split(file):
    records = list(stream_records(Prompt, file, on_error="skip"))
    held = [record for record in records if is_held_out(record, share=0.3, seed=1)]
    train = [record for record in records if not is_held_out(record, share=0.3, seed=1)]
    assert held
    assert train
    assert not {record.prompt for record in held} & {record.prompt for record in train}
    assert [is_held_out(record, share=0.3, seed=2) for record in records] != [
        is_held_out(record, share=0.3, seed=1) for record in records
    ]
    assert not any(is_held_out(record, share=0.0) for record in records)
    assert all(is_held_out(record, share=1.0) for record in records)


def test_a_hub_data_set_is_streamed(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(identifier, **options):
        asked.update(options)
        return datasets.IterableDataset.from_generator(lambda: ({"prompt": f"{i}?"} for i in itertools.count()))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    first = list(itertools.islice(stream_records(Prompt, "some/prompts", split="train"), 3))
    assert [(record.prompt, record.place) for record in first] == [
        (f"{i}?", f"some/prompts, row {i + 1}") for i in range(3)
    ]
    assert asked["streaming"] is True
