"""TorchEngine: really executes a batch on the device where the model is, and times it to tokens on the host."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from framework.core import Batch, Request, Sequence, StepResult
from framework.engine.inputs import StepInputs, step_inputs
from framework.engine.kv_cache import allocate_cache, attach_cache, count_blocks
from framework.engine.prompts import prompt_token_ids
from framework.engine.sampling import check_sampling, sample
from framework.kernels.attention import AttentionInput, attention_input
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama

MAX_WARM_UP_TOKENS = 32


class TorchEngine:
    """Runs `model` over a paged KV cache of `num_blocks` blocks.

    The cache's size is `num_blocks`, or what `kv_cache_bytes` hold; with neither, 90% of the GPU memory that is free
    now after a headroom of 2 GiB, or 512 MiB on a CPU. Tokens are sampled with `temperature` (0: greedy), `top_k` (0:
    off) and `top_p` (1: off). `use_cache=False` keeps no keys and values: every step recomputes prompt and output so
    far. `num_threads` CPU threads compute a step, in the whole process (None: one per core); more than one makes
    times unsteady where cores are shared. A model serves one engine at a time: the last one built, or the last one
    whose `begin` was called.
    """

    def __init__(
        self,
        model: Llama | GPT2,
        *,
        block_size: int = 16,
        num_blocks: int | None = None,
        kv_cache_bytes: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        use_cache: bool = True,
        seed: int = 0,
        num_threads: int | None = 1,
    ) -> None:
        check_sampling(temperature, top_k, top_p)
        if block_size < 1:
            raise ValueError(f"block_size {block_size} must be at least 1")
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"num_threads {num_threads} must be at least 1")
        embedding = model.embed_tokens.weight
        self.model, self.device, self.dtype = model, embedding.device, embedding.dtype
        self.max_model_len = model.config.max_model_len
        self.block_size = block_size
        self.use_cache = use_cache
        self.num_threads = (os.cpu_count() or 1) if num_threads is None else num_threads
        self.temperature, self.top_k, self.top_p, self.seed = temperature, top_k, top_p, seed
        self.timer: Callable[[], float] = time.perf_counter
        attach_cache(model, [])  # what an earlier engine left would count as used memory
        self.num_blocks = count_blocks(model.config, block_size, self.dtype, self.device, num_blocks, kv_cache_bytes)
        num_slots = self.num_blocks * block_size
        self._cache = allocate_cache(model.config, num_slots, self.dtype, self.device) if use_cache else []
        self._generator = torch.Generator(self.device)
        self._prompts: dict[int, npt.NDArray[np.int32]] = {}

    def begin(self, requests: list[Request]) -> None:
        """Draw all prompts, attach the cache, warm up, and reseed the sampling: the same batches give the same tokens.

        Raises ValueError naming the request that is longer than `max_model_len`, or whose prompt is no prompt of this
        model, or whose id is there twice.
        """
        attach_cache(self.model, self._cache)
        torch.set_num_threads(self.num_threads)
        self._warm_up()
        self._prompts = {}
        for request in requests:
            length = request.num_prompt_tokens + request.num_output_tokens
            if length > self.max_model_len:
                raise ValueError(
                    f"request {request.request_id} has {request.num_prompt_tokens} prompt and "
                    f"{request.num_output_tokens} output tokens; together at most {self.max_model_len} (max_model_len)"
                )
            if request.request_id in self._prompts:
                raise ValueError(f"two requests have the id {request.request_id}")
            self._prompts[request.request_id] = prompt_token_ids(request, self.model.config.vocab_size, self.seed)
        self._generator.manual_seed(self.seed)

    @torch.inference_mode()
    def step(self, batch: Batch) -> StepResult:
        """Compute the batch's new slots; one token per sequence that reaches its last one, None for the others."""
        start_time = self.timer()
        inputs = step_inputs(
            batch,
            self._prompts,
            max_model_len=self.max_model_len,
            block_size=self.block_size,
            use_cache=self.use_cache,
        )
        uploaded = self._upload(inputs)
        prepared_time = self.timer()
        sampled = iter(self._run(*uploaded))
        end_time = self.timer()
        token_ids = [next(sampled) if is_sampled else None for is_sampled in inputs.samples]
        return StepResult(
            token_ids,
            elapsed=end_time - start_time,
            prepare=prepared_time - start_time,
            device=end_time - prepared_time,
        )

    def _upload(self, inputs: StepInputs) -> tuple[Tensor, Tensor, AttentionInput, Tensor | None]:
        """Token ids, positions, attention input, and the rows to sample from (None: all), on the device."""
        config = self.model.config
        attention = attention_input(
            inputs.query_lens,
            inputs.context_lens,
            inputs.padding,
            inputs.block_tables,
            block_size=self.block_size,
            num_queries_per_kv=config.num_heads // config.num_kv_heads,
            dtype=self.dtype,
            device=self.device,
        )
        last_rows = (np.cumsum(inputs.query_lens) - 1)[inputs.samples]
        rows = None if len(last_rows) == len(inputs.token_ids) else torch.from_numpy(last_rows).to(self.device)
        token_ids = torch.from_numpy(inputs.token_ids).to(self.device)
        return token_ids, torch.from_numpy(inputs.positions).to(self.device), attention, rows

    def _run(self, token_ids: Tensor, positions: Tensor, attention: AttentionInput, rows: Tensor | None) -> list[int]:
        """Forward pass and sampling; returns when the tokens are on the host."""
        hidden = self.model(token_ids, positions, attention)
        if rows is not None:
            hidden = hidden.index_select(0, rows)  # the vocabulary head is needed for these only
        if len(hidden) == 0:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return []
        logits = self.model.logits(hidden)
        sampled: list[int] = sample(logits, self.temperature, self.top_k, self.top_p, self._generator).tolist()
        return sampled

    def _warm_up(self) -> None:
        """One prompt and one decode step, so that libraries load and memory is taken before anything is timed."""
        capacity = min(MAX_WARM_UP_TOKENS, self.num_blocks * self.block_size, self.max_model_len)
        num_prompt_tokens = max(capacity - 1, 1)
        sequence = Sequence(Request(0, 0.0, num_prompt_tokens, 2))
        sequence.block_table = list(range(-(-capacity // self.block_size)))
        self._prompts = {0: np.zeros(num_prompt_tokens, dtype=np.int32)}
        self.step(Batch([sequence], [num_prompt_tokens], num_prompt_tokens, 0))
        if capacity > num_prompt_tokens:
            sequence.num_computed_tokens = num_prompt_tokens
            sequence.output_token_ids = [0]
            self.step(Batch([sequence], [1], 0, 1))
