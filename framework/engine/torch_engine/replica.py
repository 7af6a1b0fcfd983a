"""Replicas: several servers on one device, each with a share of one engine's KV blocks and adapter slots.

Weights, graphs and the device are the engine's; steps take turns on it. Each is measured alone, and by a clock that
stands still while another server has its turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf

import torch

from framework.checks import whole
from framework.contracts import Engine
from framework.core import Batch, Request, Sequence, StepResult
from framework.engine.torch_engine.engine import TorchEngine
from framework.engine.torch_engine.filler import LATENCY, Filler, largest_weights
from framework.engine.torch_engine.share import ServerSteps, Share
from framework.engine.torch_engine.swap import Pairs
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama
from framework.stopwatch import ServerClock, Turns


class Replica:
    """The engine of one of the servers that share `engine`, made by `make_replicas`."""

    def __init__(self, engine: TorchEngine, servers: Servers, steps: ServerSteps, clock: ServerClock) -> None:
        self.engine, self.servers, self.steps = engine, servers, steps
        self.timer: Callable[[], float] = clock
        self._clock = clock
        self._ends: deque[float] = deque()  # when the steps in flight would be over, by the clock
        share = steps.share
        self.num_blocks, self.num_adapter_slots = share.num_blocks, share.num_slots
        self.num_swap_blocks, self.blocks_per_adapter = share.num_host_blocks, 0
        self.block_size, self.max_model_len = engine.block_size, engine.max_model_len
        self.num_steps_ahead = engine.num_steps_ahead
        self.num_cache_bytes = engine.num_cache_bytes * share.num_blocks // engine.num_blocks
        self.num_adapter_bytes = engine.num_adapter_bytes // len(servers.steps)
        self.model: Llama | GPT2 = engine.model
        self.device, self.dtype, self.kv_dtype = engine.device, engine.dtype, engine.kv_dtype

    @property
    def switches(self) -> dict[str, bool]:
        return self.engine.switches

    @property
    def on_progress(self) -> Callable[[str], None]:
        return self.engine.on_progress

    @on_progress.setter
    def on_progress(self, tell: Callable[[str], None]) -> None:
        self.engine.on_progress = tell

    def adapter_names(self, num_adapters: int) -> list[str]:
        return self.engine.adapter_names(num_adapters)

    def use_adapter(self, adapter_id: str, num_tokens: int) -> int:
        return self.engine.use_adapter(adapter_id, num_tokens)

    def refused_adapters(self, requests: list[Request]) -> dict[str, str]:
        return self.engine.refused_adapters(requests)

    def begin(self, requests: list[Request], max_num_seqs: int, max_num_batched_tokens: int | None = None) -> None:
        """As TorchEngine.begin; the first replica to begin gets the engine ready for all."""
        self._ends.clear()
        self._clock.device_end = -inf
        self.servers.begin(self.steps, requests, max_num_seqs, max_num_batched_tokens)
        self.num_steps_ahead = self.engine.num_steps_ahead

    def add(self, sequence: Sequence) -> None:
        self.engine.add(sequence)

    def launch(self, batch: Batch) -> None:
        """Run the step to its end, alone; what of it would run beside the host's next work, the clock leaves out.

        Where another step would be before it, the device is kept busy during the launch and from the step's end on.
        """
        filler = self.servers.filler if self.num_steps_ahead else None
        busy = self._clock.device_end - self._clock() - LATENCY
        if filler is not None:
            self._clock.leave_out(partial(filler.begin, busy) if busy > 0.0 else filler.end)
        self.engine.launch_for(self.steps, batch, self.timer)
        if filler is not None:
            self._clock.leave_out(filler.end)
        self._ends.append(self._clock.run_alone(partial(self.engine.finish, self.steps)))
        if filler is not None and busy > 0.0:
            self._clock.leave_out(filler.begin)

    def collect(self) -> StepResult:
        """The oldest step in flight, once the clock says that it would be over."""
        self._clock.go_on_to(self._ends.popleft())
        return self.steps.collect(self.timer)

    def step(self, batch: Batch) -> StepResult:
        self.launch(batch)
        return self.collect()

    def receive(self, source: Replica, pairs: Pairs) -> float:
        """Copy KV blocks of `source` to blocks of this one, by pairs (its block, block here); seconds that it took.

        All layers are copied, keys, values and their scales. ValueError for a replica of another engine.
        """
        if source.engine is not self.engine:
            raise ValueError("a replica receives KV blocks from replicas of its own engine only")
        self.servers.let_go()
        self._clock.turns.end()
        there, here = source.steps.share.first_block, self.steps.share.first_block
        return self.engine.receive(self.steps, [(block + there, own + here) for block, own in pairs])


class Servers:
    """The steps of all servers that share `engine`, which gets ready for all of them at once."""

    def __init__(self, engine: TorchEngine, steps: list[ServerSteps]) -> None:
        self.engine, self.steps = engine, steps
        self.filler = Filler(largest_weights(engine.model)) if engine.device.type == "cuda" else None
        self.begun: list[ServerSteps] = []  # of them, for the replay that comes
        self.requests: list[Request] = []  # of that replay
        self.limits: tuple[int, float] = 0, 0.0  # most sequences and new tokens of a batch, of any of them

    def begin(self, steps: ServerSteps, requests: list[Request], max_num_seqs: int, max_tokens: int | None) -> None:
        """Get ready for a replay of these requests, unless another server has begun it and asked for as much."""
        self.let_go()
        if requests is not self.requests or steps in self.begun:
            self.requests, self.begun, self.limits = requests, [], (0, 0.0)
        seqs, tokens = self.limits
        most = max(seqs, max_num_seqs), max(tokens, inf if max_tokens is None else max_tokens)
        if most != self.limits:
            num_seqs, num_tokens = most
            self.engine.begin_for(self.steps, requests, num_seqs, None if num_tokens == inf else int(num_tokens))
        self.begun, self.limits = [*self.begun, steps], most

    def let_go(self) -> None:
        """Nothing keeps the device busy that is no step."""
        if self.filler is not None:
            self.filler.end()


def make_replicas(engine: Engine, num_servers: int) -> list[Replica]:
    """Engines for so many servers, which take turns on the device of `engine`.

    Each has an equal share of its KV blocks, adapter slots and host blocks; what does not go into equal shares is not
    used. Raises ValueError for an engine that is no TorchEngine, and where a server would have no share of something.
    """
    whole("servers", num_servers)
    if not isinstance(engine, TorchEngine):
        raise ValueError(
            f"servers={num_servers} measured ones share one engine, and {type(engine).__name__} cannot be shared: use "
            "engine=torch, or engine=modelled"
        )
    if engine.device.type == "cuda" and torch.cuda.get_device_capability(engine.device) < (8, 0):
        raise ValueError(f"servers={num_servers} that share a GPU need one of compute capability 8.0 or more")
    check_adapters_apart(bool(engine.blocks_per_adapter), num_servers)
    steps = [ServerSteps(share, engine.model) for share in shares_of(engine, num_servers)]
    servers, turns = Servers(engine, steps), Turns(lambda: engine.timer())
    return [Replica(engine, servers, own, ServerClock(turns)) for own in steps]


def shares_of(engine: Engine, num_servers: int) -> list[Share]:
    """Equal ones of an engine; ValueError where a server would have no share of something."""
    if num_servers > 1:
        check_adapters_apart(bool(engine.blocks_per_adapter), num_servers)
    numbers = engine.num_blocks, engine.num_adapter_slots, engine.num_swap_blocks
    check_shares(num_servers, *numbers)
    return [Share(index, *[number // num_servers for number in numbers]) for index in range(num_servers)]


def check_shares(num_servers: int, num_blocks: int, num_slots: int, num_swap_blocks: int) -> None:
    """ValueError where one of so many servers would have no share of something that there is."""
    parts = {
        "KV blocks (engine.num_blocks)": num_blocks,
        "adapter slots (lora.num_slots)": num_slots,
        "host blocks (engine.num_swap_blocks)": num_swap_blocks,
    }
    for name, number in parts.items():
        if 0 < number < num_servers:
            raise ValueError(f"servers={num_servers} share {number} {name}, and each needs at least one")


def check_adapters_apart(are_in_cache: bool, num_servers: int) -> None:
    """ValueError where adapters take KV blocks, too: a share of these has no room of its own for them."""
    if are_in_cache:
        raise ValueError(f"servers={num_servers} cannot keep adapters in the KV cache: set lora.memory=split")
