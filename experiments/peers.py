"""Peers beside the engine, of the same shape: Hugging Face's continuous batching, static `generate`, PEFT's batches.

Each runs in a process of its own, so that its memory is gone afterwards, and imports there what takes seconds.
Continuous batching is helped with the FlashAttention-2 that ships with torch: as installed it has only a dense mask.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor

from framework.models.config import ModelConfig, config_json

STATIC_BATCH_SIZE = 64
MAX_BATCH_TOKENS = 8192
BLOCK_SIZE = 256
WARM_UP_TOKENS = 8
TIME_LIMIT = 500.0  # seconds for the measured requests

R = TypeVar("R")
Prompt = tuple[list[int], int]  # token ids, and how many output tokens
Serve = Callable[[list[Prompt]], list[int]]  # the number of output tokens of each request


@dataclass(frozen=True)
class PeerRun:
    config: ModelConfig
    dtype: torch.dtype
    device: str
    prompts: list[Prompt]


def run_peer(peer: Callable[[PeerRun], R], run: PeerRun) -> R:
    """`peer(run)` in a fresh process; raises whatever it raised there."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(peer, run).result()


def continuous(run: PeerRun, max_num_seqs: int) -> dict[str, float]:
    """transformers' continuous-batching manager; CUDA graphs and async steps on a GPU."""
    from transformers.generation import ContinuousBatchingConfig

    model = build(run)
    model.set_attn_implementation(plug_in_flash() if run.device == "cuda" else "paged|sdpa")
    num_seats = min(max_num_seqs, len(run.prompts))
    longest = max(len(tokens) + num_outputs for tokens, num_outputs in run.prompts)
    settings = ContinuousBatchingConfig(
        block_size=BLOCK_SIZE,
        num_blocks=(-(-longest // BLOCK_SIZE) + 1) * num_seats + 2,
        max_batch_tokens=MAX_BATCH_TOKENS,
        max_requests_per_batch=num_seats,
        allow_block_sharing=False,
    )
    # eos_token_id=-1: with None the manager would take the model's own
    generation = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(generation_config=generation, continuous_batching_config=settings)
    manager.warmup()
    manager.start()
    try:
        result = time_requests(partial(serve_continuously, manager), run, run.prompts)  # captures what it will need
    finally:
        manager.stop(block=True, timeout=30)
        manager.destroy()
    resolved = manager.continuous_batching_config
    return result | {"cuda_graphs": resolved.use_cuda_graph, "async": resolved.use_async_batching}


def serve_continuously(manager: Any, prompts: list[Prompt]) -> list[int]:
    order = [manager.add_request(tokens, max_new_tokens=num, eos_token_id=-1) for tokens, num in prompts]
    limit = time.perf_counter() + TIME_LIMIT
    counts: dict[str, int] = {}
    while len(counts) < len(order):
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running() or time.perf_counter() > limit:
                raise RuntimeError(f"stopped with {len(counts)} of {len(order)} requests done")
        elif result.error is not None:
            raise RuntimeError(f"{result.request_id} failed: {result.error}")
        elif result.is_finished():
            counts[result.request_id] = len(result.generated_tokens)
    return [counts[request_id] for request_id in order]


def static(run: PeerRun, num_requests: int | None) -> dict[str, float]:
    """`generate` over left-padded batches of STATIC_BATCH_SIZE, each until its longest output is done.

    It serves the first `num_requests` (None: all).
    """
    run = replace(run, prompts=run.prompts[:num_requests])
    first_tokens = [(tokens, min(num, WARM_UP_TOKENS)) for tokens, num in run.prompts]
    return time_requests(partial(serve_statically, build(run)), run, first_tokens)


@torch.inference_mode()
def serve_statically(model: Any, prompts: list[Prompt]) -> list[int]:
    counts: list[int] = []
    for first in range(0, len(prompts), STATIC_BATCH_SIZE):
        batch = prompts[first : first + STATIC_BATCH_SIZE]
        width, num_steps = (max(sizes) for sizes in zip(*((len(tokens), num) for tokens, num in batch), strict=True))
        ids = torch.tensor([[0] * (width - len(tokens)) + tokens for tokens, _ in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens, _ in batch])
        generation = transformers.GenerationConfig(
            max_new_tokens=num_steps, min_new_tokens=num_steps, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        output = model.generate(ids, attention_mask=mask.to(model.device), generation_config=generation)
        counts += [len(row[width : width + num]) for row, (_, num) in zip(output.tolist(), batch, strict=True)]
    return counts


def mixed_adapters(
    run: PeerRun, *, batch_sizes: list[int], num_steps: int, num_adapters: int, rank: int, targets: list[str] | None
) -> dict[int, float]:
    """Batch size → seconds of a decode step of PEFT's mixed batches (`adapter_names=`), whose adapters are random.

    The sequences, the prompts of `run` in turn, ask in turn for `num_adapters` adapters on `targets` (None: all); of
    `num_steps` steps the median.
    """
    from peft import LoraConfig, get_peft_model  # optional

    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets or "all-linear", init_lora_weights=False)
    with torch.device(run.device):
        model = get_peft_model(build(run), lora, adapter_name="adapter-0")
        for index in range(1, num_adapters):
            model.add_adapter(f"adapter-{index}", lora)
    model = model.to(run.dtype).eval()

    @torch.inference_mode()
    def seconds(batch_size: int) -> float:
        times: list[float] = []

        def is_done(ids: Tensor, scores: Any, **keywords: Any) -> Tensor:
            """Called after every token, and never the end."""
            if run.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        ids = torch.tensor([run.prompts[row % len(run.prompts)][0] for row in range(batch_size)], device=run.device)
        num_tokens = num_steps + 1
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=transformers.GenerationConfig(
                max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
            ),
            stopping_criteria=transformers.StoppingCriteriaList([is_done]),
            adapter_names=[f"adapter-{row % num_adapters}" for row in range(batch_size)],
        )
        return median(end - start for start, end in pairwise(times))

    seconds(1)
    return {batch_size: seconds(batch_size) for batch_size in batch_sizes}


def time_requests(serve: Serve, run: PeerRun, warm_up: list[Prompt]) -> dict[str, float]:
    """Seconds for all requests at once, after `warm_up`; tokens asked for per second."""
    serve(warm_up)
    if run.device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    counts = serve(run.prompts)
    duration = time.perf_counter() - started
    wanted = [num for _, num in run.prompts]
    if counts != wanted:
        raise RuntimeError(f"the peer gave {sum(counts)} output tokens instead of {sum(wanted)}")
    return {"duration": duration, "output_throughput": sum(wanted) / duration}


def build(run: PeerRun) -> Any:
    """transformers' model of this shape with random weights, made on the device."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    with torch.device(run.device):
        model = transformers.AutoModelForCausalLM.from_config(
            hf_config(run.config), dtype=run.dtype, attn_implementation="sdpa"
        )
    return model.eval()


def hf_config(config: ModelConfig) -> Any:
    """transformers' config of the same shape, without an end-of-sequence token."""
    keys = config_json(config) | dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return transformers.AutoConfig.for_model(keys.pop("model_type"), **keys)


def plug_in_flash() -> str:
    """Register transformers' own paged attention over torch's FlashAttention-2; the name to choose it by.

    Its name has to say "flash": then transformers skips the dense mask, and uses CUDA graphs and async steps. The
    lazy import is filled in by hand, so that nothing looks for the flash-attn wheel or a kernel of the hub.
    """
    from transformers import modeling_flash_attention_utils as flash_utils
    from transformers.integrations.flash_paged import paged_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = "paged|flash_torch_2"
    ALL_ATTENTION_FUNCTIONS.register(name, paged_attention_forward)
    flash_utils._loaded_implementation = name
    flash_utils._flash_varlen_fn = flash_attn_varlen_func
    flash_utils._flash_with_kvcache_fn = None
    flash_utils._process_flash_kwargs_fn = flash_utils._lazy_define_process_function(flash_attn_varlen_func)
    return name


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = True,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """flash-attn's signature, by whose argument names transformers calls it."""
    assert causal
    assert tuple(window_size) == (-1, -1)
    lens = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    flash = torch.ops.aten._flash_attention_forward
    return flash(q, k, v, *lens, 0.0, True, False, scale=softmax_scale)[0]
