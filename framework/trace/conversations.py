"""Reader of chats as text, in ShareGPT's form: JSON of conversations whose messages say who speaks.

The text goes through the tokenizer of the model that is to answer it. There are no times: give `trace.arrivals`.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from framework.checks import shown, whole
from framework.core import Request, Trace
from framework.trace.columns import read_bytes

QUESTIONS, ANSWERS = ("system", "human", "user"), ("gpt", "assistant")
UNANSWERED = "conversations' ends that have no answer"


class Encoder(Protocol):
    """What is asked of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...


def read_conversations(
    path: str | Path,
    tokenizer: Callable[[], Encoder],
    think_time: float = 5.0,
    num_conversations: int | None = None,
) -> Trace:
    """Conversations as sessions, all at 0 s; each later turn has the `think_time` (s), and the text as recorded.

    The file is a list of {"id": …, "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text},
    …]}. A turn is an answer and what was said since the one before; its prompt is all text before it, piece by piece
    through the tokenizer, with no template. A message without tokens is as if it were not there. What follows the last
    answer is counted in `dropped`. `num_conversations` reads only the first so many (None: all).
    """
    if not (math.isfinite(think_time) and think_time >= 0):
        raise ValueError(f"think_time={think_time!r} is not a finite number of at least 0")
    chats = load_chats(Path(path))
    if num_conversations is not None:
        chats = chats[: whole("num_conversations", num_conversations)]
    encode = pieces_of(tokenizer())
    requests: list[Request] = []
    num_unanswered = 0
    for index, chat in enumerate(chats):
        turns, is_unanswered = split_turns(messages_of(Path(path), index, chat), encode)
        num_unanswered += is_unanswered
        for turn, (prompt, num_output_tokens) in enumerate(turns, start=1):
            request = Request(
                request_id=len(requests),
                arrival_time=0.0,
                num_prompt_tokens=len(prompt),
                num_output_tokens=num_output_tokens,
                session_id=f"chat-{index}",
                prompt_token_ids=prompt,
                turn=turn,
                think_time=None if turn == 1 else think_time,
            )
            requests.append(request)
    if not requests:
        raise ValueError(f"{path}: no conversation has a question and an answer")
    return Trace(requests, {UNANSWERED: num_unanswered} if num_unanswered else {})


def split_turns(
    messages: Iterable[tuple[str, str]], encode: Callable[[str, bool], list[int]]
) -> tuple[list[tuple[tuple[int, ...], int]], bool]:
    """(prompt, tokens of its answer) of every turn, and whether something is said after the last answer."""
    said: list[int] = []
    turns = []
    has_question = is_unanswered = False
    for speaker, text in messages:
        tokens = encode(text, not said)
        if not tokens:
            continue
        is_answer = speaker in ANSWERS and has_question
        if is_answer:
            turns.append((tuple(said), len(tokens)))
        has_question = not is_answer and (has_question or speaker in QUESTIONS)
        is_unanswered = not is_answer
        said += tokens
    return turns, is_unanswered


def pieces_of(tokenizer: Encoder) -> Callable[[str, bool], list[int]]:
    """Encodes a text; special tokens that begin every text are left out unless it is the first one."""
    begin = tokenizer.encode("")

    def encode(text: str, is_first: bool) -> list[int]:
        tokens = tokenizer.encode(text) if text else []
        is_begun = bool(begin) and tokens[: len(begin)] == begin
        return tokens[len(begin) :] if is_begun and not is_first else tokens

    return encode


def load_chats(path: Path) -> list[Any]:
    try:
        chats = json.loads(read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(chats, list) or not chats:
        raise ValueError(f"{path} is not a list of conversations: {shown(chats)}")
    return chats


def messages_of(path: Path, index: int, chat: Any) -> Iterator[tuple[str, str]]:
    """(who speaks, the text); ValueError naming the conversation and the message, both from 1."""
    messages = chat.get("conversations") if isinstance(chat, dict) else None
    if not isinstance(messages, list):
        raise ValueError(f"{path}: conversation {index + 1} has no list of conversations: {shown(chat)}")
    for number, message in enumerate(messages, start=1):
        place = f"{path}: conversation {index + 1}, message {number}"
        speaker, text = (message.get(key) if isinstance(message, dict) else None for key in ("from", "value"))
        if not isinstance(speaker, str) or not isinstance(text, str):
            raise ValueError(f"{place} is not {{'from': …, 'value': text}}: {shown(message)}")
        if speaker not in QUESTIONS + ANSWERS:
            raise ValueError(f"{place}: from={shown(speaker)} is not one of {', '.join(QUESTIONS + ANSWERS)}")
        yield speaker, text
