"""RecordedEngine: a step takes what it took in a recorded run. It loads no weights and touches no device.

A replay that was recorded is repeated step by step. Once a step is another one, and in any other replay, steps take
what a cost model says that is fitted on the record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from framework.checks import whole
from framework.core import Batch, Request, Sequence, StepResult
from framework.cost.model import Outside
from framework.cost.prediction import Prediction
from framework.cost.record import Outputs, Record, Run, Shape, shape_of


class RecordedEngine:
    """Charges what steps took in the finished points of `points`: a study's folder, its `points`, or one of these.

    With `arm` only that arm's points count. A study fills in `sha256`, of what they hold; another content is refused.

    The KV cache has `num_blocks` blocks of `block_size` tokens, and `num_swap_blocks` on the host; None: as recorded.
    With `noise` a step that was not recorded takes as much longer or shorter as recorded ones did, drawn with `seed`;
    else the mean. Requests that were recorded give the same tokens; others end where their trace says.
    """

    timer: Callable[[], float] | None = None

    def __init__(
        self,
        model: Record,
        *,
        points: str,
        arm: str | None = None,
        sha256: str | None = None,
        num_blocks: int | None = None,
        block_size: int | None = None,
        num_swap_blocks: int | None = None,
        noise: bool = True,
        seed: int = 0,
    ) -> None:
        self.record, was = model, model.engine
        self.block_size = was.block_size if block_size is None else whole("engine.block_size", block_size)
        if model.blocks_per_adapter and self.block_size != was.block_size:
            raise ValueError(
                f"engine.block_size={block_size}: adapters lie in KV blocks of {was.block_size} tokens in {points}"
            )
        num_slots = was.num_blocks * was.block_size
        self.num_blocks = num_slots // self.block_size if num_blocks is None else whole("engine.num_blocks", num_blocks)
        self.num_cache_bytes = was.num_cache_bytes * self.num_blocks * self.block_size // num_slots
        self.num_adapter_slots, self.blocks_per_adapter = model.num_adapter_slots, model.blocks_per_adapter
        self.num_adapter_bytes = model.num_adapter_bytes
        given = model.num_swap_blocks if num_swap_blocks is None else num_swap_blocks
        self.num_swap_blocks = whole("engine.num_swap_blocks", given, at_least=0)
        self.max_model_len, self.num_steps_ahead = model.config.max_model_len, was.num_steps_ahead
        self.noise, self.seed = noise, seed
        self.on_progress: Callable[[str], None] = lambda message: None
        self._run: Run | None = None
        self._server = 0
        self._start()

    def follow(self, key: str, arm: str, server: int) -> None:
        """Repeat, from the next `begin` on, what this server did in the run with this key; there may be none."""
        self._run, self._server = self.record.run_of(key, arm), server

    def _start(self) -> None:
        self.num_replayed = 0
        self.prediction: Prediction | None = None  # from the first step on that is not in the run
        self._recorded: Iterator[tuple[Shape, StepResult]] = iter(())
        self._outputs: Outputs | None = None
        self._in_flight: deque[StepResult] = deque()
        self._token = 0

    @property
    def num_seen(self) -> int:
        return 0 if self.prediction is None else self.prediction.num_seen

    @property
    def outside(self) -> Outside:
        """Of the steps that were not repeated."""
        return Outside() if self.prediction is None else self.prediction.outside

    @property
    def has_outputs(self) -> bool:
        """Whether the record has the tokens of the last replay's requests."""
        return self._outputs is not None

    def refused_adapters(self, requests: list[Request]) -> dict[str, str]:
        """Those that the recorded engine refused; whether another one is there is not looked at."""
        named = {request.adapter_id for request in requests}
        return {adapter_id: reason for adapter_id, reason in self.record.refused.items() if adapter_id in named}

    def begin(self, requests: list[Request], max_num_seqs: int, max_num_batched_tokens: int | None = None) -> None:
        """Begin anew, find the requests' tokens, and choose one for the others that stops none of them."""
        self._start()
        stops = {token for request in requests for token in request.stop_token_ids}
        self._token = next(token for token in range(len(stops) + 1) if token not in stops)
        self.num_steps_ahead = self.record.engine.num_steps_ahead
        if self._run is not None:
            self.num_steps_ahead = self._run.num_steps_ahead
            self._recorded = self._run.steps_of(self._server)
            self._outputs = self._run.outputs(requests)
        if self._outputs is None:
            self._outputs = self.record.outputs(requests)

    def add(self, sequence: Sequence) -> None:
        pass

    def launch(self, batch: Batch) -> None:
        result = self._repeated(batch) or self._predicted(batch)
        result.token_ids = self._tokens(batch)
        self._in_flight.append(result)

    def collect(self) -> StepResult:
        return self._in_flight.popleft()

    def _repeated(self, batch: Batch) -> StepResult | None:
        """What the next step of the run took, if this is that step; from the first other one on, None."""
        shape, result = next(self._recorded, (None, None))
        if result is None or shape != shape_of(batch):
            self._recorded = iter(())
            return None
        self.num_replayed += 1
        return result

    def _predicted(self, batch: Batch) -> StepResult:
        if self.prediction is None:
            model, seen, has_adapters = self.record.cost, self.record.seen, self.num_adapter_slots > 0
            self.prediction = Prediction(model, has_adapters=has_adapters, noise=self.noise, seed=self.seed, seen=seen)
        return self.prediction.step(batch, self.num_steps_ahead, self._in_flight[-1] if self._in_flight else None)

    def _tokens(self, batch: Batch) -> list[int | None]:
        """One of each sequence; None where its prompt is not complete yet."""
        tokens: list[int | None] = []
        for index, sequence in enumerate(batch.sequences):
            end = batch.starts[index] + batch.num_tokens[index]
            is_sampled = index < batch.num_decode_tokens or end >= sequence.num_tokens
            tokens.append(self._token_at(sequence, end) if is_sampled else None)
        return tokens

    def _token_at(self, sequence: Sequence, slot: int) -> int:
        """The one that comes into this slot; any where its request has ended, or is in no run."""
        if self._outputs is None:
            return self._token
        output = self._outputs[sequence.request.request_id]
        place = slot - sequence.num_padding - sequence.request.num_prompt_tokens
        return output[place] if place < len(output) else self._token
