"""ModelledEngine: a step takes what a cost model says. It loads no weights and touches no device.

Every token is the same, one that ends no output: so an output is as long as its request says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import numpy as np

from framework.checks import whole
from framework.core import Batch, Engine, Foreseen, Request, Sequence, StepResult
from framework.cost.features import Features, features_of, kind_of
from framework.cost.model import WITHIN, CostModel, Outside, read_cost_model
from framework.cost.noise import Noise
from framework.cost.shipped import check_cost_model
from framework.cost.subject import Target
from framework.paths import locate


class ModelledEngine:
    """Charges the seconds of the cost model in `path`, as if `model` were served on the device it was measured on.

    `path` None is a shipped one that fits the arm, a folder one that is in there; of several, that of the device whose
    name has `device` in it. A study fills the file in.

    The KV cache has `num_blocks` blocks of `block_size` tokens, None: those of the engine that was measured. With
    `noise` every step takes as much longer or shorter as measured ones did, drawn with `seed`; else all take the mean.
    """

    timer: Callable[[], float] | None = None
    blocks_per_adapter = 0

    def __init__(
        self,
        model: Target,
        *,
        path: str | None = None,
        device: str | None = None,
        num_blocks: int | None = None,
        block_size: int | None = None,
        num_swap_blocks: int = 0,
        noise: bool = True,
        seed: int = 0,
    ) -> None:
        if path is None:
            raise ValueError("engine.path=null: name a cost model, or leave it to a study to choose one")
        cost = read_cost_model(locate(path))
        check_cost_model(cost, model.subject, path)
        self.cost: CostModel = cost
        self.block_size = cost.engine.block_size if block_size is None else whole("engine.block_size", block_size)
        num_slots = cost.engine.num_blocks * cost.engine.block_size
        self.num_blocks = num_slots // self.block_size if num_blocks is None else whole("engine.num_blocks", num_blocks)
        self.num_cache_bytes = cost.engine.num_cache_bytes * self.num_blocks * self.block_size // num_slots
        has_slots = model.num_adapter_slots > 0
        self.num_adapter_bytes = cost.engine.slot_bytes * (model.num_adapter_slots + 1) if has_slots else 0
        self.max_model_len, self.num_adapter_slots = model.config.max_model_len, model.num_adapter_slots
        self.num_swap_blocks = whole("engine.num_swap_blocks", num_swap_blocks, at_least=0)
        self.num_steps_ahead = cost.engine.num_steps_ahead
        self.vocab_size, self.noise, self.seed = model.config.vocab_size, noise, seed
        self.on_progress: Callable[[str], None] = lambda message: None
        self.outside = Outside()
        self._in_flight: deque[StepResult] = deque()
        self._token, self._noise = 0, Noise(cost.kinds, seed if noise else None)

    def refused_adapters(self, requests: list[Request]) -> dict[str, str]:
        """None: whether an adapter is there is not looked at."""
        return {}

    def begin(self, requests: list[Request], max_num_seqs: int, max_num_batched_tokens: int | None = None) -> None:
        """Draw anew, count anew, and choose a token that stops none of these requests."""
        self._in_flight.clear()
        self.outside = Outside()
        self._noise = Noise(self.cost.kinds, self.seed if self.noise else None)
        stops = {token for request in requests for token in request.stop_token_ids}
        self._token = next(token for token in range(len(stops) + 1) if token not in stops)

    def add(self, sequence: Sequence) -> None:
        pass

    def launch(self, batch: Batch) -> None:
        kind = kind_of(batch)
        cost, outside = self.cost.of_kind(kind), self.outside
        is_first = self.num_steps_ahead > 0 and not self._in_flight
        features = self.cost.computed(kind, features_of(batch, is_first, self.num_adapter_slots > 0))
        outside.num_steps += 1
        outside.note(kind, *cost.distance(features))
        device, host = cost.seconds(features)
        ratio = self._noise.take(kind)
        self._in_flight.append(StepResult(self._tokens(batch), ratio * (device + host), device=ratio * device))

    def _tokens(self, batch: Batch) -> list[int | None]:
        """One of each sequence; None where its prompt is not complete yet."""
        tokens: list[int | None] = [self._token] * batch.num_decode_tokens
        for index in range(batch.num_decode_tokens, len(batch.sequences)):
            is_sampled = batch.starts[index] + batch.num_tokens[index] >= batch.sequences[index].num_tokens
            tokens.append(self._token if is_sampled else None)
        return tokens

    def collect(self) -> StepResult:
        return self._in_flight.popleft()

    def foresee(self, newest: Batch, num_steps: int, duration: float) -> Foreseen:
        in_flight = self._in_flight
        num_needed = 2 + 1.1 * duration / in_flight[-1].elapsed if in_flight[-1].elapsed else inf
        ratios = self._noise.ahead("decode", int(min(num_needed, num_steps)))
        features = self._after(newest, np.arange(1, len(ratios) + 1))
        device, host = self.cost.kinds["decode"].seconds(features)
        return Foreseen(
            [result.elapsed for result in in_flight] + (ratios * (device + host)).tolist(),
            [result.device for result in in_flight] + (ratios * device).tolist(),
            self._token,
        )

    def skip(self, newest: Batch, foreseen: Foreseen, num_steps: int) -> None:
        cost, outside, num_in_flight = self.cost.kinds["decode"], self.outside, len(self._in_flight)
        self._noise.skip(num_steps)
        outside.num_steps += num_steps
        if cost.distance(self._after(newest, num_steps))[0] > WITHIN:
            for index in range(1, num_steps + 1):
                outside.note("decode", *cost.distance(self._after(newest, index)))
        token_ids = self._in_flight[-1].token_ids
        self._in_flight = deque(
            StepResult(token_ids, foreseen.elapsed[index], device=foreseen.device[index])
            for index in range(num_steps, num_steps + num_in_flight)
        )

    def _after(self, newest: Batch, num_steps: Any) -> Features:
        """Of the decode step that comes so many after this one, which differs in its context alone."""
        features = self.cost.computed("decode", features_of(newest, False, self.num_adapter_slots > 0))
        return features._replace(num_context_tokens=features.num_context_tokens + num_steps * features.num_seqs)


def check_executes(make: partial[Engine]) -> None:
    """ValueError for an engine that computes no steps, where a study is about these; before a model is loaded."""
    if is_modelled(make):
        raise ValueError("engine=modelled computes no steps that could be timed: use engine=torch")


def is_modelled(make: partial[Engine]) -> bool:
    """Whether an arm's engine is one that is told a config instead of a model."""
    return make.func is ModelledEngine
