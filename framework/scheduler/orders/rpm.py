"""A limit to the requests of each client: what is over it waits (the requests per minute of APIs; VTC's baseline)."""

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import chain
from math import inf

from framework.checks import positive, whole
from framework.contracts import Order
from framework.core import Sequence

Held = tuple[float, int, Sequence]  # when it is let in (s), its request's id, and itself


class RequestLimit(Order):
    """Lets in `limit` requests of each client in any `window` seconds, and serves these first come, first served.

    The others are held back, in the order in which they came, and seats may stay free. The source refuses them instead;
    nothing is refused here, so a client's backlog goes on into the time after. Requests without a client_id are one
    client's.
    """

    uses = ("client_id",)

    def __init__(self, *, limit: int, window: float) -> None:
        self.limit, self.window = whole("order.limit", limit), positive("order.window", window)
        self.let_in: dict[str | None, deque[float]] = {}  # when the last ones of each client were, or will be (s)
        self.held: list[Held] = []  # a heap
        self.ready: deque[Sequence] = deque()

    def __len__(self) -> int:
        return len(self.ready) + len(self.held)

    def __iter__(self) -> Iterator[Sequence]:
        return chain(self.ready, (sequence for _, _, sequence in sorted(self.held)))

    def __getitem__(self, index: int) -> Sequence:
        assert index == 0
        return self.ready[0] if self.ready else self.held[0][2]

    def append(self, sequence: Sequence) -> None:
        times = self.let_in.setdefault(sequence.request.client_id, deque(maxlen=self.limit))
        time = sequence.arrival_time
        if len(times) == self.limit:
            time = max(time, times[0] + self.window)
        times.append(time)
        heappush(self.held, (time, sequence.request.request_id, sequence))

    def appendleft(self, sequence: Sequence) -> None:
        self.ready.appendleft(sequence)

    def popleft(self) -> Sequence:
        return self.ready.popleft()

    def remove(self, sequence: Sequence) -> None:
        self.ready.remove(sequence)

    def update(self, now: float) -> None:
        while self.held and self.held[0][0] <= now:
            self.ready.append(heappop(self.held)[2])
        self.wake_time = self.held[0][0] if self.held else inf

    def has_turn(self, first: Sequence) -> bool:
        return bool(self.ready)
