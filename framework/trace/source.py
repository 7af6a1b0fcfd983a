"""A trace as a source of sequences: every request arrives when the trace says, whatever finishes."""

from collections.abc import Iterator

from framework.core import Request, Sequence


class TraceSource:
    """The requests of a trace, sorted by arrival time."""

    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests

    def begin(self) -> Iterator[Sequence]:
        return map(Sequence, self.requests)

    def follow(self, finished: Sequence, now: float) -> tuple[Sequence, ...]:
        return ()
