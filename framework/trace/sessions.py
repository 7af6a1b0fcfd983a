"""Sessions of a trace: their turns' numbers, and whether a turn waits for the answer before it.

A prompt counts the whole conversation so far, in a file and in a trace: a turn's new text is what its prompt has more
than the prompt and the output before it.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Literal, get_args

from framework.core import Request, Trace
from framework.trace.columns import Table, fault, whole_numbers
from framework.trace.transforms import keep

Turns = Literal["recorded", "closed"]
CUT = "turns from the first one on whose prompt does not hold the conversation before it"


def turn_numbers(session_ids: Iterable[str | None]) -> list[int]:
    """The turn of every request, from 1, in the order in which its session's come; 1 without a session."""
    num_turns: dict[str, int] = {}
    turns = []
    for session_id in session_ids:
        turn = 1
        if session_id is not None:
            turn = num_turns[session_id] = num_turns.get(session_id, 0) + 1
        turns.append(turn)
    return turns


def read_turns(table: Table, session_ids: list[str | None], column: str) -> list[int]:
    """A column of turns. They have to be the `turn_numbers`; ValueError naming the row where they are not."""
    given, expected = whole_numbers(table, column).tolist(), turn_numbers(session_ids)
    for position, (turn, next_turn, session_id) in enumerate(zip(given, expected, session_ids, strict=True)):
        if turn == next_turn:
            continue
        if session_id is None:
            raise fault(table, position, column, f"turn {turn} of no session: without a session_id it is 1")
        place = "before its first" if next_turn == 1 else f"where turn {next_turn} is next"
        raise fault(table, position, column, f"turn {turn} of session {session_id!r} comes {place}")
    return given


def check_think_times(
    table: Table,
    names: dict[str, str],
    session_ids: list[str | None],
    turns: list[int],
    think_times: list[float | None],
    lengths: Iterable[tuple[int, int]],
) -> None:
    """ValueError naming the row that breaks a rule.

    A session's first turn has no think time; every other one has one, and a prompt longer than the conversation so far.
    `lengths` are the (prompt, output) tokens of each row, `names` what the file calls its columns.
    """
    said: dict[str | None, int] = {}  # tokens of each session so far
    for position, (session_id, turn, time, (num_prompt_tokens, num_output_tokens)) in enumerate(
        zip(session_ids, turns, think_times, lengths, strict=True)
    ):
        name = f"turn {turn} of session {session_id!r}"
        if turn == 1 and time is not None:
            whose = "a request without a session" if session_id is None else name
            problem = f"{whose} follows no other turn: leave its think time empty"
            raise fault(table, position, names["think_time"], problem)
        if turn > 1 and time is None:
            raise fault(table, position, names["think_time"], f"{name} has no think time")
        if turn > 1 and num_prompt_tokens <= said[session_id]:
            problem = f"{name} has {num_prompt_tokens} tokens, and the conversation before it {said[session_id]}: "
            raise fault(table, position, names["num_prompt_tokens"], f"{problem}a prompt has it all, and new text")
        said[session_id] = num_prompt_tokens + num_output_tokens


def arrange(trace: Trace, turns: Turns | None) -> Trace:
    """The trace with its turns as recorded, each at its own time, or closed: see `closed`. None: as the file has them.

    A file that has think times is closed. If it is replayed as recorded, these have no effect.
    """
    if turns is not None and turns not in get_args(Turns):
        raise ValueError(f"turns={turns!r} is not one of {', '.join(map(repr, get_args(Turns)))}; null: as in the file")
    has_think_times = any(request.think_time is not None for request in trace.requests)
    if turns == "closed" or (turns is None and has_think_times):
        return closed(trace)
    if not has_think_times:
        return trace
    requests = [replace(request, think_time=None) for request in trace.requests]
    return replace(trace, requests=requests, unread=(*trace.unread, "think_time"))


def closed(trace: Trace) -> Trace:
    """Every session as a conversation whose next turn waits for the answer, and then for the think time.

    Where the file has none that is the time since the request before arrived, which has that answer's in it. A session
    ends before a turn whose prompt does not hold the conversation so far: such turns are counted in `dropped`. The
    `prefix_ids` of later turns go, since they name what was recorded and not what is said.
    """
    sessions: dict[int | str, list[Request]] = {}  # those without a session by their id
    for request in trace.requests:
        key = request.request_id if request.session_id is None else request.session_id
        sessions.setdefault(key, []).append(request)
    if len(sessions) == len(trace.requests):
        raise ValueError("turns=closed, but no session of the trace has a second turn")
    requests = [turn for turns in sessions.values() for turn in conversation(turns)]
    return keep(trace, requests, CUT)


def conversation(turns: list[Request]) -> list[Request]:
    """The turns of a session, each after the answer before it, as far as each prompt holds what was said before."""
    kept = turns[:1]
    for before, turn in pairwise(turns):
        if turn.num_prompt_tokens <= before.num_prompt_tokens + before.num_output_tokens:
            break
        think_time = turn.arrival_time - before.arrival_time if turn.think_time is None else turn.think_time
        kept.append(replace(turn, arrival_time=turns[0].arrival_time, think_time=think_time, prefix_ids=()))
    return kept
