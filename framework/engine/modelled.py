"""ModelledEngine: a step takes what a cost model says. It loads no weights and touches no device.

Every token is the same, one that ends no output: so an output is as long as its request says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Literal

from framework.checks import whole
from framework.contracts import Engine
from framework.core import Batch, Request, Sequence, StepResult
from framework.cost.model import CostModel, Outside, read_cost_model
from framework.cost.prediction import Prediction
from framework.cost.shipped import Options, check_cost_model
from framework.cost.subject import Target
from framework.engine.recorded import RecordedEngine
from framework.paths import locate
from framework.quiet import Foreseen


class ModelledEngine:
    """Charges the seconds of the cost model in `path`, as if `model` were served on the device it was measured on.

    `path` None is a shipped one that fits the arm, a folder one that is in there; of several, that of the device whose
    name has `device` in it. A study fills the file in.

    With `kv_dtype` "int8" the measured engine must have kept keys and values so (None: in the model's dtype), with
    `overlap` it must have launched steps ahead, or not (None: as it did).

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
        kv_dtype: Literal["int8"] | None = None,
        overlap: bool | None = None,
        noise: bool = True,
        seed: int = 0,
    ) -> None:
        if path is None:
            raise ValueError("engine.path=null: name a cost model, or leave it to a study to choose one")
        cost = read_cost_model(locate(path))
        check_cost_model(cost, model.subject, path, Options(kv_dtype=kv_dtype, overlap=overlap))
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
        self.prediction = self._predict()
        self._in_flight: deque[StepResult] = deque()
        self._token = 0

    def _predict(self) -> Prediction:
        return Prediction(self.cost, has_adapters=self.num_adapter_slots > 0, noise=self.noise, seed=self.seed)

    @property
    def outside(self) -> Outside:
        """Of the steps since the last `begin`."""
        return self.prediction.outside

    def refused_adapters(self, requests: list[Request]) -> dict[str, str]:
        """None: whether an adapter is there is not looked at."""
        return {}

    def begin(self, requests: list[Request], max_num_seqs: int, max_num_batched_tokens: int | None = None) -> None:
        """Draw anew, count anew, and choose a token that stops none of these requests."""
        self._in_flight.clear()
        self.prediction = self._predict()
        stops = {token for request in requests for token in request.stop_token_ids}
        self._token = next(token for token in range(len(stops) + 1) if token not in stops)

    def add(self, sequence: Sequence) -> None:
        pass

    def launch(self, batch: Batch) -> None:
        result = self.prediction.step(batch, self.num_steps_ahead, self._in_flight[-1] if self._in_flight else None)
        result.token_ids = self._tokens(batch)
        self._in_flight.append(result)

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
        alone = [result.elapsed for result in in_flight]
        prepare = [result.prepare for result in in_flight]
        device = [result.device for result in in_flight]
        if alone[0] > duration:
            return Foreseen(alone, prepare, device, self._token, alone)
        last = alone[-1]
        num_needed = int(min(2 + 1.1 * duration / last, num_steps)) if last else num_steps
        ahead = self.prediction.ahead(newest, num_needed)
        alone += ahead.alone.tolist()
        prepare += ahead.prepare.tolist()
        device += ahead.device.tolist()
        # With steps ahead, the tokens of each are waited for once the next one is launched
        launching = prepare[1:]
        launching[len(in_flight) - 1] += self.prediction.host_of_first(in_flight[-1])
        elapsed = list(map(max, alone, launching)) if self.num_steps_ahead else alone
        return Foreseen(elapsed, prepare, device, self._token, alone)

    def skip(self, foreseen: Foreseen, num_steps: int) -> None:
        self.prediction.skip(num_steps)
        token_ids, newest_index = self._in_flight[-1].token_ids, num_steps + len(self._in_flight) - 1
        elapsed = [*foreseen.elapsed[num_steps:newest_index], foreseen.alone[newest_index]]
        indices = range(num_steps, newest_index + 1)
        self._in_flight = deque(
            StepResult(token_ids, taken, foreseen.prepare[index], foreseen.device[index])
            for taken, index in zip(elapsed, indices, strict=True)
        )


def check_executes(make: partial[Engine]) -> None:
    """ValueError for an engine that computes no steps, where a study is about these; before a model is loaded."""
    if is_modelled(make):
        name = "recorded" if is_recorded(make) else "modelled"
        raise ValueError(f"engine={name} computes no steps that could be timed: use engine=torch")


def is_modelled(make: partial[Engine]) -> bool:
    """Whether an arm's engine executes nothing: it is told a model's config, or a record, instead of a model."""
    return make.func is ModelledEngine or is_recorded(make)


def is_recorded(make: partial[Engine]) -> bool:
    """Whether it repeats recorded runs."""
    return make.func is RecordedEngine
