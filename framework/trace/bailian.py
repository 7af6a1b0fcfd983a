"""Reader of Qwen-Bailian's traces: chats whose turns name the one before them, with hashed blocks of 16 tokens."""

from collections.abc import Sequence
from itertools import repeat
from pathlib import Path

from framework.core import Trace
from framework.trace.columns import Table, fault, load_json_lines, prefix_ids, timestamps, whole_numbers
from framework.trace.files import as_requests

NO_PARENT = -1
REQUIRED = ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "turn", "hash_ids")
LOGGED = ("type",)  # what a request was, not what it asks for


def read_bailian(path: str | Path, block_size: int = 16) -> Trace:
    """JSON lines; `timestamp` is in seconds, `hash_ids` name the blocks of `block_size` tokens of the whole prompt.

    A chat's id is that of one request; `parent_chat_id` is the turn before it, or -1. A session is a chain of such
    turns, and has the id of its first. Where a turn is followed by several, the first of them goes on; each other one
    begins a session, as does a turn whose parent is not in the file. Source: Alibaba Cloud's Qwen-Bailian traces.
    """
    table = load_json_lines(Path(path), REQUIRED, optional=LOGGED)
    chats = whole_numbers(table, "chat_id", at_least=0).tolist()
    parents = whole_numbers(table, "parent_chat_id", at_least=NO_PARENT).tolist()
    turns = whole_numbers(table, "turn").tolist()
    prompts = whole_numbers(table, "input_length")
    requests = as_requests(
        arrival_time=timestamps(table, "timestamp"),
        num_prompt_tokens=prompts,
        num_output_tokens=whole_numbers(table, "output_length"),
        session_id=sessions_of(table, chats, parents, turns),
        turn=turns,
        prefix_ids=prefix_ids(table, "hash_ids", prompts, block_size, must_cover=True),
        prefix_block_size=repeat(block_size),
    )
    return Trace(requests, unread=table.unread)


def sessions_of(table: Table, chats: Sequence[int], parents: Sequence[int], turns: Sequence[int]) -> list[str]:
    """The session of every row. ValueError naming the row whose parent is no turn before it."""
    parent_of = dict(zip(chats, parents, strict=True))
    turn_of: dict[int, int] = {}  # of the rows so far
    session_of: dict[int, str] = {}
    continued: set[int] = set()
    for position, (chat, parent, turn) in enumerate(zip(chats, parents, turns, strict=True)):
        if chat in turn_of:
            raise fault(table, position, "chat_id", f"chat {chat} is there twice")
        if parent in parent_of and parent not in turn_of:
            raise fault(table, position, "parent_chat_id", problem_of(chat, parent_of))
        if parent == NO_PARENT and turn != 1:
            raise fault(table, position, "turn", f"turn {turn} of chat {chat} follows no turn")
        if parent in turn_of and turn != turn_of[parent] + 1:
            raise fault(table, position, "turn", f"turn {turn} of chat {chat} follows turn {turn_of[parent]}")
        goes_on = parent in turn_of and parent not in continued
        session_of[chat] = session_of[parent] if goes_on else str(chat)
        continued.add(parent)
        turn_of[chat] = turn
    return list(session_of.values())


def problem_of(chat: int, parent_of: dict[int, int]) -> str:
    """What is wrong with a chat whose parent is in a later row, or itself."""
    cycle = [chat]
    while (parent := parent_of.get(cycle[-1], NO_PARENT)) != NO_PARENT and parent not in cycle:
        cycle.append(parent)
    if parent == chat:
        return f"the parents of chat {chat} are a cycle: {' → '.join(map(str, [*cycle[:10], chat]))}"
    return f"chat {chat} comes before its parent {parent_of[chat]}: a turn before its first"
