"""What the parts promise each other: Scheduler, Order, Engine, Router and Source, as protocols.

Standard library and core.py only; tests/contracts checks every implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from math import inf
from typing import Any, Protocol, runtime_checkable

from framework.core import Batch, Request, Sequence, SlotUse, StepResult


class Scheduler(Protocol):
    """Picks the next Batch; owns the waiting and the running sequences, their blocks and their adapters' slots.

    It is made as `make(num_blocks=…, block_size=…)`, with `num_adapter_slots=…` where the engine serves adapters,
    `blocks_per_adapter=…` where these lie in KV blocks, and with `max_model_len=…`, the engine's longest context, and
    `num_swap_blocks=…`, its room on the host, where it has that keyword. A batch counts as computed once it is
    scheduled: with an engine that runs a step ahead, the next `schedule` comes before its `postprocess`. No engine runs
    further ahead, so no other batch is unfinished then. A preempted sequence goes back to the front of `waiting`.
    """

    max_num_seqs: int
    wake_time: float  # ask again at this time (s) even if nothing arrives; inf if only an arrival can help

    @property
    def max_num_batched_tokens(self) -> int | None:
        """New tokens of a step at most, though every seat may always decode one; None: no limit of its own."""

    @property
    def waiting(self) -> Collection[Sequence]:
        """In the order of service."""

    @property
    def num_unfinished(self) -> int: ...

    @property
    def num_used_blocks(self) -> int:
        """Blocks of sequences."""

    @property
    def num_cached_blocks(self) -> int:
        """Free blocks whose contents a prefix cache keeps."""

    @property
    def num_adapter_blocks(self) -> int:
        """Blocks that hold adapters, whether sequences use these or not."""

    @property
    def slot_use(self) -> SlotUse:
        """What the slots of the KV cache are for now."""

    def check(self, request: Request) -> None:
        """Raise ValueError if the request could never be scheduled; the reason names no request: they share it."""

    def add(self, sequence: Sequence) -> None: ...

    def schedule(self, now: float) -> Batch | None:
        """The next batch at `now` (s); None: nothing can run before the next arrival or `wake_time`."""

    def postprocess(self, batch: Batch, token_ids: list[int | None], now: float) -> int:
        """Append the tokens, stamped `now`, retire what is finished, and return how many tokens were delivered."""


@runtime_checkable
class MovingScheduler(Scheduler, Protocol):
    """A scheduler that hands running sequences over to another one, with what is computed of them.

    A sequence is released at one and accepted at the other; once it is in no step in flight and its blocks are copied
    it is dropped there and joins here.
    """

    def movable(self) -> Iterable[Sequence]:
        """The running sequences whose prompts are computed: these may be released."""

    def release(self, sequence: Sequence) -> None:
        """No later batch has this running sequence, and its seat is free. Its blocks stay until it is dropped."""

    def drop(self, sequence: Sequence) -> None:
        """It has been copied."""

    def can_accept(self, sequence: Sequence) -> bool:
        """Whether a seat, blocks and its adapter's slot are free now, and nobody waits who comes first."""

    def accept(self, sequence: Sequence) -> list[int]:
        """Keep them for the sequence, whose `num_computed_tokens` tokens are to be copied to these blocks."""

    def cancel(self, sequence: Sequence) -> None:
        """An accepted sequence ended where it was: it does not come."""

    def join(self, sequence: Sequence) -> None:
        """It has been copied, and runs here from now on."""


class Order(Protocol):
    """The waiting sequences of a scheduler, the next one first, and who of the running gives way.

    It is a queue: `append` takes what arrives, `appendleft` what was preempted, whatever place that gets; `self[0]` is
    the next one and `popleft` admits it. A call costs the same however many wait. A class that names this protocol as
    its base has the methods below that have a body; those say what first come, first served does.
    """

    preempts: bool = False  # whether who waits may take the place of who runs
    wake_time: float = inf  # when the first may run at last (s), even if nothing happens before
    uses: tuple[str, ...] = ()  # fields of Request that it reads, beside lengths and times

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence]:
        """In the order of service, as far as that is known now."""

    def __getitem__(self, index: int, /) -> Sequence:
        """The first; nobody asks for others."""

    def append(self, sequence: Sequence, /) -> None: ...

    def appendleft(self, sequence: Sequence, /) -> None: ...

    def popleft(self) -> Sequence: ...

    def remove(self, sequence: Sequence, /) -> None:
        """It ended while it waited."""

    def update(self, now: float) -> None:
        """A step is about to be chosen at `now` (s)."""

    def has_turn(self, first: Sequence) -> bool:
        """Whether the first may be admitted now, if there is room for it."""
        return True

    def join(self, sequence: Sequence) -> None:
        """It comes running from another scheduler, and never waited here."""
        return

    def served(self, sequences: list[Sequence], num_tokens: int = 1) -> None:
        """Each of these has got so many output tokens since the last call, all of them one in each step.

        It leaves what a call after each step would leave.
        """

    def behind(self, first: Sequence, running: list[Sequence]) -> list[Sequence]:
        """Those of the running that give way to the first of the waiting, the last one first."""
        return []

    def last(self, running: list[Sequence]) -> Sequence:
        """Who loses its blocks when the KV cache has run out; `running` is in the order of admission."""
        return running[-1]


class Engine(Protocol):
    """Executes batches; owns the model and the KV cache of `num_blocks` blocks of `block_size` tokens.

    At most `num_adapter_slots` adapters fit on the device at once; 0 means that the engine serves none. Their slots
    take `num_adapter_bytes` of its memory, the cache `num_cache_bytes`. With `blocks_per_adapter` slot s is the blocks
    of the cache from (s - 1) * blocks_per_adapter on: no sequence may have one of them while an adapter is there. 0:
    adapters have memory of their own. On the host there is room for `num_swap_blocks`.
    """

    num_blocks: int
    block_size: int
    num_adapter_slots: int
    blocks_per_adapter: int
    num_adapter_bytes: int
    num_cache_bytes: int
    num_swap_blocks: int
    max_model_len: int
    num_steps_ahead: int  # batches that may be launched before the tokens of an earlier one are collected: 0 or 1
    on_progress: Callable[[str], None]  # told what takes long in `begin`

    @property
    def timer(self) -> Callable[[], float] | None:
        """The host's clock (s); None: nothing is measured, and a step takes its result's `elapsed`."""

    def refused_adapters(self, requests: list[Request]) -> dict[str, str]:
        """Which adapters that these requests name cannot be served: id → the reason, a sentence that has the id."""

    def begin(self, requests: list[Request], max_num_seqs: int, max_num_batched_tokens: int | None = None) -> None:
        """Get ready, outside the measured window, for a replay of these requests in batches of up to `max_num_seqs`.

        A batch has at most `max_num_batched_tokens` new tokens, or `max_num_seqs` if those are more; None: no limit.
        """

    def add(self, sequence: Sequence) -> None:
        """Take the prompt of a sequence that arrives; outside the measured time."""

    def launch(self, batch: Batch) -> None:
        """Start a step."""

    def collect(self) -> StepResult:
        """Wait for the oldest step in flight."""


@runtime_checkable
class ReceivingEngine(Protocol):
    """What an Engine that keeps keys and values has, too, so that sequences can move to it from another one."""

    def receive(self, source: Any, pairs: list[tuple[int, int]], /) -> float:
        """Copy blocks of the cache of `source`, an engine of the same kind: pairs (its block, block here); seconds."""


class ServerState(Protocol):
    """What a router sees of a server's load; requests count from when they are sent there until their last token."""

    @property
    def num_unfinished(self) -> int:
        """Requests that it has."""

    @property
    def num_tokens(self) -> int:
        """Prompt tokens of these, and the output tokens that they have so far."""

    @property
    def num_free_seats(self) -> int:
        """How many more it could run at once; 0 if others wait."""

    @property
    def num_slots(self) -> int:
        """Tokens that its KV cache holds."""

    def has_adapter(self, adapter_id: str) -> bool:
        """Whether it is on the device, or one of the requests brings it."""


class Server(Protocol):
    """What a router knows of a server: its place among them, and its `state`, which is that of `view_delay` s ago."""

    index: int
    view_delay: float

    @property
    def state(self) -> ServerState: ...


class Router(Protocol):
    """Names the server that takes a sequence, or none yet: then it is asked again after every step of a server.

    It is made for the servers of one replay, as `make(servers)`. While it names none for a sequence, those that arrive
    later wait behind it. One that may do that is a HoldingRouter.
    """

    def __call__(self, sequence: Sequence) -> Server | None: ...


@runtime_checkable
class HoldingRouter(Router, Protocol):
    """A Router that may name none: it says so, since servers then have to keep up with each other step by step."""

    holds: bool


class Rebalance(Protocol):
    """Names a server that a running sequence should leave at `now` (s), and the one that it should go to; or None.

    It is made for the servers of one replay, as `make(servers)`, and asked after every step of one of them.
    """

    def __call__(self, now: float, /) -> tuple[Server, Server] | None: ...


class Source(Protocol):
    """Where sequences come from. `requests` are all that may come, as long as they may be."""

    requests: list[Request]

    @property
    def follows(self) -> bool:
        """Whether sequences may follow from those that finish."""

    def begin(self) -> Iterable[Sequence]:
        """Those whose arrival time is known from the start, in the order of their arrival."""

    def follow(self, finished: Sequence, now: float) -> Iterable[Sequence]:
        """Those that follow from a sequence that finished at `now` (s), none of them earlier; a trace has none."""
