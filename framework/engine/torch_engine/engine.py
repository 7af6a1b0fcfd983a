"""TorchEngine: really executes a batch on the device where the model is, and times it to tokens on the host.

On a GPU, steps of one new token per sequence take the Decoder's way; prompts, and everything on a CPU, are laid out by
the host for each step.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from itertools import compress
from typing import Literal

import torch
from torch import Tensor

from framework.checks import check_threads
from framework.core import Batch, Request, Sequence, StepResult
from framework.engine.torch_engine.adapters import Placement
from framework.engine.torch_engine.compilation import compilation_refused, configure_model
from framework.engine.torch_engine.decode import Decoder
from framework.engine.torch_engine.grammar import Grammars
from framework.engine.torch_engine.in_flight import Done, Launched, OnDevice, pinned, record_event
from framework.engine.torch_engine.inputs import StepInputs, step_inputs
from framework.engine.torch_engine.kv_cache import allocate_cache, attach_cache, bytes_beside_weights, count_blocks
from framework.engine.torch_engine.prefill import PromptSteps, plain
from framework.engine.torch_engine.prompt_tokens import check_prompt, prompt_token_ids
from framework.engine.torch_engine.sampling import check_sampling, sample
from framework.engine.torch_engine.warm_up import warm_up_sizes, warm_up_steps
from framework.kernels.gpu_attention import is_supported
from framework.lora.pool import pool_of
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama


class TorchEngine:
    """Runs `model` over a paged KV cache of `num_blocks` blocks.

    The cache's size is `num_blocks`, or what `kv_cache_bytes` hold beside the adapter slots, or what `memory_bytes`
    hold beside these and the weights; with none of them, 90% of the GPU memory that is free now after a headroom of 2
    GiB, or 512 MiB on a CPU. `kv_dtype` "int8" keeps keys and values in about half the bytes (None: in the model's
    dtype). Tokens are sampled with `temperature` (0: greedy), `top_k` (0: off) and `top_p` (1: off). `use_cache=False`
    keeps no keys and values: every step recomputes prompt and output so far. `num_threads` CPU threads compute a step,
    in the whole process (None: one per core); more than one makes times unsteady where cores are shared.

    For a GPU: `fused` takes linear layers of few rows with their norm, activation and residual in one Triton kernel,
    `compile` fuses what surrounds the others with torch.compile, `cuda_graphs` replays decode steps, and steps of up to
    2,048 tokens of whole prompts, from captured graphs, `overlap` launches a step before the tokens of the one before
    are on the host (None: on, where the model is on a GPU). Models whose head_dim is not 16 (with int8 keys neither),
    32, 64 or 128 take plain attention, without graphs; prompts in float32 do too. A model serves one engine at a time:
    the last one built, or the last one whose `begin` was called.
    """

    def __init__(
        self,
        model: Llama | GPT2,
        *,
        block_size: int = 16,
        num_blocks: int | None = None,
        kv_cache_bytes: int | None = None,
        memory_bytes: int | None = None,
        kv_dtype: Literal["int8"] | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        use_cache: bool = True,
        fused: bool | None = None,
        compile: bool | None = None,
        cuda_graphs: bool | None = None,
        overlap: bool | None = False,
        seed: int = 0,
        num_threads: int | None = 1,
    ) -> None:
        check_sampling(temperature, top_k, top_p)
        if block_size < 1:
            raise ValueError(f"block_size {block_size} must be at least 1")
        if kv_dtype not in (None, "int8"):
            raise ValueError(f"kv_dtype {kv_dtype!r} must be null or int8")
        if kv_dtype is not None and not use_cache:
            raise ValueError(f"engine.kv_dtype={kv_dtype} needs a KV cache, and use_cache=false keeps none")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed {seed} must be at least 0 and below 2**63")
        check_threads("engine.num_threads", num_threads)
        norm = model.norm.weight  # of the activations' dtype, whatever the quantization
        self.model, self.device, self.dtype = model, norm.device, norm.dtype
        self.kv_dtype = self.dtype if kv_dtype is None else torch.int8
        self.is_on_gpu = self.device.type == "cuda"
        self.adapters = Placement(pool_of(model))
        self.num_adapter_slots, self.num_adapter_bytes = self.adapters.num_slots, self.adapters.num_bytes
        self.has_decoder = self.is_on_gpu and use_cache and is_supported(model.config.head_dim, self.kv_dtype)
        self.fused = _resolve("fused", fused, self.is_on_gpu, "needs a GPU")
        is_static, no_loop = self.adapters.is_static, "and another lora than loop"
        self.compile = _resolve("compile", compile, self.is_on_gpu and is_static, f"needs a GPU, {no_loop}")
        needs_decoder = "needs a GPU, a KV cache, and a head_dim of 16 (not with kv_dtype=int8), 32, 64 or 128"
        can_capture = self.has_decoder and is_static
        self.cuda_graphs = _resolve("cuda_graphs", cuda_graphs, can_capture, f"{needs_decoder}, {no_loop}")
        self.num_steps_ahead = int(_resolve("overlap", overlap, self.has_decoder, needs_decoder))
        self.max_model_len = model.config.max_model_len
        self.block_size = block_size
        self.use_cache = use_cache
        self.num_threads = (os.cpu_count() or 1) if num_threads is None else num_threads
        self.temperature, self.top_k, self.top_p, self.seed = temperature, top_k, top_p, seed
        self.timer: Callable[[], float] = time.perf_counter
        self.on_progress: Callable[[str], None] = lambda message: None
        if self.compile:
            torch.compiler.reset()  # what was compiled for other models counts against a limit
        attach_cache(model, [])  # what an earlier engine left would count as used memory
        if memory_bytes is not None:
            kv_cache_bytes = bytes_beside_weights(model, memory_bytes, num_blocks, kv_cache_bytes)
        sizes = (num_blocks, kv_cache_bytes, self.adapters.num_bytes)
        self.num_blocks = count_blocks(model.config, block_size, self.kv_dtype, self.device, *sizes)
        num_slots = self.num_blocks * block_size
        self._cache = allocate_cache(model.config, num_slots, self.kv_dtype, self.device) if use_cache else []
        self.num_cache_bytes = sum(layer.num_bytes for layer in self._cache)
        attach_cache(model, self._cache)
        self._generator = torch.Generator(self.device)
        self._grammars = Grammars(model.config, self.device)
        self._prompt_steps = PromptSteps(model, self.adapters, block_size, self.kv_dtype)
        self._decoder: Decoder | None = None
        self._in_flight: deque[Launched] = deque()
        self._collected_time = 0.0

    def refused_adapters(self, requests: list[Request]) -> dict[str, str]:
        return self.adapters.refused(requests)

    def begin(self, requests: list[Request], max_num_seqs: int) -> None:
        """Check the requests, attach the cache, warm up, and reseed the sampling: equal batches give equal tokens.

        Raises ValueError naming the request that is longer than `max_model_len`, or whose prompt is no prompt of this
        model, or whose id is there twice; naming the adapters that cannot be served; and as `Grammars.begin` does.
        """
        self._check(requests)
        self.adapters.begin(requests)
        self._grammars.begin(requests)
        if self._grammars.is_needed and self.num_steps_ahead:
            raise ValueError("a json_schema's mask needs the tokens of the step before: set engine.overlap=false")
        attach_cache(self.model, self._cache)
        configure_model(self.model, fused=self.fused, compile=self.compile)
        torch.set_num_threads(self.num_threads)
        self._in_flight.clear()
        try:
            self._warm_up(max_num_seqs)
        except torch.OutOfMemoryError as error:
            free_bytes, total_bytes = torch.cuda.mem_get_info(self.device)
            raise ValueError(
                f"no memory is left to run batches of {max_num_seqs}: {free_bytes / 2**30:.1f} of "
                f"{total_bytes / 2**30:.1f} GiB are free beside the weights and {self.num_blocks} KV blocks; lower "
                "engine.kv_cache_bytes or the scheduler's max_num_seqs"
            ) from error
        self._collected_time = 0.0
        self._generator.manual_seed(self.seed)

    def add(self, sequence: Sequence) -> None:
        """Set the prompt's tokens."""
        sequence.prompt_token_ids = prompt_token_ids(sequence.request, self.model.config.vocab_size, self.seed)

    def _check(self, requests: list[Request]) -> None:
        request_ids: set[int] = set()
        for request in requests:
            length = request.num_prompt_tokens + request.num_output_tokens
            if length > self.max_model_len:
                raise ValueError(
                    f"request {request.request_id} has {request.num_prompt_tokens} prompt and "
                    f"{request.num_output_tokens} output tokens; together at most {self.max_model_len} (max_model_len)"
                )
            if request.request_id in request_ids:
                raise ValueError(f"two requests have the id {request.request_id}")
            request_ids.add(request.request_id)
            check_prompt(request, self.model.config.vocab_size)

    def step(self, batch: Batch) -> StepResult:
        """Compute the batch's new slots; one token per sequence that reaches its last one, None for the others."""
        self.launch(batch)
        return self.collect()

    def launch(self, batch: Batch) -> None:
        """Start the step; on a CPU it is over when this returns. RuntimeError if it would have to compile something."""
        start_time = self.timer()
        is_replayed = self.cuda_graphs and batch.num_prefill_tokens == 0
        with compilation_refused() if self.is_on_gpu and not is_replayed else nullcontext():
            self._launch(batch, start_time)

    def collect(self) -> StepResult:
        """Wait for the oldest step in flight."""
        launched = self._in_flight.popleft()
        sampled, device = launched.running.wait()
        begun, self._collected_time = max(launched.start_time, self._collected_time), self.timer()
        elapsed = self._collected_time - begun
        tokens = iter(sampled)
        token_ids = [next(tokens) if is_sampled else None for is_sampled in launched.samples]
        hidden = begun - launched.start_time
        waits = {} if launched.loading is None else launched.loading.waits(hidden, elapsed)
        return StepResult(token_ids, elapsed, prepare=launched.prepare, device=device, adapter_waits=waits)

    @torch.inference_mode()
    def _launch(self, batch: Batch, start_time: float) -> None:
        loading = self.adapters.bring(batch)
        if self._decoder is not None and batch.num_prefill_tokens == 0:
            self._grammars.set_step(batch.sequences)
            running: OnDevice | Done = self._decoder.launch(batch)
            prepare, samples = self.timer() - start_time, [True] * len(batch.sequences)
        else:
            inputs = step_inputs(
                batch,
                max_model_len=self.max_model_len,
                block_size=self.block_size,
                use_cache=self.use_cache,
            )
            self._grammars.set_step(compress(batch.sequences, inputs.samples))
            run = self._run_on_gpu if self.is_on_gpu else self._run_on_cpu
            running, prepared_time = run(batch, inputs)
            prepare, samples = prepared_time - start_time, inputs.samples.tolist()
        self.adapters.prefetch()
        self._in_flight.append(Launched(start_time, prepare, samples, running, loading))

    def _run_on_cpu(self, batch: Batch, inputs: StepInputs) -> tuple[Done, float]:
        token_ids, positions = torch.from_numpy(inputs.token_ids), torch.from_numpy(inputs.positions)
        attention, rows = plain(self.model, inputs, self.block_size), torch.from_numpy(inputs.sampled_rows)
        tables = self.adapters.tables(inputs.adapter_slots)
        self.adapters.set_step({name: torch.from_numpy(table) for name, table in tables.items()}, tables)
        prepared_time = self.timer()
        sampled = self._sample(self._logits(self.model(token_ids, positions, attention), rows)).tolist()
        return Done(sampled, device=self.timer() - prepared_time), prepared_time

    def _run_on_gpu(self, batch: Batch, inputs: StepInputs) -> tuple[OnDevice, float]:
        arrays = {"rows": inputs.sampled_rows}
        if self._decoder is not None:
            assert inputs.block_tables is not None
            seats = self._decoder.admit(batch.sequences, inputs.context_lens, inputs.samples)
            arrays |= {"seats": seats, "sampled_seats": seats[inputs.samples], "tables": inputs.block_tables}
        sent, compute_hidden = self._prompt_steps.lay_out(inputs, arrays)
        prepared_time, start = self.timer(), record_event()
        sampled = self._sample(self._logits(compute_hidden(), sent["rows"]))
        if self._decoder is not None:
            tables = sent["tables"].view(len(batch.sequences), -1)
            self._decoder.store(sent["seats"], tables, sent["sampled_seats"], sampled)
        token_ids = pinned(len(sampled), dtype=sampled.dtype)
        token_ids.copy_(sampled, non_blocking=True)
        return OnDevice(token_ids, start, record_event()), prepared_time

    def _logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Of the rows to sample from: the vocabulary head is needed for these only."""
        return self.model.logits(hidden.index_select(0, rows))

    def _sample(self, logits: Tensor) -> Tensor:
        return sample(self._grammars.mask(logits), self.temperature, self.top_k, self.top_p, self._generator)

    def _warm_up(self, max_num_seqs: int) -> None:
        """Everything that is loaded, compiled or captured once, before anything is timed."""
        if self.has_decoder:
            self._decoder = self._decoder_for(max_num_seqs)
            self._decoder.reset()
        cache = {"num_blocks": self.num_blocks, "block_size": self.block_size}
        self._prompt_steps.is_replayed = False
        for num_seqs, num_prompt_tokens in warm_up_sizes(
            max_num_seqs, self.max_model_len, **cache, on_gpu=self.is_on_gpu
        ):
            self.on_progress(f"warming up: {num_seqs} prompts of {num_prompt_tokens} tokens")
            for batch in warm_up_steps(num_seqs, num_prompt_tokens, **cache):
                self._launch(batch, self.timer())
                self.collect()
        if self._decoder is not None and not self._decoder.is_warm:
            self._decoder.warm_up(self.on_progress, capture=self.cuda_graphs)
        if self.cuda_graphs:
            self._prompt_steps.capture(self.num_blocks * self.block_size, self.on_progress)
            self._prompt_steps.is_replayed = self._prompt_steps.has_flash

    def _decoder_for(self, max_num_seqs: int) -> Decoder:
        """The one at hand where it will do, else another; with grammars it leaves the logits to be masked."""
        choose = self._sample if self.temperature > 0.0 or self._grammars.is_needed else None
        decoder = self._decoder
        if decoder is not None and decoder.max_num_seqs >= max_num_seqs and decoder.sample == choose:
            return decoder
        self._decoder = decoder = None  # its memory is free before another is built
        return Decoder(
            self.model,
            choose,
            max_num_seqs=max_num_seqs,
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            adapters=self.adapters.pool,
        )


def _resolve(name: str, value: bool | None, is_possible: bool, needs: str) -> bool:
    """`value`, or whether it is possible; ValueError if it asks for what is not."""
    if value and not is_possible:
        raise ValueError(f"engine.{name}=true {needs} (null: on wherever it can be)")
    return is_possible if value is None else value
