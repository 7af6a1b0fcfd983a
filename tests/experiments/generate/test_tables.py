"""The rows of generated outputs."""

import pytest

from experiments.generate.tables import generation, generations_table, time_table
from framework.core import Request, Sequence
from framework.models.tokenizer import ByteTokenizer


def make_sequence(text, times, **options):
    sequence = Sequence(Request(0, 0.0, 2, len(text), prompt_token_ids=tuple(b"ab"), **options))
    sequence.output_token_ids, sequence.token_times = list(text), times
    return sequence


def test_a_text_is_without_its_stop_token():
    sequence = make_sequence(b"cd\0", [0.5, 0.75, 1.0], stop_token_ids=frozenset({0}))
    record = generation(sequence, ByteTokenizer())
    assert record["prompt_token_ids"] == list(b"ab")
    assert record["output_token_ids"] == list(b"cd\0")
    assert record["text"] == "cd"
    assert generation(make_sequence(b"cd\0", []), ByteTokenizer())["text"] == "cd\0"
    assert generation(sequence, None)["text"] is None


def test_a_row_has_the_first_tokens_time_and_the_rate():
    records = [generation(make_sequence(b"cd", [0.5, 1.0], adapter_id="html"), ByteTokenizer())]
    assert generations_table(records, ByteTokenizer()).to_numpy().tolist() == [["html", "'ab'", "'cd'", 500.0, 2.0]]
    assert generations_table(records, None)[["prompt", "output"]].to_numpy().tolist() == [["'[97, 98]'", "'[99, 100]'"]]


def test_a_tokens_time_is_since_the_one_before():
    times = time_table([make_sequence(b"cd", [0.5, 0.75]), make_sequence(b"c", [1.0], adapter_id="html")])
    assert times[["output", "token"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 1]]
    assert times["elapsed"].tolist() == pytest.approx([0.5, 0.25, 1.0])
    assert times["adapter"].fillna("none").tolist() == ["none", "none", "html"]
