"""What a step needs by its shapes is what an allocator hands out for it, and the automatic size leaves it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from framework.engine.torch_engine import TorchEngine, kv_cache
from framework.engine.torch_engine.sampling import Sampling, sample
from framework.engine.torch_engine.step_memory import MOST_ROWS, MOST_SEQS, needed_bytes, step_bytes
from framework.kernels.attention import plain_attention
from framework.kernels.decode_step import tokens_or_none
from framework.models.config import parse_config
from framework.models.footprint import footprint
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama
from framework.quantization import int8_weight_only, replace, zero_point
from tests.engine.torch_engine.hand_schedules import generate, make_requests
from tests.models.test_conf import read
from tests.quantization.schemes import SCHEMES
from tests.quantization.small_models import CONFIGS, make_model

GREEDY, DRAWN = Sampling(0.0, 0, 1.0, 0), Sampling(1.0, 5, 0.9, 0)


def peak_of(run):
    """The most bytes that torch's allocator on the CPU has handed out at a time, beside what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max())


@torch.inference_mode()
def allocated_by_a_step(model, sampling, num_rows, num_seqs):
    """Of prompts of 8 tokens."""
    config, lengths, token_ids = model.config, np.full(num_rows // 8, 8), torch.zeros(num_rows, dtype=torch.int64)
    attention = plain_attention(
        *(lengths, lengths, np.zeros_like(lengths), None), block_size=16, windows=config.layer_windows,
        num_queries_per_kv=config.num_heads // config.num_kv_heads, dtype=model.norm.weight.dtype, device="cpu",
    )  # fmt: skip

    def run():
        hidden = model(token_ids, token_ids % 8, attention)[:num_seqs].clone()
        logits = model.logits(hidden)
        tokens_or_none(logits, sample(logits, sampling.temperature, sampling.top_k, sampling.top_p, None))

    run()  # what is allocated once
    return peak_of(run)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("name", SCHEMES)
def test_a_step_takes_what_its_shapes_say(name, family):
    """A CPU makes a copy of an operand of another dtype, which a GPU does not: of bytes, of int32 products."""
    model = SCHEMES[name][0](make_model(family))
    for num_rows, num_seqs in ((16, 16), (512, 64)):
        expected = step_bytes(model, GREEDY, num_rows, num_seqs)
        least = 0.69 if name in ("int8_groups", "int8_dynamic", "zero_point") else 0.99
        assert least < expected / allocated_by_a_step(model, GREEDY, num_rows, num_seqs) < 1.01, num_rows


def test_what_adapters_add_is_counted_without_reading_them():
    def refuse(x):
        raise AssertionError("adapters are read")

    model = make_model("llama")
    alone = step_bytes(model, GREEDY, 512, 64)
    for layer in model.layers:
        layer.gate_up_proj.lora = refuse
    assert step_bytes(model, GREEDY, 512, 64) == alone + 4 * 512 * layer.gate_up_proj.out_features
    assert layer.gate_up_proj.lora is refuse


def test_drawing_tokens_takes_more_than_the_largest_logit():
    model = make_model("gpt2")
    drawn = step_bytes(model, DRAWN, 512, 512)
    assert 0.95 < drawn / allocated_by_a_step(model, DRAWN, 512, 512) < 1.05
    assert drawn > step_bytes(model, GREEDY, 512, 512)


@pytest.mark.parametrize("num_pretended", [2_000_000, 40_000_000])
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("name", SCHEMES)
def test_the_automatic_size_leaves_a_step_its_memory(name, family, num_pretended, monkeypatch):
    """As on a GPU with so many bytes beside the weights: they hold the cache that is made, and the largest step."""
    model = SCHEMES[name][0](make_model(family))
    monkeypatch.setattr(kv_cache, "free_bytes_of", lambda device: num_pretended)
    monkeypatch.setattr(kv_cache, "CUDA_HEADROOM_BYTES", 0)
    monkeypatch.setattr(kv_cache, "CUDA_CACHE_SHARE", 1.0)
    rows, seqs = MOST_ROWS, MOST_SEQS
    if num_pretended == 2_000_000:
        with pytest.raises(ValueError, match=r"steps of 8,192 tokens .* set engine.kv_cache_bytes to \d+ or more"):
            TorchEngine(model, block_size=4)
        return
    engine = TorchEngine(model, block_size=4)
    cast = 1.4 if name == "int8_dynamic" else 1.01  # int32 products, made float32 before they are multiplied
    step = allocated_by_a_step(model, GREEDY, rows, seqs)
    assert engine.num_cache_bytes + step / cast <= num_pretended
    requests = make_requests([5, 9], [3, 4])
    engine.begin(requests, 2)
    assert [len(tokens) for tokens in generate(engine, requests)] == [3, 4]


def on_meta(name):
    """The model of conf/model/NAME.yaml in bfloat16, without numbers; two of its layers, which take turns."""
    config = dataclasses.replace(parse_config(read(name)["config"], 1024), num_layers=2)
    with torch.device("meta"):
        return (GPT2 if config.model_type == "gpt2" else Llama)(config).to(torch.bfloat16).requires_grad_(False)


@pytest.mark.parametrize("name", [pytest.param("llama_8b", marks=pytest.mark.nightly), "gpt2"])
def test_the_shapes_of_whole_models(name, monkeypatch):
    """zero_point makes floats of a whole table, three times over; no other scheme comes near that."""
    for module in (replace, int8_weight_only, zero_point):
        monkeypatch.setattr(module, "check_finite", lambda tensor, name: None)
    monkeypatch.setattr(
        zero_point, "quantize_tensor", lambda values: (values.to(torch.uint8), torch.empty(2, device="meta"))
    )
    options = SimpleNamespace(cuda_graphs=True)
    needed = {
        scheme: needed_bytes(quantize(on_meta(name)), options, GREEDY) for scheme, (quantize, _) in SCHEMES.items()
    }
    table = on_meta(name).embed_tokens.weight.numel()
    # As float32 and bfloat16: for a step with a prompt, for a decode step's graph, and for a mixed one's
    assert needed["zero_point"] > 3 * 6 * table
    assert needed["zero_point"] < 3 * 6 * table + 2 * 2**30
    others = {scheme: value for scheme, value in needed.items() if scheme != "zero_point"}
    assert min(others, key=others.__getitem__) == "none"
    assert max(others.values()) < 4 * 2**30


def test_a_step_without_memory_says_what_to_set(monkeypatch):
    model = make_model("llama")
    engine = TorchEngine(model, block_size=4, kv_cache_bytes=1_000_000)
    monkeypatch.setattr(kv_cache, "CUDA_HEADROOM_BYTES", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**20, 2**30))
    engine._size = kv_cache.CacheSize(engine.num_blocks, engine.num_cache_bytes, 3_000_000)
    needed = needed_bytes(model, engine.options, GREEDY, 16, 1)
    assert needed < 1_000_000
    requests = make_requests([16, 4], [2, 2])

    def refuse(*args):
        raise torch.OutOfMemoryError

    engine.begin(requests, 2)
    monkeypatch.setattr(engine._steps, "launch", refuse)
    fits = int(0.9 * engine.num_cache_bytes)
    with pytest.raises(ValueError, match=rf"step of 16 tokens and 1 sequences.*engine.kv_cache_bytes={fits} \(it is"):
        generate(engine, requests)
    with pytest.raises(ValueError, match=r"max_num_batched_tokens or max_num_seqs"):
        engine.begin(requests, 2)
    engine._size = kv_cache.CacheSize(engine.num_blocks, engine.num_cache_bytes, needed + 450_000)
    with pytest.raises(ValueError, match=r"engine.kv_cache_bytes=40[45]\d\d\d "):
        generate(engine, requests)


def test_what_a_scheme_takes_comes_from_what_it_frees():
    """The cache of int8 weights is larger, even if its steps need more."""
    free = {}
    for name in ("none", "int8_weight_only"):
        model = SCHEMES[name][0](make_model("llama"))
        free[name] = 2**33 - footprint(model)["total"]
        needed = step_bytes(model, GREEDY, 16, 16)
        assert kv_cache.automatic_cache_bytes(free[name], needed) == int(0.9 * (free[name] - needed - 2**31))
    assert free["int8_weight_only"] > free["none"]
