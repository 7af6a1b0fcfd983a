"""Servers as routers see them, with loads that a test writes down, and sequences for them."""

from dataclasses import dataclass, field

from framework.core import Request, Sequence


@dataclass
class State:
    num_unfinished: int = 0
    num_tokens: int = 0
    num_free_seats: int = 1
    adapter_ids: set[str] = field(default_factory=set)

    def has_adapter(self, adapter_id: str) -> bool:
        return adapter_id in self.adapter_ids


@dataclass
class SeenServer:
    index: int
    state: State
    view_delay: float = 0.0


def see(*states: State) -> list[SeenServer]:
    return [SeenServer(index, state) for index, state in enumerate(states)]


def sequence(num_prompt_tokens: int = 1, **fields) -> Sequence:
    return Sequence(Request(0, 0.0, num_prompt_tokens, 1, **fields))
