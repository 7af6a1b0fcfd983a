"""A trace as a source of sequences: its requests arrive when it says, or follow the turn of their session before."""

from array import array
from collections.abc import Iterator
from itertools import islice
from typing import cast

import numpy as np

from framework.core import Request, Sequence
from framework.trace.transforms import continued

MAX_KNOWN = 4096  # answers that are looked up


class TraceSource:
    """The requests of a trace, sorted by arrival time.

    A request with a think time follows the turn before it; any other one begins. With `max_concurrency` no more of
    those that began are in progress at once, each with all that follow it. The next one waits, outside the servers,
    until one of them is over. With `compacts` what has finished keeps its tokens as arrays of numbers. Raises
    ValueError for a turn that would follow one that is not there.
    """

    def __init__(self, requests: list[Request], max_concurrency: int | None = None, *, compacts: bool = False) -> None:
        self.requests, self.max_concurrency, self.compacts = requests, max_concurrency, compacts
        self.answers: dict[bytes, array[int]] = {}
        self.turns = {(request.session_id, request.turn): request for request in requests}
        for request in requests:
            if request.think_time is not None and (request.session_id, request.turn - 1) not in self.turns:
                raise ValueError(
                    f"request {request.request_id}, turn {request.turn} of session {request.session_id!r}, has a think "
                    "time, and there is no turn before it"
                )
        self.has_turns = any(request.think_time is not None for request in requests)
        self.starts = (request for request in requests if request.think_time is None)

    @property
    def follows(self) -> bool:
        return self.max_concurrency is not None or self.has_turns

    def begin(self) -> Iterator[Sequence]:
        return map(Sequence, islice(self.starts, self.max_concurrency))

    def follow(self, finished: Sequence, now: float) -> Iterator[Sequence]:
        if self.compacts:
            compact(finished, self.answers)
        turn = self.turns.get((finished.request.session_id, finished.request.turn + 1))
        if turn is not None and turn.think_time is not None:
            yield Sequence(self.behind(finished, turn), now + turn.think_time, finished)
        elif self.max_concurrency is not None:
            for start in islice(self.starts, 1):
                yield Sequence(start, max(now, start.arrival_time))

    def behind(self, finished: Sequence, turn: Request) -> Request:
        """The turn behind the conversation as it really is, which may be shorter than the trace's."""
        before = self.turns[turn.session_id, turn.turn - 1]
        said = finished.request.prompt_token_ids
        if said is not None:
            said = (*said, *finished.output_token_ids)
        return continued(turn, before, finished.request.num_prompt_tokens + len(finished.output_token_ids), said)


def compact(finished: Sequence, known: "dict[bytes, array[int]]") -> None:
    """Keep its tokens and their times, of which no more come, as arrays of numbers: 12 bytes for each.

    Equal answers, as those of a cost model are that are equally long, share one array of the first ones `known`. A
    token id is a Python int still when it is read, as the names of blocks are made of these.
    """
    answer = array("i", finished.output_token_ids)
    content = answer.tobytes()
    if len(known) < MAX_KNOWN or content in known:
        answer = known.setdefault(content, answer)
    finished.output_token_ids = cast(list[int], answer)
    finished.token_times = cast(list[float], np.array(finished.token_times))
