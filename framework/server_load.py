"""What a server has to do, as routers see it: at once, or some seconds later, as reports over a network are."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from framework.contracts import ServerState
from framework.core import Sequence


@dataclass(frozen=True, slots=True)
class Report:
    """A server's state at some time."""

    num_unfinished: int
    num_tokens: int
    num_free_seats: int
    num_slots: int
    adapter_ids: frozenset[str]

    def has_adapter(self, adapter_id: str) -> bool:
        return adapter_id in self.adapter_ids


class ServerLoad:
    """A server's state now, with room for `num_slots` tokens; `seen_at` is what it was `view_delay` seconds earlier.

    `num_tokens_ahead` says how many tokens there are of which it has not been told yet.
    """

    def __init__(
        self,
        num_seats: int,
        view_delay: float = 0.0,
        num_slots: int = 0,
        num_tokens_ahead: Callable[[], int] = lambda: 0,
    ) -> None:
        self.num_seats, self.view_delay, self.num_slots = num_seats, view_delay, num_slots
        self.num_tokens_ahead = num_tokens_ahead
        self.num_unfinished = self.num_told_tokens = 0
        self.num_users: Counter[str] = Counter()  # unfinished requests by their adapter
        self.adapter_in: dict[int, str] = {}  # by slot
        self.reports: deque[tuple[float, Report]] = deque([(0.0, self.report())])

    @property
    def num_tokens(self) -> int:
        return self.num_told_tokens + self.num_tokens_ahead()

    @property
    def num_free_seats(self) -> int:
        return max(0, self.num_seats - self.num_unfinished)

    def has_adapter(self, adapter_id: str) -> bool:
        return adapter_id in self.num_users or adapter_id in self.adapter_in.values()

    def add(self, sequence: Sequence, now: float) -> None:
        self.num_unfinished += 1
        self.num_told_tokens += sequence.request.num_prompt_tokens + len(sequence.output_token_ids)
        if sequence.request.adapter_id is not None:
            self.num_users[sequence.request.adapter_id] += 1
        self.note(now)

    def step_ended(self, num_output_tokens: int, adapter_loads: dict[int, str], now: float) -> None:
        """Of the finished sequences `finish` is told after this."""
        self.num_told_tokens += num_output_tokens
        self.adapter_in |= adapter_loads
        self.note(now)

    def finish(self, sequence: Sequence, now: float) -> None:
        self.num_unfinished -= 1
        self.num_told_tokens -= sequence.request.num_prompt_tokens + len(sequence.output_token_ids)
        adapter_id = sequence.request.adapter_id
        if adapter_id is not None:
            self.num_users[adapter_id] -= 1
            if not self.num_users[adapter_id]:
                del self.num_users[adapter_id]
        self.note(now)

    def report(self) -> Report:
        adapter_ids = frozenset([*self.num_users, *self.adapter_in.values()])
        return Report(self.num_unfinished, self.num_tokens, self.num_free_seats, self.num_slots, adapter_ids)

    def note(self, now: float) -> None:
        """Keep what a router will see when the delay is over."""
        if self.view_delay:
            if self.reports[-1][0] == now:
                self.reports.pop()
            self.reports.append((now, self.report()))
            self.forget_before(now - self.view_delay)

    def seen_at(self, now: float) -> ServerState:
        if not self.view_delay:
            return self
        self.forget_before(now - self.view_delay)
        return self.reports[0][1]

    def forget_before(self, time: float) -> None:
        """Reports that a newer one of at most this time stands for."""
        while len(self.reports) > 1 and self.reports[1][0] <= time:
            self.reports.popleft()
