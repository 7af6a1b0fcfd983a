"""The words of the framework as types: Request, Sequence, Batch, StepResult, Step.

Standard library only; every other module imports from here and nothing here imports back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import add
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PREFIX_BLOCK_SIZE = 512  # tokens that an entry of Request.prefix_ids stands for, unless the trace says otherwise


@dataclass(frozen=True, slots=True)
class Request:
    """One row of a trace.

    `arrival_time` is in seconds from the start of the trace. `prefix_ids` names the prompt's leading blocks of
    `prefix_block_size` tokens each: equal ids are equal tokens. `prompt_token_ids` is set where the trace has text;
    elsewhere the engine draws seeded random tokens. A token in `stop_token_ids` ends the output early. With a
    `json_schema` (its JSON text) the output is a document of that schema, then one of the model's end-of-sequence
    tokens, which `stop_token_ids` must have.

    It is the `turn`-th request of its session, from 1. With a `think_time` (s) it arrives so long after the last token
    of the turn before, and its prompt is that turn's prompt and the answer that was really generated, then the new
    text. Its `num_prompt_tokens` counts all of it, with every answer as long as the trace says: a shorter answer makes
    the prompt shorter.

    `client_id` says on whose account it is. Of two requests the one with the lower `priority` comes first, where
    anybody asks. `num_predicted_tokens` is how long a predictor says the output will be; None: nobody has said.
    """

    request_id: int
    arrival_time: float
    num_prompt_tokens: int
    num_output_tokens: int
    adapter_id: str | None = None
    priority: int = 0
    session_id: str | None = None
    prefix_ids: tuple[int, ...] = ()
    prompt_token_ids: tuple[int, ...] | None = None
    stop_token_ids: frozenset[int] = frozenset()
    json_schema: str | None = None
    prefix_block_size: int = PREFIX_BLOCK_SIZE
    turn: int = 1
    think_time: float | None = None
    client_id: str | None = None
    num_predicted_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests sorted by arrival time; those with a think time have that of their session's first one.

    `dropped` counts the rows that are no requests of the trace, by reason; `unread` names columns of the file that have
    no effect. Of its sessions at most `max_concurrency` are in progress at once; None: any number.
    """

    requests: list[Request]
    dropped: dict[str, int] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    max_concurrency: int | None = None


class Sequence:
    """The mutable serving state of one Request, from its arrival on.

    It arrives at `arrival_time` (s), which is the request's own unless its source says otherwise. The engine sets
    `prompt_token_ids`, (num_prompt_tokens,), when it arrives.

    The KV cache holds a sequence at slots 0, 1, 2, … of its block table: first `num_padding` pad tokens (only under
    static batching), then the prompt, then the output. `num_computed_tokens` of these slots are computed, or will be
    when the steps in flight end. `num_unscheduled_tokens` output tokens are in no step yet. Its adapter is on the
    device in slot `adapter_slot` (0: it has none, or is not running), and made it wait for `adapter_load_wait` seconds.
    `num_cached_tokens` of its prompt were in a prefix cache when it was first admitted. It lost its blocks
    `num_preemptions` times, `num_swaps` of them to the host. A turn of a conversation has the one before as `previous`:
    its prompt begins with the tokens of that one.

    It moved from one server to another `num_moves` times, the first time from `prefill_server`. It stood still for
    `transfer_wait` s, until there was room for it and the link was free, and for `transfer_time` s more while it was
    copied.
    """

    __slots__ = (
        "adapter_load_wait",
        "adapter_slot",
        "arrival_time",
        "block_table",
        "is_finished",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_moves",
        "num_padding",
        "num_preemptions",
        "num_swaps",
        "num_unscheduled_tokens",
        "output_token_ids",
        "prefill_server",
        "previous",
        "prompt_token_ids",
        "request",
        "scheduled_time",
        "server",
        "token_times",
        "transfer_time",
        "transfer_wait",
    )

    def __init__(self, request: Request, arrival_time: float | None = None, previous: Sequence | None = None) -> None:
        self.request = request
        self.previous = previous
        self.arrival_time = request.arrival_time if arrival_time is None else arrival_time
        self.prompt_token_ids: npt.NDArray[np.int32] | None = None
        self.output_token_ids: list[int] = []
        self.token_times: list[float] = []  # one timestamp (s) per output token
        self.block_table: list[int] = []
        self.num_cached_tokens = 0
        self.num_computed_tokens = 0
        self.num_padding = 0
        self.num_preemptions = 0
        self.num_swaps = 0
        self.num_unscheduled_tokens = request.num_output_tokens
        self.adapter_slot = 0
        self.adapter_load_wait = 0.0
        self.is_finished = False
        self.scheduled_time: float | None = None  # first time in a batch (s)
        self.server: int | None = None  # which of the replay's servers has it
        self.prefill_server: int | None = None
        self.num_moves = 0
        self.transfer_wait = 0.0
        self.transfer_time = 0.0

    @property
    def num_tokens(self) -> int:
        """Slots whose token is known: padding, prompt and output so far."""
        return self.num_padding + self.request.num_prompt_tokens + len(self.output_token_ids)

    @property
    def num_history_tokens(self) -> int:
        """Tokens of the conversation before this turn, with which its prompt begins."""
        previous = self.previous
        return 0 if previous is None else previous.request.num_prompt_tokens + len(previous.output_token_ids)

    def append(self, token_id: int, now: float) -> bool:
        """Add an output token stamped `now` (s); True if it is the last one."""
        output = self.output_token_ids
        output.append(token_id)
        self.token_times.append(now)
        request = self.request
        if len(output) < request.num_output_tokens and token_id not in request.stop_token_ids:
            return False
        self.is_finished = True
        return True

    def extend(self, token_id: int, times: list[float]) -> None:
        """Add the same output token at each of these times (s); the last one of the output comes later."""
        self.output_token_ids += [token_id] * len(times)
        self.token_times += times

    def __repr__(self) -> str:
        return f"Sequence({self.request.request_id})"


@dataclass(slots=True)
class Batch:
    """The sequences of one step; `num_tokens[i]` slots of `sequences[i]` are computed in it, from `starts[i]` on.

    A sequence whose computed slots reach its last token samples one new token. In a mixed step the sequences that
    decode, `num_decode_tokens` of them, stand first. Under static batching `sequences` holds finished sequences too:
    their seats are computed and the tokens thrown away. `adapter_loads`, slot → adapter id, are
    to be brought to the device; those in a slot that none of the sequences uses are for later and may take their time.

    Pairs (block, host block) of `swap_out` are copied before the step writes anything, and after the steps before it.
    Then pairs (host block, block) of `swap_in` are copied: before the step if a sequence in it has such a block, else
    before the next one.
    """

    sequences: list[Sequence]
    starts: list[int]
    num_tokens: list[int]
    num_prefill_tokens: int
    num_decode_tokens: int
    adapter_loads: dict[int, str] = field(default_factory=dict)
    swap_out: list[tuple[int, int]] = field(default_factory=list)
    swap_in: list[tuple[int, int]] = field(default_factory=list)
    num_padding: int = 0  # pad tokens of all sequences

    @property
    def phase(self) -> str:
        if self.num_decode_tokens == 0:
            return "prefill"
        return "decode" if self.num_prefill_tokens == 0 else "mixed"

    @property
    def num_context_tokens(self) -> int:
        """KV tokens that the sequences' new slots attend to, these slots included, summed over the sequences."""
        return sum(self.starts) + self.num_prefill_tokens + self.num_decode_tokens - self.num_padding

    @property
    def max_context_tokens(self) -> int:
        """KV slots that the longest of the sequences attends to, its new ones and its padding included."""
        if not self.num_prefill_tokens:
            return max(self.starts) + 1
        return max(map(add, self.starts, self.num_tokens))

    @property
    def num_adapters(self) -> int:
        """How many different ones the sequences use."""
        return len({sequence.adapter_slot for sequence in self.sequences} - {0})

    @property
    def num_prefill_pairs(self) -> int:
        """Pairs of a query and a key that the prompts' new slots compute; padding is no query and no key."""
        num_pairs = 0
        for index in range(self.num_decode_tokens, len(self.sequences)):
            start, num_padding = self.starts[index], self.sequences[index].num_padding
            end = start + self.num_tokens[index] - num_padding
            start = max(start - num_padding, 0)
            num_pairs += (end * (end + 1) - start * (start + 1)) // 2
        return num_pairs


@dataclass(slots=True)
class StepResult:
    """What a step produced: one token per sequence of the batch (None where its prompt is not complete yet).

    `elapsed` is the seconds from the launch, or from the tokens of the step before if those came later, until the
    tokens were on the host; `prepare` is the host's part before the device could begin, `device` what the device took,
    and `launch` what the host took after `prepare` to launch it all, beside the device.
    `adapter_waits`: slots whose adapters the step had to wait for → seconds, part of `prepare` and `device`.
    `swap_wait` is the part of `elapsed` in which it waited for blocks on their way to the host or back.

    An engine that measures nothing, and has its times from a record, has the host's work too: `schedule` and `update`,
    as in Step.
    """

    token_ids: list[int | None]
    elapsed: float
    prepare: float = 0.0
    device: float = 0.0
    adapter_waits: dict[int, float] = field(default_factory=dict)
    swap_wait: float = 0.0
    schedule: float = 0.0
    update: float = 0.0
    launch: float = 0.0


class SlotUse(NamedTuple):
    """What the slots of a KV cache are for, beside those of free blocks that a prefix cache keeps.

    A slot of a block in use holds a token, or is reserved for one that comes later, or is lost: no token will ever take
    it. How long an output will be is taken from its request.
    """

    num_tokens: int
    num_reserved: int
    num_lost: int
    num_free: int  # in blocks that hold nothing


@dataclass(slots=True)
class Step:
    """What one step was and took; all times in seconds. The counts of tokens are those of its Batch."""

    start_time: float
    elapsed: float  # until the tokens were on the host, as measured; of a step launched ahead, since the one before
    phase: str
    num_seqs: int
    num_prefill_tokens: int
    num_decode_tokens: int
    num_context_tokens: int  # KV tokens that its rows attend to
    max_context_tokens: int  # of its longest sequence, with padding
    num_prefill_pairs: int  # query-key pairs of its prompt rows
    num_used_blocks: int
    num_waiting: int
    schedule: float
    prepare: float
    device: float
    update: float = 0.0
    num_output_tokens: int = 0  # delivered to requests: dead seats and unfinished prompts deliver none
    num_adapter_loads: int = 0
    adapter_wait: float = 0.0  # for adapters that were not on the device yet
    server: int = 0  # which of the replay's servers took it
    num_cached_blocks: int = 0  # free ones that a prefix cache keeps
    num_token_slots: int = 0  # these four as in SlotUse
    num_reserved_slots: int = 0
    num_lost_slots: int = 0
    num_free_slots: int = 0
    num_adapter_blocks: int = 0  # KV blocks that hold adapters
    num_swapped_out_blocks: int = 0  # copies that were begun, to the host and back
    num_swapped_in_blocks: int = 0
    swap_wait: float = 0.0  # for these, or those of the step before
    num_adapters: int = 0  # different ones that its sequences use
    adapter_waits: list[tuple[int, float]] | None = None  # slot, seconds; None: it waited for none
    launch: float = 0.0  # the host's part after `prepare`, beside the device
