"""TorchEngine: really executes a batch on the device where the model is, and times it to tokens on the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import torch

from framework.core import Batch, Request, Sequence, StepResult
from framework.engine.torch_engine.adapter_memory import AdapterMemory, adapter_memory
from framework.engine.torch_engine.adapters import Placement
from framework.engine.torch_engine.compilation import (
    compilation_refused,
    compile_blocks,
    configure_model,
    hints_ignored,
)
from framework.engine.torch_engine.cpu_steps import CpuSteps
from framework.engine.torch_engine.gpu_steps import GpuSteps
from framework.engine.torch_engine.grammar import Grammars
from framework.engine.torch_engine.in_flight import Launched
from framework.engine.torch_engine.key_bias import tell_of_biases
from framework.engine.torch_engine.kv_cache import (
    CacheSize,
    allocate_cache,
    allocate_shared,
    attach_cache,
    size_cache,
    too_little_memory,
)
from framework.engine.torch_engine.mixed import check_captured
from framework.engine.torch_engine.options import EngineOptions, check_swap
from framework.engine.torch_engine.prompt_tokens import check_requests, prompt_of
from framework.engine.torch_engine.sampling import Sampler, Sampling
from framework.engine.torch_engine.share import ServerSteps, Share
from framework.engine.torch_engine.swap import Pairs, Swap, copy_blocks
from framework.engine.torch_engine.warm_up import most_rows, warm_up_sizes, warm_up_steps
from framework.lora.pool import pool_of
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama


class TorchEngine:
    """Runs `model` over a paged KV cache of `num_blocks` blocks.

    The cache's size is `num_blocks`, or what `kv_cache_bytes` hold beside the adapter slots, or what `memory_bytes`
    hold beside these and the weights; with none of them, 90% of the GPU memory that is free now beside what steps of
    8,192 tokens and 256 sequences take and a headroom of 2 GiB, or 512 MiB on a CPU, and no more than `max_num_blocks`.
    Where adapters are in the cache (`lora.memory=unified`) the slots are ranges of its blocks, and it has room for
    these beside `max_num_blocks`.
    `num_swap_blocks` more are on the host, for what a scheduler swaps out; then up to 512 MiB of a GPU are for copies.
    `kv_dtype` "int8" keeps keys and values in about half the bytes (None: in the model's dtype). `use_cache=False`
    keeps none: every step recomputes prompt and output so far. Tokens are sampled with `temperature` (0: greedy),
    `top_k` (0: off) and `top_p` (1: off).
    `num_threads` CPU threads compute a step, in the whole process (None: one per core); more than one makes times
    unsteady where cores are shared.

    For a GPU: `fused` takes linear layers of few rows with their norm, activation and residual in one Triton
    kernel, `compile` fuses what surrounds the others with torch.compile, `cuda_graphs` replays decode steps, and
    steps with prompts of up to 2,048 tokens in all, from captured graphs, `overlap` launches a step before the
    tokens of the one before are on the host. None: on, where the model is on a GPU; but a model of few weights is
    not compiled, and a step is not launched ahead where a json_schema needs the token before. Models whose head_dim
    is not 16 (with int8 keys neither), 32, 64 or 128 take plain attention, without graphs; prompts in float32 do
    too. A model serves one engine at a time: the last one built, or the last one whose `begin` was called.
    """

    def __init__(
        self,
        model: Llama | GPT2,
        *,
        block_size: int = 16,
        num_blocks: int | None = None,
        kv_cache_bytes: int | None = None,
        memory_bytes: int | None = None,
        max_num_blocks: int | None = None,
        num_swap_blocks: int = 0,
        kv_dtype: Literal["int8"] | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        use_cache: bool = True,
        fused: bool | None = None,
        compile: bool | None = None,
        cuda_graphs: bool | None = None,
        overlap: bool | None = None,
        seed: int = 0,
        num_threads: int | None = 1,
    ) -> None:
        sampling, pool = Sampling(temperature, top_k, top_p, seed), pool_of(model)
        options = EngineOptions.resolve(
            model,
            pool is None or pool.strategy.is_static,
            block_size=block_size,
            kv_dtype=kv_dtype,
            use_cache=use_cache,
            fused=fused,
            compile=compile,
            cuda_graphs=cuda_graphs,
            overlap=overlap,
            num_threads=num_threads,
        )
        if options.kv_dtype == torch.int8:
            tell_of_biases(model)
        attach_cache(model, [])  # what an earlier engine left would count as used memory
        del pool  # it may keep an earlier engine's cache
        memory = adapter_memory(model, options)
        limits = {"num_blocks": num_blocks, "kv_cache_bytes": kv_cache_bytes, "memory_bytes": memory_bytes}
        size = size_cache(model, options, sampling, memory, max_num_blocks=max_num_blocks, **limits)
        check_swap(num_swap_blocks, use_cache)
        self.num_swap_blocks = num_swap_blocks
        self._build(model, sampling, options, size, memory)

    def _build(
        self,
        model: Llama | GPT2,
        sampling: Sampling,
        options: EngineOptions,
        size: CacheSize,
        memory: AdapterMemory,
    ) -> None:
        norm = model.norm.weight  # of the activations' dtype, whatever the quantization
        self.model, self.options = model, options
        self._size = size
        self.device, self.dtype, self.kv_dtype = norm.device, norm.dtype, options.kv_dtype
        self.num_blocks, self.block_size, self.num_cache_bytes = size.num_blocks, options.block_size, size.num_bytes
        self.max_model_len, self.num_steps_ahead = model.config.max_model_len, options.num_steps_ahead
        self.timer: Callable[[], float] = time.perf_counter
        self.on_progress: Callable[[str], None] = lambda message: None
        self._compiled = compile_blocks(model) if options.compile else {}
        if memory.ranges is not None:
            self._cache = allocate_shared(model, size.num_blocks, options, memory)
        elif options.use_cache:
            self._cache = allocate_cache(model, size.num_blocks * options.block_size, self.kv_dtype)
        else:
            self._cache = []
        attach_cache(model, self._cache)
        self.blocks_per_adapter, self.num_adapter_bytes = memory.blocks_per_adapter, memory.num_bytes
        self.adapters = adapters = Placement(pool_of(model), self.blocks_per_adapter, self.block_size)
        self.num_adapter_slots = adapters.num_slots
        self._swap = Swap(self._cache, self.block_size, self.num_swap_blocks) if self.num_swap_blocks else None
        self._own = ServerSteps(Share(0, size.num_blocks, adapters.num_slots, self.num_swap_blocks), model)
        self._sampler = Sampler(sampling, Grammars(model.config, self.device), self._own.generator)
        self._steps: GpuSteps | CpuSteps
        if options.is_on_gpu:
            self._steps = GpuSteps(model, adapters, self._sampler, options, size.num_blocks)
        else:
            self._steps = CpuSteps(model, adapters, self._sampler, options)
        self._warm_for: dict[bool, tuple[int, int]] = {}  # by whether sampling is greedy: sequences, rows

    @property
    def switches(self) -> dict[str, bool]:
        """What was decided of how steps are computed; `overlap` by the last `begin`."""
        options = self.options
        decided = {"fused": options.fused, "compile": options.compile, "cuda_graphs": options.cuda_graphs}
        return decided | {"overlap": self.num_steps_ahead > 0}

    def refused_adapters(self, requests: list[Request]) -> dict[str, str]:
        return self.adapters.refused(requests)

    def adapter_names(self, num_adapters: int) -> list[str]:
        return self.adapters.names(num_adapters)

    def use_adapter(self, adapter_id: str, num_tokens: int) -> int:
        return self.adapters.use(adapter_id, num_tokens)

    def begin(self, requests: list[Request], max_num_seqs: int, max_num_batched_tokens: int | None = None) -> None:
        """Check the requests, attach the cache, warm up, and reseed the sampling: equal batches give equal tokens.

        What is warm already is not warmed again, so a second replay of such requests begins at once.

        Raises ValueError naming the request that is longer than `max_model_len`, or whose prompt is no prompt of this
        model, or whose id is there twice; naming the adapters that cannot be served; as `Grammars.begin` does; and for
        steps of more tokens than are captured, where graphs are asked for by name.
        """
        self.begin_for([self._own], requests, max_num_seqs, max_num_batched_tokens)

    def begin_for(
        self,
        servers: list[ServerSteps],
        requests: list[Request],
        max_num_seqs: int,
        max_num_batched_tokens: int | None = None,
    ) -> None:
        """The same for servers that share the engine: each of them may have batches of up to `max_num_seqs`."""
        check_requests(requests, self.max_model_len, self.model.config.vocab_size)
        if self.options.must_replay and max_num_batched_tokens is not None:
            check_captured(f"scheduler.max_num_batched_tokens={max_num_batched_tokens}", max_num_batched_tokens)
        self.adapters.begin(requests)
        if self._swap is not None:
            self._swap.begin()
        self._sampler.grammars.begin(requests)
        self.num_steps_ahead = self._decide_steps_ahead()
        attach_cache(self.model, self._cache)
        configure_model(self.model, fused=self.options.fused, compiled=self._compiled)
        torch.set_num_threads(self.options.num_threads)
        num_rows = most_rows(requests, max_num_seqs, max_num_batched_tokens)
        try:
            self._warm_up([server.share for server in servers], max_num_seqs, num_rows)
        except torch.OutOfMemoryError as error:
            raise self._too_little_memory(num_rows, max_num_seqs) from error
        if len(servers) > 1 and self._cache:
            self.receive(self._own, [(0, 0)])  # whatever the first copy loads
        for server in servers:
            server.begin("step", self._sampler.sampling.seed)

    def add(self, sequence: Sequence) -> None:
        """Set the prompt's tokens."""
        vocab_size = self.model.config.vocab_size
        sequence.prompt_token_ids = prompt_of(sequence, vocab_size, self._sampler.sampling.seed)

    def _decide_steps_ahead(self) -> int:
        """As the options say, but none where a json_schema's mask needs the tokens of the step before."""
        if not self._sampler.grammars.is_needed:
            return self.options.num_steps_ahead
        if self.options.must_overlap:
            raise ValueError(
                "engine.overlap=true launches a step before the tokens that a json_schema's mask needs: leave it out, "
                "or set engine.overlap=false"
            )
        return 0

    def step(self, batch: Batch) -> StepResult:
        """Compute the batch's new slots; one token per sequence that reaches its last one, None for the others."""
        self.launch(batch)
        return self.collect()

    def launch(self, batch: Batch) -> None:
        """Start the step; on a CPU it is over when this returns. RuntimeError if it would have to compile something."""
        self.launch_for(self._own, batch, self.timer)

    def launch_for(self, server: ServerSteps, batch: Batch, timer: Callable[[], float]) -> None:
        """The same for a server that has a share of the engine; times are those of its `timer`."""
        start_time = timer()
        options = self.options
        is_replayed = options.cuda_graphs and batch.num_prefill_tokens == 0
        try:
            with compilation_refused() if options.is_on_gpu and not is_replayed else nullcontext():
                self._launch(server, batch, timer, start_time)
        except torch.OutOfMemoryError as error:
            raise self._too_little_memory(sum(batch.num_tokens), len(batch.sequences)) from error

    def collect(self) -> StepResult:
        """Wait for the oldest step in flight; ValueError naming it and a request whose logits are not finite."""
        return self._own.collect(self.timer)

    def finish(self, server: ServerSteps) -> float:
        """Wait until the server's last step is over, and the copies beside it; seconds that the device took."""
        _, device = server.in_flight[-1].running.wait()
        started = time.perf_counter()
        self.adapters.finish()
        if self._swap is not None:
            self._swap.finish()
        return device + time.perf_counter() - started

    @torch.inference_mode()
    def receive(self, server: ServerSteps, pairs: Pairs) -> float:
        """Copy KV blocks by pairs (from, to), which are the server's, alone on the device; seconds that it took."""
        self._steps.forget(server.share)
        if not self._cache:
            raise ValueError("engine.use_cache=false keeps no KV blocks that could be copied")
        return copy_blocks(self._cache, self.block_size, pairs)

    def _too_little_memory(self, num_rows: int, num_seqs: int) -> ValueError:
        sampling, adapter_bytes = self._sampler.sampling, self.num_adapter_bytes
        return too_little_memory(self.model, self.options, sampling, self._size, adapter_bytes, num_rows, num_seqs)

    @torch.inference_mode()
    def _launch(self, server: ServerSteps, batch: Batch, timer: Callable[[], float], start_time: float) -> None:
        share, self._sampler.generator = server.share, server.generator
        sending = None if self._swap is None else self._swap.send(share.outgoing(batch))
        loading = self.adapters.bring(batch, share.first_slot)
        fetching = None if self._swap is None else self._swap.fetch(*share.incoming(batch))
        running, samples, prepared_time = self._steps.launch(batch, share, timer)
        self.adapters.prefetch()
        if self._swap is not None:
            self._swap.beside()
        prepare = prepared_time - start_time
        launch = timer() - prepared_time if self.options.is_on_gpu else 0.0
        swapping = [one for one in (sending, fetching) if one is not None]
        parts = start_time, prepare, batch.sequences, samples, running, loading, swapping, launch
        server.in_flight.append(Launched(*parts))

    def _warm_up(self, shares: list[Share], max_num_seqs: int, num_rows: int) -> None:
        """Everything that is loaded, compiled or captured once for such steps, before anything is timed."""
        self._own.begin("warm-up step", self._sampler.sampling.seed)
        self._steps.begin(max_num_seqs, shares)
        cache = {"num_blocks": self.num_blocks, "block_size": self.block_size}
        sizes = warm_up_sizes(max_num_seqs, self.max_model_len, num_rows, **cache, on_gpu=self.options.is_on_gpu)
        is_greedy = self._sampler.is_greedy
        warm_seqs, warm_rows = self._warm_for.get(is_greedy, (0, 0))
        if max_num_seqs <= warm_seqs and num_rows <= warm_rows:
            sizes = sizes[-1:]  # the memory that its steps take may have been another engine's since
        with hints_ignored():
            for num_seqs, num_prompt_tokens in sizes:
                self.on_progress(f"warming up: {num_seqs} prompts of {num_prompt_tokens} tokens")
                for batch in warm_up_steps(num_seqs, num_prompt_tokens, **cache):
                    self._launch(self._own, batch, self.timer, self.timer())
                    self.collect()
            self._steps.capture(num_rows, self.on_progress)
        self._warm_for[is_greedy] = max(max_num_seqs, warm_seqs), max(num_rows, warm_rows)
