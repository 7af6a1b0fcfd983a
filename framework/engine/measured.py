"""What a study that times steps needs of an engine, beyond what a replay needs of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch

from framework.contracts import Engine
from framework.engine.torch_engine.decode import batch_sizes
from framework.engine.torch_engine.mixed import SIZES
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama


@runtime_checkable
class MeasuredEngine(Engine, Protocol):
    """An engine that really computes its steps with `model`, on `device`, and times them."""

    model: Llama | GPT2
    device: torch.device
    dtype: torch.dtype  # of the activations
    kv_dtype: torch.dtype
    timer: Callable[[], float]

    @property
    def switches(self) -> dict[str, bool]:
        """What was decided of how steps are computed: fused, compile, cuda_graphs and overlap."""

    def adapter_names(self, num_adapters: int) -> list[str]:
        """Ids of so many adapters that can be asked for; none where it serves none. ValueError if there are fewer."""

    def use_adapter(self, adapter_id: str, num_tokens: int) -> int:
        """Let `model` itself compute its next `num_tokens` tokens with this adapter; its number of parameters.

        0, and nothing happens, where it serves none.
        """


def measured(engine: Engine) -> MeasuredEngine:
    """The same engine; ValueError if it does not compute its steps."""
    if not isinstance(engine, MeasuredEngine):
        raise ValueError(f"{type(engine).__name__} computes no steps that could be timed: use engine=torch")
    return engine


def graph_sizes(switches: dict[str, bool], max_num_seqs: int) -> dict[str, list[int]]:
    """The rows that the graphs of an engine with these switches hold, of each kind of step."""
    if not switches.get("cuda_graphs"):
        return {}
    return {"decode": batch_sizes(max_num_seqs), "prompt": list(SIZES)}
