"""Turns of sessions: what a file may say, closed and recorded replays of it, and what transforms make of them."""

import re
from pathlib import Path

import numpy as np
import pytest

from framework.core import Request, Trace
from framework.trace import transforms
from framework.trace.files import read_table
from framework.trace.popularity import assign_adapters, distinct
from framework.trace.recorded import recorded
from framework.trace.sessions import CUT, closed, turn_numbers

HEADER = "arrival_time,num_prompt_tokens,num_output_tokens,session_id,turn,think_time\n"
GOOD = HEADER + "0,10,5,a,1,\n1,20,5,b,1,\n2,16,3,a,2,1.5\n2,30,1,,1,\n9,26,4,b,2,0\n9,20,2,a,3,2\n"


def read(folder: Path, text: str) -> Trace:
    path = folder / "trace.csv"
    path.write_text(text)
    return read_table(path)


def summary(trace: Trace) -> list[tuple[object, ...]]:
    return [
        (one.session_id, one.turn, one.arrival_time, one.num_prompt_tokens, one.num_output_tokens, one.think_time)
        for one in trace.requests
    ]


def test_a_file_with_think_times_is_closed_unless_it_is_replayed_as_recorded(tmp_path):
    read(tmp_path, GOOD)
    path = tmp_path / "trace.csv"
    expected = [
        ("a", 1, 0.0, 10, 5, None),
        ("a", 2, 0.0, 16, 3, 1.5),
        ("a", 3, 0.0, 20, 2, 2.0),
        ("b", 1, 1.0, 20, 5, None),
        ("b", 2, 1.0, 26, 4, 0.0),
        (None, 1, 2.0, 30, 1, None),
    ]
    assert summary(recorded(reader=read_table, path=path)) == expected
    assert summary(recorded(reader=read_table, path=path, turns="closed")) == expected
    trace = recorded(reader=read_table, path=path, turns="recorded")
    assert [one.arrival_time for one in trace.requests] == [0.0, 1.0, 2.0, 2.0, 9.0, 9.0]
    assert {one.think_time for one in trace.requests} == {None}
    assert trace.unread == ("think_time",)
    with pytest.raises(ValueError, match="turns='open' is not one of 'recorded', 'closed'; null: as in the file"):
        recorded(reader=read_table, path=path, turns="open")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("0,10,5,a,2,1\n", "row 1 (line 2), column 'turn': turn 2 of session 'a' comes before its first"),
        ("0,10,5,a,1,\n1,16,5,a,3,1\n", "row 2 (line 3), column 'turn': turn 3 of session 'a' comes where turn 2 is n"),
        ("0,10,5,a,1,\n1,16,5,a,1,1\n", "row 2 (line 3), column 'turn': turn 1 of session 'a' comes where turn 2 is n"),
        ("0,10,5,,2,1\n", "row 1 (line 2), column 'turn': turn 2 of no session: without a session_id it is 1"),
        ("0,10,5,a,1,\n1,16,5,a,2,-0.5\n", "row 2 (line 3), column 'think_time': '-0.5' is not a number from 0"),
        ("0,10,5,a,1,\n1,16,5,a,2,inf\n", "row 2 (line 3), column 'think_time': 'inf' is not a number from 0"),
        ("0,10,5,a,1,3\n", "column 'think_time': turn 1 of session 'a' follows no other turn: leave its think time e"),
        ("0,10,5,,1,3\n", "column 'think_time': a request without a session follows no other turn"),
        ("0,10,5,a,1,\n1,16,5,a,2,\n", "row 2 (line 3), column 'think_time': turn 2 of session 'a' has no think time"),
        ("0,10,5,a,1,\n1,15,5,a,2,0\n", "column 'num_prompt_tokens': turn 2 of session 'a' has 15 tokens, and the con"),
    ],
)
def test_what_is_no_session_is_refused_with_its_place(tmp_path, rows, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        read(tmp_path, HEADER + rows)


@pytest.mark.parametrize("column", ["turn", "think_time"])
def test_turns_of_nobody_are_refused(tmp_path, column):
    with pytest.raises(ValueError, match=f"a column {column}, and no session_id that says whose"):
        read(tmp_path, f"arrival_time,num_prompt_tokens,num_output_tokens,{column}\n0,10,5,1\n")


def test_turns_are_counted_where_the_file_does_not_say_them():
    assert turn_numbers(["a", None, "b", "a", None, "a"]) == [1, 1, 1, 2, 1, 3]


def turn(request_id, arrival_time, num_prompt_tokens, num_output_tokens, name, number, **keywords):
    return Request(
        request_id, arrival_time, num_prompt_tokens, num_output_tokens, session_id=name, turn=number, **keywords
    )


def test_recorded_chats_are_closed_by_their_gaps_and_end_where_a_prompt_forgets_what_was_said():
    trace = Trace(
        [
            turn(0, 0.0, 10, 5, "a", 1, prefix_ids=(1,)),
            turn(1, 4.0, 16, 3, "a", 2, prefix_ids=(1,)),
            turn(2, 5.0, 10, 5, "b", 1),
            turn(3, 6.0, 19, 3, "a", 3),
            turn(4, 9.0, 40, 3, "a", 4),
        ],
        dropped={"failed": 1},
    )
    given = closed(trace)
    assert summary(given) == [("a", 1, 0.0, 10, 5, None), ("a", 2, 0.0, 16, 3, 4.0), ("b", 1, 5.0, 10, 5, None)]
    assert [one.prefix_ids for one in given.requests] == [(1,), (), ()]
    assert given.dropped == {"failed": 1, CUT: 2}
    with pytest.raises(ValueError, match="turns=closed, but no session of the trace has a second turn"):
        closed(Trace([Request(0, 0.0, 4, 4), turn(1, 1.0, 4, 4, "a", 1)]))


@pytest.fixture
def trace(tmp_path) -> Trace:
    return closed(read(tmp_path, GOOD))


def test_a_rate_is_of_session_starts(trace):
    assert transforms.mean_rate(trace) == 1.0
    faster = transforms.stretch(trace, 4.0)
    assert [one.arrival_time for one in faster.requests] == [0.0, 0.0, 0.0, 0.25, 0.25, 0.5]
    assert [one.think_time for one in faster.requests] == [None, 1.5, 2.0, None, 0.0, None]


def test_sessions_are_kept_or_left_out_as_a_whole(trace):
    assert [one.request_id for one in transforms.window(trace, 0.5, 2.0).requests] == [1, 4]
    kept = [[one.session_id for one in transforms.thin(trace, 0.7, seed).requests] for seed in range(13)]
    assert all(sessions.count("a") in (0, 3) and sessions.count("b") in (0, 2) for sessions in kept)
    assert len(set(map(tuple, kept))) > 3
    adapters = [one.adapter_id for one in assign_adapters(trace, distinct, np.random.default_rng(0)).requests]
    assert adapters == ["adapter-0"] * 3 + ["adapter-1"] * 2 + ["adapter-2"]


def test_clipped_answers_make_a_conversation_shorter_and_too_long_ones_end(trace):
    short = transforms.clip(trace, max_output_tokens=2)
    assert [one.num_prompt_tokens for one in short.requests] == [10, 13, 16, 20, 23, 30]
    ended = transforms.clip(trace, max_prompt_tokens=18)
    assert [(one.session_id, one.num_prompt_tokens) for one in ended.requests] == [
        ("a", 10),
        ("a", 16),
        ("b", 18),
        (None, 18),
    ]
    assert ended.dropped == {transforms.TOO_LONG: 2}


def test_a_clipped_text_is_what_would_have_been_said():
    text = tuple(range(20))
    requests = [
        turn(0, 0.0, 6, 5, "a", 1, prompt_token_ids=text[:6]),
        turn(1, 0.0, 14, 2, "a", 2, prompt_token_ids=text[:14], think_time=0.0),
        turn(2, 0.0, 20, 2, "a", 3, prompt_token_ids=text, think_time=0.0),
    ]
    clipped = transforms.clip(Trace(requests), max_output_tokens=1).requests
    assert clipped[1].prompt_token_ids == (*range(7), 11, 12, 13)
    assert clipped[2].prompt_token_ids == (*range(7), 11, 12, 13, 14, 16, 17, 18, 19)
