"""One server's part of an engine: a range of KV blocks, of adapter slots and of host blocks, and its steps in flight.

Schedulers number blocks from 0 on and slots from 1 on, whatever part they have; the first of the part is added where
numbers go to the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from framework.core import Batch, Sequence, StepResult
from framework.engine.torch_engine.in_flight import Launched
from framework.engine.torch_engine.swap import Pairs, reads
from framework.kernels.decode_step import NO_TOKEN
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama


@dataclass(frozen=True, slots=True)
class Share:
    """Of the server `index`: so many blocks, adapter slots and host blocks, from the `first_…` of the engine's on."""

    index: int
    num_blocks: int
    num_slots: int
    num_host_blocks: int

    @property
    def first_block(self) -> int:
        return self.index * self.num_blocks

    @property
    def first_slot(self) -> int:
        """What is added to a slot; 0 is no adapter, and stays 0."""
        return self.index * self.num_slots

    @property
    def first_host_block(self) -> int:
        return self.index * self.num_host_blocks

    def outgoing(self, batch: Batch) -> Pairs:
        """The batch's `swap_out` by the engine's numbers."""
        return [(block + self.first_block, host + self.first_host_block) for block, host in batch.swap_out]

    def incoming(self, batch: Batch) -> tuple[Pairs, bool]:
        """Its `swap_in` likewise, and whether one of its sequences has a block that comes back."""
        pairs = [(host + self.first_host_block, block + self.first_block) for host, block in batch.swap_in]
        return pairs, reads(batch, batch.swap_in)


class ServerSteps:
    """The steps of one server with `model`: those in flight, and the random numbers that its tokens are drawn with."""

    def __init__(self, share: Share, model: Llama | GPT2) -> None:
        norm = model.norm.weight
        self.share, self.dtype = share, norm.dtype
        self.generator = torch.Generator(norm.device)
        self.in_flight: deque[Launched] = deque()
        self.begin("step", 0)

    def begin(self, kind: str, seed: int) -> None:
        """Forget what is in flight; the next steps are of this kind, and counted from 1 on."""
        self.in_flight.clear()
        self.kind, self.num_collected, self.collected_time = kind, 0, 0.0
        self.generator.manual_seed(seed)

    def collect(self, timer: Callable[[], float]) -> StepResult:
        """Wait for the oldest step in flight; ValueError naming it and a request whose logits are not finite."""
        launched = self.in_flight.popleft()
        sampled, device = launched.running.wait()
        begun, self.collected_time = max(launched.start_time, self.collected_time), timer()
        elapsed = self.collected_time - begun
        tokens = iter(sampled)
        token_ids = [next(tokens) if is_sampled else None for is_sampled in launched.samples]
        self.num_collected += 1
        if NO_TOKEN in sampled:
            raise ValueError(self._not_finite(launched.sequences[token_ids.index(NO_TOKEN)]))
        hidden = begun - launched.start_time
        waits = {} if launched.loading is None else launched.loading.waits(hidden, elapsed)
        waits = {slot - self.share.first_slot: wait for slot, wait in waits.items()}
        swap_wait = min(sum([one.wait(hidden, elapsed) for one in launched.swapping]), elapsed)
        return StepResult(token_ids, elapsed, launched.prepare, device, waits, swap_wait, launch=launched.launch)

    def _not_finite(self, sequence: Sequence) -> str:
        step, request_id = f"{self.kind} {self.num_collected}", sequence.request.request_id
        dtype = str(self.dtype).removeprefix("torch.")
        reason = " (beyond 65,504 it overflows: model.dtype=bfloat16 or float32)" if dtype == "float16" else ""
        return f"{step}: the logits of request {request_id} are NaN or infinite, with the model in {dtype}{reason}"
