"""Adapters on the GPU's way, on a CPU: decode steps whose state stays on the device, and compiled blocks."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

from framework.core import Batch, Request, Sequence
from framework.engine.torch_engine import TorchEngine
from framework.engine.torch_engine import adapters as placement
from framework.engine.torch_engine.compilation import MAX_COMPILED_ROWS, compile_blocks, configure_model
from framework.kernels.lora import lora_delta
from framework.lora import gathered, segmented
from framework.lora.gathered import Gathered
from framework.lora.loop import Loop
from framework.lora.pool import MAX_STATIC_ROWS, pool_of, serve_adapters
from framework.lora.segmented import Segmented
from framework.models.loading import load_model
from framework.scheduler.continuous import ContinuousScheduler
from tests.engine.torch_engine.test_gpu_steps import Event, options_of_a_gpu, pretend  # noqa: F401
from tests.lora.serving_models import LargeAdapters, make_engine, outputs
from tests.models.loaded_models import logits
from tests.quantization.small_models import GPT2

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the real path is tested there")

SMALL = GPT2 | {"n_embd": 32, "n_head": 2, "n_layer": 1}
REQUESTS = [
    Request(index, 0.001 * index, *lengths, adapter_id=name)
    for index, (name, *lengths) in enumerate([("a", 3, 6), (None, 4, 6), ("b", 1, 3), ("c", 4, 4), ("a", 2, 1)])
]
PLAIN = partial(ContinuousScheduler, max_num_seqs=5)
TIGHT = partial(ContinuousScheduler, max_num_seqs=6, watermark=0.0, max_num_batched_tokens=3)


TABLES = ["attn.c_attn", "lm_head", "wte"]


def make_small(strategy, num_blocks=40, targets=None):
    given = {"path": None, "weights": "random", "seed": 0, "max_model_len": None, "dtype": "float32"}
    model = load_model(config=SMALL, device="cpu", **given)
    for parameter in model.parameters():
        parameter.mul_(5.0)
    adapters = partial(LargeAdapters, ranks=[2, 8])
    serve_adapters(model, strategy=strategy, adapters=adapters, num_slots=2, max_rank=8, targets=targets)
    return TorchEngine(model, block_size=4, num_blocks=num_blocks)


@pytest.mark.slow
@pytest.mark.usefixtures("pretend")
@pytest.mark.parametrize(
    ("strategy", "scheduler", "num_steps_ahead", "kernels", "targets"),
    [
        *((Loop, PLAIN, 0, False, None), (Loop, TIGHT, 0, False, TABLES), (Gathered, PLAIN, 1, False, None)),
        *((Segmented, TIGHT, 1, False, None), (Segmented, PLAIN, 0, True, None), (Segmented, PLAIN, 0, True, TABLES)),
        *((Segmented, TIGHT, 1, False, TABLES), (Gathered, PLAIN, 1, False, TABLES)),
        (Gathered, PLAIN, 0, True, None),
        pytest.param(Gathered, TIGHT, 1, True, TABLES, marks=pytest.mark.nightly),
    ],
)
def test_tokens_equal_the_plain_way(monkeypatch, strategy, scheduler, num_steps_ahead, kernels, targets):
    expected, *_ = outputs(make_small(Loop, targets=targets), REQUESTS)
    monkeypatch.setattr(gathered, "has_fixed_shapes", lambda x: True)
    if kernels:
        monkeypatch.setattr(segmented, "plain_lora_delta", lora_delta)
        monkeypatch.setattr(segmented, "has_kernels", lambda x: True)
    with options_of_a_gpu(num_steps_ahead=num_steps_ahead, fused=kernels):
        engine = make_small(strategy, num_blocks=3 if scheduler is TIGHT else 40, targets=targets)
    tokens, sequences, _ = outputs(engine, REQUESTS, scheduler)
    assert tokens == expected
    assert any(sequence.num_preemptions for sequence in sequences) == (scheduler is TIGHT)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "strategy"), [("llama", Segmented), ("gpt2", Gathered)])
def test_compiled_blocks_hold_for_any_adapters(monkeypatch, family, strategy):
    """One compilation for all layers, numbers of rows and adapters: a second one would be refused."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model = make_engine(family, strategy, num_slots=3).model
    pool = pool_of(model)
    for slot, name in enumerate("abc", start=1):
        pool.put(slot, pool.load(name))

    def run(num_rows, seed):
        slots = np.random.default_rng(seed).integers(0, 4, num_rows)
        tables = pool.step_tables(slots)
        pool.set_step(torch.from_numpy(tables), tables)
        with torch.inference_mode():
            return logits(model, torch.arange(num_rows) * 7 % 97)

    cases = [(num_rows, seed) for seed, num_rows in enumerate([7, 5, 33, 4, 64])]
    expected = [run(*case) for case in cases]
    configure_model(model, fused=False, compiled=compile_blocks(model))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    torch.testing.assert_close(run(*cases[0]), expected[0])
    with torch.compiler.set_stance("fail_on_recompile"):
        for case, plain in zip(cases, expected, strict=True):
            torch.testing.assert_close(run(*case), plain)
    assert torch._dynamo.utils.counters["graph_break"] == {}


def test_whatever_is_compiled_reads_the_same_tables():
    assert MAX_COMPILED_ROWS <= MAX_STATIC_ROWS


@pytest.mark.parametrize("option", ["compile", "cuda_graphs"])
def test_what_the_loop_cannot_do_says_so(option):
    model = make_engine(strategy=Loop).model
    with pytest.raises(ValueError, match=f"engine.{option}=true needs a GPU, .*and another lora than loop"):
        TorchEngine(model, **{option: True})


def test_what_a_step_needs_comes_before_it_and_the_rest_beside_it(monkeypatch):
    log = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_event(self, event):
            log.append(f"{self.name} waits")

    own = make_engine(num_slots=3).adapters
    own._stream = Stream("copies")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("steps"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(placement, "record_event", Event)
    monkeypatch.setattr(own.pool, "put", lambda slot, rows: log.append(f"copy to {slot}"))
    sequence = Sequence(Request(0, 0.0, 1, 1))
    sequence.adapter_slot = 1
    assert own.bring(Batch([sequence], [0], [1], 1, 0, {1: "a", 2: "b"})).waits(hidden=0.0, elapsed=1.0).keys() == {1}
    assert log == ["copy to 1"]
    own.prefetch()
    assert log[1:] == ["copies waits", "copy to 2"]
    assert own.bring(Batch([sequence], [1], [1], 0, 1)) is None
    sequence.adapter_slot = 2
    assert own.bring(Batch([sequence], [1], [1], 0, 1)).waits(hidden=0.0, elapsed=1.0).keys() == {2}
    assert log[3:] == ["steps waits"]
    own.prefetch()
    assert own.bring(Batch([sequence], [1], [1], 0, 1)) is None
    assert len(log) == 4
