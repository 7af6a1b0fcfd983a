"""Qwen-Bailian's form: chains of turns as sessions, and what is no chain, no block and no chat."""

import json
import re
from pathlib import Path

import pytest

from framework.paths import ROOT
from framework.trace.bailian import read_bailian
from framework.trace.recorded import recorded
from framework.trace.source import TraceSource

CYCLE = [(5, 6, 0.0, 9, 9, 1), (6, 5, 1.0, 9, 9, 2)]
TOO_EARLY = [(5, 6, 0.0, 9, 9, 2), (6, -1, 1.0, 9, 9, 1)]
LEAP = [(5, -1, 0.0, 9, 9, 1), (6, 5, 1.0, 9, 9, 3)]
SAMPLE = ROOT / "traces" / "sample_bailian.jsonl"


def read(folder: Path, *rows: tuple[int, int, float, int, int, int], **changed: object):
    """Of (chat, parent, timestamp, input, output, turn); the blocks are 0, 1, 2, …"""
    names = ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "turn")
    lines = []
    for row in rows:
        named = dict(zip(names, row, strict=True)) | {"type": "text", "hash_ids": list(range(-(-row[3] // 16)))}
        lines.append(json.dumps(named | changed))
    path = folder / "trace.jsonl"
    path.write_text("\n".join(lines))
    return read_bailian(path)


def test_a_session_is_a_chain_of_turns_and_a_branch_begins_another_one(tmp_path):
    trace = read(
        tmp_path,
        (5, -1, 0.0, 40, 10, 1),
        (6, 5, 1.5, 60, 10, 2),
        (7, 5, 2.0, 61, 10, 2),
        (8, 6, 3.0, 80, 10, 3),
        (9, 7, 4.0, 80, 10, 3),
        (4, 3, 5.0, 80, 10, 7),  # its parent is not in the file
    )
    sessions = [(one.session_id, one.turn, one.arrival_time) for one in trace.requests]
    assert sessions == [("5", 1, 0.0), ("5", 2, 1.5), ("7", 2, 2.0), ("5", 3, 3.0), ("7", 3, 4.0), ("4", 7, 5.0)]
    assert trace.requests[0].prefix_ids == (0, 1, 2)
    assert {one.prefix_block_size for one in trace.requests} == {16}
    assert trace.unread == ()


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (CYCLE, "row 1 (line 1), column 'parent_chat_id': the parents of chat 5 are a cycle: 5 → 6 →"),
        ([(5, 5, 0.0, 9, 9, 1)], "column 'parent_chat_id': the parents of chat 5 are a cycle: 5 → 5"),
        (TOO_EARLY, "column 'parent_chat_id': chat 5 comes before its parent 6: a turn before its first"),
        ([(5, -1, 0.0, 9, 9, 2)], "column 'turn': turn 2 of chat 5 follows no turn"),
        (LEAP, "row 2 (line 2), column 'turn': turn 3 of chat 6 follows turn 1"),
        ([(5, -1, 0.0, 9, 9, 1), (5, -1, 1.0, 9, 9, 1)], "column 'chat_id': chat 5 is there twice"),
        ([(5, -2, 0.0, 9, 9, 1)], "column 'parent_chat_id': '-2' is not a whole number of at least -1"),
    ],
)  # fmt: skip
def test_what_is_no_chain_is_refused_with_its_place(tmp_path, rows, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        read(tmp_path, *rows)


def test_blocks_cover_the_prompt_and_no_more(tmp_path):
    with pytest.raises(ValueError, match=r"'hash_ids': 1 ids do not cover the prompt, which has 2 full blocks of 16"):
        read(tmp_path, (5, -1, 0.0, 40, 10, 1), hash_ids=[3])
    with pytest.raises(ValueError, match="'hash_ids': 4 ids, but the prompt has only 3 block"):
        read(tmp_path, (5, -1, 0.0, 40, 10, 1), hash_ids=[3, 4, 5, 6])
    assert read(tmp_path, (5, -1, 0.0, 40, 10, 1), hash_ids=[3, 4]).requests[0].prefix_ids == (3, 4)
    with pytest.raises(ValueError, match="block_size=0 is not a whole number of at least 1"):
        read_bailian(SAMPLE, block_size=0)
    with pytest.raises(ValueError, match="ids do not cover the prompt"):
        read_bailian(SAMPLE, block_size=8)


def test_the_sample_replays_as_recorded_and_closed():
    given = recorded(reader=read_bailian, path=SAMPLE, turns="recorded")
    assert len(given.requests) == 40
    assert len({one.session_id for one in given.requests}) < 20
    loop = recorded(reader=read_bailian, path=SAMPLE, turns="closed")
    TraceSource(loop.requests)
    assert len(loop.requests) == 40
    assert all(5 <= one.think_time <= 60 for one in loop.requests if one.think_time is not None)
