"""JSON lines with named keys: units, blocks, sessions, and names that are none."""

import json

import pytest

from framework.core import PREFIX_BLOCK_SIZE
from framework.paths import ROOT
from framework.trace.json_lines import read_json_lines

SAMPLE = ROOT / "traces" / "sample_json_lines.jsonl"
COLUMNS = {"arrival_time": "at", "num_prompt_tokens": "in", "num_output_tokens": "out"}


def test_the_sample_has_milliseconds_and_blocks_of_64_tokens():
    columns = COLUMNS | {"session_id": "who", "prefix_ids": "blocks"}
    trace = read_json_lines(SAMPLE, columns, time_unit="ms", block_size=64)
    first, second = trace.requests[:2]
    assert (first.arrival_time, second.arrival_time) == (0.0, 1.553)
    assert (second.num_prompt_tokens, second.num_output_tokens, second.session_id) == (29, 23, "user-7")
    assert (second.prefix_ids, second.prefix_block_size) == ((2,), 64)
    assert trace.unread == ()
    plain = read_json_lines(SAMPLE, COLUMNS)
    assert plain.requests[1].arrival_time == 1553.0
    assert plain.requests[1].prefix_block_size == PREFIX_BLOCK_SIZE
    assert plain.unread == ("who", "blocks")


def test_sessions_with_think_times_in_milliseconds(tmp_path):
    rows = [(0, 10, 5, "a", None), (0, 16, 5, "a", 250)]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps(dict(zip("tiosw", row, strict=True))) for row in rows))
    columns = dict(zip([*COLUMNS, "session_id", "think_time"], "tiosw", strict=True))
    requests = read_json_lines(path, columns, time_unit="ms").requests
    assert [(one.turn, one.think_time) for one in requests] == [(1, None), (2, 0.25)]
    path.write_text(path.read_text().replace("250", "-250"))
    with pytest.raises(ValueError, match=r"row 2 \(line 2\), column 'w': '-250.0' is not a number from 0"):
        read_json_lines(path, columns, time_unit="ms")


@pytest.mark.parametrize(
    ("keywords", "problem"),
    [
        ({"columns": COLUMNS | {"user": "who"}}, "columns has 'user', which is not one of arrival_time, num_prompt"),
        ({"columns": {"arrival_time": "at"}}, "columns has no num_prompt_tokens, num_output_tokens: name the file's"),
        ({"columns": COLUMNS | {"priority": "rank"}}, r"line 1: missing columns \['rank'\]; found \['at', 'blocks'"),
        ({"columns": COLUMNS, "time_unit": "us"}, "time_unit='us' is not one of s, ms"),
        ({"columns": COLUMNS, "block_size": 0}, "block_size=0 is not a whole number of at least 1"),
        ({"columns": COLUMNS | {"prefix_ids": "blocks"}, "block_size": 512}, "column 'blocks': .* ids, but the prompt"),
    ],
)
def test_names_units_and_blocks_that_are_none_are_refused(keywords, problem):
    with pytest.raises(ValueError, match=problem):
        read_json_lines(SAMPLE, **keywords)
