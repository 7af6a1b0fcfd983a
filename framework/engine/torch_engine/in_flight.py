"""Steps that were launched: on a GPU their tokens come later, on a CPU they are there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from framework.core import Sequence


@dataclass(frozen=True, slots=True)
class OnDevice:
    """The tokens reach `token_ids`, in pinned memory, once `end` has happened."""

    token_ids: Tensor  # (number of samples,) on the host
    start: torch.cuda.Event
    end: torch.cuda.Event

    def wait(self) -> tuple[list[int], float]:
        """The sampled tokens, and the seconds that the device took."""
        self.end.synchronize()
        return self.token_ids.tolist(), 1e-3 * self.start.elapsed_time(self.end)


@dataclass(frozen=True, slots=True)
class Done:
    token_ids: list[int]
    device: float  # seconds

    def wait(self) -> tuple[list[int], float]:
        return self.token_ids, self.device


Started = tuple[OnDevice | Done, list[bool], float]  # what runs, who samples, and when the device could begin (s)


@dataclass(frozen=True, slots=True)
class Waited:
    """What a step waited for, adapters in `slots` or blocks: `host` seconds, then those between two device events."""

    slots: set[int]
    host: float
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def wait(self, hidden: float, elapsed: float) -> float:
        """Seconds, once the step is over and `elapsed` charged for it, of which waiting can be no more.

        The first `hidden` seconds passed while the step before still ran.
        """
        device = 0.0 if self.events is None else 1e-3 * self.events[0].elapsed_time(self.events[1])
        return min(max(0.0, self.host - hidden) + device, elapsed)

    def waits(self, hidden: float, elapsed: float) -> dict[int, float]:
        """The same for each slot."""
        return dict.fromkeys(self.slots, self.wait(hidden, elapsed))


@dataclass(frozen=True, slots=True)
class Launched:
    """A step in flight; times in seconds."""

    start_time: float
    prepare: float
    sequences: list[Sequence]
    samples: list[bool]  # which of them sample a token
    running: OnDevice | Done
    loading: Waited | None = None
    swapping: Iterable[Waited] = ()
    launch: float = 0.0


def pinned(*shape: int, dtype: torch.dtype) -> Tensor:
    """Host memory that copies to and from a GPU need not wait for."""
    return torch.zeros(*shape, dtype=dtype, pin_memory=torch.cuda.is_available())


def record_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
