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


def make_small(strategy, num_blocks=40, targets=None, memory="split"):
    given = {"path": None, "weights": "random", "seed": 0, "max_model_len": None, "dtype": "float32"}
    model = load_model(config=SMALL, device="cpu", **given)
    for parameter in model.parameters():
        parameter.mul_(5.0)
    adapters = partial(LargeAdapters, ranks=[2, 8])
    serve_adapters(model, strategy=strategy, adapters=adapters, num_slots=2, max_rank=8, targets=targets, memory=memory)
    return TorchEngine(model, block_size=4, num_blocks=num_blocks)


@pytest.mark.slow
@pytest.mark.usefixtures("pretend")
@pytest.mark.parametrize(
    ("strategy", "scheduler", "num_steps_ahead", "kernels", "targets"),
    [
        *((Loop, TIGHT, 0, False, TABLES), (Segmented, TIGHT, 1, False, None)),
        (Gathered, PLAIN, 0, True, None),
        pytest.param(Segmented, PLAIN, 0, True, TABLES, marks=pytest.mark.nightly),
        pytest.param(Gathered, PLAIN, 1, False, None, marks=pytest.mark.nightly),
        pytest.param(Loop, PLAIN, 0, False, None, marks=pytest.mark.nightly),
        pytest.param(Segmented, PLAIN, 0, True, None, marks=pytest.mark.nightly),
        pytest.param(Segmented, TIGHT, 1, False, TABLES, marks=pytest.mark.nightly),
        pytest.param(Gathered, PLAIN, 1, False, TABLES, marks=pytest.mark.nightly),
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
@pytest.mark.usefixtures("pretend")
@pytest.mark.parametrize(
    ("strategy", "kernels"), [(Gathered, False), pytest.param(Segmented, True, marks=pytest.mark.nightly)]
)
def test_in_the_kv_cache_as_in_memory_of_their_own(monkeypatch, strategy, kernels):
    """Kernels read an adapter's numbers in the keys and values of a cache, which sequences take when it is idle."""
    requests = REQUESTS[:3]
    expected, *_ = outputs(make_small(Loop), requests)
    monkeypatch.setattr(gathered, "has_fixed_shapes", lambda x: True)
    if kernels:
        monkeypatch.setattr(segmented, "plain_lora_delta", lora_delta)
        monkeypatch.setattr(segmented, "has_kernels", lambda x: True)
    with options_of_a_gpu(num_steps_ahead=1, fused=kernels):
        num_blocks = make_small(strategy, 400, memory="unified").blocks_per_adapter
        engine = make_small(strategy, num_blocks + 6, memory="unified")
    assert engine.num_adapter_slots == 1
    tokens, _, steps = outputs(engine, requests, PLAIN)
    assert tokens == expected
    assert sum(step.num_adapter_loads for step in steps) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "strategy", "memory"),
    [
        pytest.param("llama", Segmented, "split", marks=pytest.mark.nightly),
        pytest.param("gpt2", Gathered, "split", marks=pytest.mark.nightly),
        pytest.param("llama", Segmented, "unified", marks=pytest.mark.nightly),
    ],
)
def test_compiled_blocks_hold_for_any_adapters(monkeypatch, family, strategy, memory):
    """One compilation for all layers, numbers of rows and adapters: a second one would be refused."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model = make_engine(family, strategy, num_slots=3, num_blocks=200, memory=memory).model
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


class Copied(Event):
    is_over = False

    def query(self):
        return self.is_over


class Stream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_event(self, event):
        self.log.append(f"{self.name} waits")


@pytest.fixture
def logged_copies(monkeypatch):
    """A log of which stream waits, for `placement_of`."""
    log = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("steps", log))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(placement, "record_event", Copied)
    return log


def placement_of(engine, log):
    """The engine's adapters with a stream for copies; its copies are logged."""
    engine.adapters._stream = Stream("copies", log)
    engine.adapters.pool.put = lambda slot, rows: log.append(f"copy to {slot}")
    return engine.adapters


def test_what_a_step_needs_comes_before_it_and_the_rest_beside_it(logged_copies):
    log = logged_copies
    own = placement_of(make_engine(num_slots=3), log)
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


def test_a_step_that_writes_to_the_blocks_of_an_adapter_on_its_way_waits_for_it(logged_copies):
    """The adapter was evicted for the sequence before its copy was over, which would overwrite keys."""
    log = logged_copies
    own = placement_of(make_engine(num_slots=3, num_blocks=100, memory="unified"), log)
    sequence = Sequence(Request(0, 0.0, 6, 1))
    sequence.block_table = [99, 2 * own.blocks_per_adapter - 1]
    own.bring(Batch([sequence], [0], [4], 4, 0, {1: "a", 2: "b"}))
    own.prefetch()
    log.clear()
    assert own.bring(Batch([sequence], [0], [4], 4, 0)) is None
    assert log == []  # block 99 is no adapter's
    assert own.bring(Batch([sequence], [4], [1], 1, 0)) is None
    assert log == ["steps waits"]
    assert own.bring(Batch([sequence], [5], [1], 1, 0)) is None
    assert len(log) == 1


def test_a_step_does_not_wait_for_a_copy_that_is_over(monkeypatch, logged_copies):
    log = logged_copies
    own = placement_of(make_engine(num_slots=3, num_blocks=100, memory="unified"), log)
    sequence = Sequence(Request(0, 0.0, 4, 1))
    sequence.block_table = [0]
    own.bring(Batch([sequence], [0], [4], 4, 0, {1: "a"}))
    own.prefetch()
    log.clear()
    monkeypatch.setattr(Copied, "is_over", True)
    assert own.bring(Batch([sequence], [0], [4], 4, 0)) is None
    assert log == []
