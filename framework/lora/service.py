"""What an arm's way of serving adapters serves, read off it before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from framework.lora.adapters import AdapterSource, RandomAdapters
from framework.lora.merged import merge_adapter
from framework.lora.pool import Strategy, serve_adapters
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama


@dataclass(frozen=True, slots=True)
class AdapterService:
    """Adapters beside the weights, which have a `strategy`, or one that is `merged` into them; else none.

    `adapters` makes their source; they are on the layers in `targets` (None: on the blocks' linear ones).
    """

    adapters: partial[AdapterSource] | None = None
    strategy: Callable[[], Strategy] | None = None
    merged: str | None = None  # the adapter's id
    max_rank: int = 0
    targets: list[str] | None = None

    @property
    def are_random(self) -> bool:
        return self.adapters is not None and self.adapters.func is RandomAdapters


def service_of(lora: partial[Llama | GPT2]) -> AdapterService:
    """Of a function that is neither `serve_adapters` nor `merge_adapter`, no adapter is known."""
    keywords = lora.keywords
    if lora.func is serve_adapters:
        return AdapterService(
            keywords["adapters"],
            strategy=keywords["strategy"].func,
            max_rank=keywords["max_rank"],
            targets=keywords.get("targets"),
        )
    if lora.func is merge_adapter:
        return AdapterService(keywords["adapters"], merged=keywords["adapter_id"], targets=keywords.get("targets"))
    return AdapterService()
