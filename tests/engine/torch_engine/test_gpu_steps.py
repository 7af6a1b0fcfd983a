"""The GPU's way through the engine, on a CPU: the interpreter, host memory that is not pinned, a fake event."""

import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch

from framework.build import replay_trace
from framework.core import Batch, Request
from framework.engine.torch_engine import TorchEngine, decode, decode_rows, gpu_steps, in_flight, warm_up
from framework.engine.torch_engine.compilation import compile_blocks, configure_model
from framework.engine.torch_engine.decode import batch_sizes
from framework.engine.torch_engine.gpu_steps import GpuSteps
from framework.engine.torch_engine.mixed import MixedSteps
from framework.engine.torch_engine.options import EngineOptions
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.engine.torch_engine.hand_schedules import generate, make_requests, seat
from tests.engine.torch_engine.test_engine import GPT2_CONFIG
from tests.engine.torch_engine.test_engine import make_engine as make_any_engine
from tests.kernels.test_gpu_attention import loop_flash
from tests.thinning import mostly_nightly

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the real path is tested there")

KEPT = [("mixed", 1), ("preemptions", 0)]  # the others run every night
make_engine = partial(make_any_engine, config=GPT2_CONFIG | {"n_embd": 64, "n_head": 2, "n_layer": 1})
PROMPT_LENS, OUTPUT_LENS = [7, 7, 1, 12], [4, 6, 8, 1]


class Event:
    """Has happened when it is recorded."""

    def __init__(self) -> None:
        self.record()

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.time - self.time)


@pytest.fixture
def pretend(monkeypatch):
    """An engine that takes the GPU's way with the interpreter's kernels."""
    for module in (in_flight, decode_rows, gpu_steps):
        monkeypatch.setattr(module, "record_event", Event)
    monkeypatch.setattr(warm_up, "LENGTHS", (3,))
    monkeypatch.setattr(warm_up, "BATCHES", ())
    monkeypatch.setattr(decode, "batch_sizes", lambda max_num_seqs: [max_num_seqs])

    def make(num_steps_ahead=0, must_overlap=False, must_replay=False, **keywords) -> TorchEngine:
        changes = {"num_steps_ahead": num_steps_ahead, "must_overlap": must_overlap, "must_replay": must_replay}
        with options_of_a_gpu(**changes):
            return make_engine(**keywords)

    return make


@contextmanager
def options_of_a_gpu(**changes):
    """Engines that are built inside take the GPU's way, with `changes` in their options."""
    resolve = EngineOptions.resolve

    def resolve_as_on_a_gpu(*others, **options):
        return replace(resolve(*others, **options), is_on_gpu=True, has_decoder=True, **changes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineOptions, "resolve", resolve_as_on_a_gpu)
        yield


def expected(requests, **keywords):
    engine = make_engine(**keywords)
    engine.begin(requests, 8)
    return generate(engine, requests)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "kv_dtype"), mostly_nightly(["ragged", "chunked", "static"], [None, "int8"]))
def test_tokens_equal_the_plain_way(pretend, mode, kv_dtype):
    requests = make_requests(PROMPT_LENS, OUTPUT_LENS)
    engine = pretend(kv_dtype=kv_dtype)
    engine.begin(requests, 8)
    tokens = generate(engine, requests, chunk=4 if mode == "chunked" else 10**9, is_static=mode == "static")
    assert tokens == expected(requests, kv_dtype=kv_dtype)


SCHEDULERS = {
    "continuous": partial(ContinuousScheduler, max_num_seqs=4),
    "preemptions": partial(ContinuousScheduler, max_num_seqs=4, watermark=0.0),
    "split prompts": partial(ContinuousScheduler, max_num_seqs=4, max_num_batched_tokens=8),
    "static": partial(StaticScheduler, max_num_seqs=3, max_wait=0.0),
    "mixed": partial(ContinuousScheduler, max_num_seqs=4, max_num_batched_tokens=6, steps="mixed"),
    "alternate": partial(ContinuousScheduler, max_num_seqs=4, max_num_batched_tokens=6, steps="alternate"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_steps_ahead"), mostly_nightly([*SCHEDULERS], [0, 1]))
def test_replayed_tokens_equal_the_plain_way(pretend, name, num_steps_ahead):
    requests = make_requests(PROMPT_LENS, OUTPUT_LENS)
    engine = pretend(num_steps_ahead, num_blocks=4 if name == "preemptions" else 64)
    scheduler = SCHEDULERS[name](engine.num_blocks, engine.block_size)
    engine.begin(requests, scheduler.max_num_seqs)
    started = time.perf_counter()
    sequences, steps = replay_trace(requests, scheduler, engine)
    assert sum(step.elapsed for step in steps) <= time.perf_counter() - started  # nothing is charged twice
    assert [sequence.output_token_ids for sequence in sequences] == expected(requests)
    assert any(sequence.num_preemptions for sequence in sequences) == (name == "preemptions")
    assert all(step.elapsed > 0 and step.prepare > 0 and step.device > 0 for step in steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_steps_ahead"),
    [
        ("mixed", 1),
        pytest.param("mixed", 0, marks=pytest.mark.nightly),
        pytest.param("continuous", 0, marks=pytest.mark.nightly),
        pytest.param("continuous", 1, marks=pytest.mark.nightly),
        pytest.param("alternate", 0, marks=pytest.mark.nightly),
        pytest.param("alternate", 1, marks=pytest.mark.nightly),
    ],
)
def test_a_prefix_cache_changes_no_token(pretend, name, num_steps_ahead):
    """Six blocks of 4: the prompts of two begin with those of the others, and there are preemptions."""
    names = {"prefix_ids": (1, 2, 3), "prefix_block_size": 3}
    requests = [Request(index, 0.0, length, 10, **names) for index, length in enumerate([7, 12, 9, 13])]
    engine = pretend(num_steps_ahead, num_blocks=6, block_size=4)
    scheduler = partial(SCHEDULERS[name], watermark=0.0, prefix_cache="lru")(engine.num_blocks, engine.block_size)
    sequences, _ = replay_trace(requests, scheduler, engine)
    assert [sequence.output_token_ids for sequence in sequences] == expected(requests, block_size=4)
    assert any(sequence.num_preemptions for sequence in sequences)
    assert any(sequence.num_cached_tokens for sequence in sequences)


@pytest.fixture(params=[[16, 32, 64], pytest.param([], marks=pytest.mark.nightly)], ids=["replayed", "eager"])
def with_kernels(request, monkeypatch):
    """Mixed steps through their kernels, of these sizes as from graphs, whose inputs are always at the same places."""

    def capture(steps, num_rows, on_progress):
        steps.mixed.has_kernels, steps.mixed.is_replayed, steps.mixed.sizes = True, True, request.param

    def replay(steps, size, sent):
        steps._read.send()
        return steps._forward(size)

    monkeypatch.setattr(MixedSteps, "_replay", replay)
    monkeypatch.setattr(GpuSteps, "capture", capture)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", loop_flash)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_steps_ahead"),
    [
        pytest.param(name, ahead, marks=[] if (name, ahead) in KEPT else pytest.mark.nightly)
        for name, ahead in product(["mixed", "static", "split prompts", "preemptions", "continuous"], [1, 0])
    ],
)
def test_kernels_and_rows_of_nobody_change_no_token(pretend, with_kernels, name, num_steps_ahead):
    requests = make_requests(PROMPT_LENS, OUTPUT_LENS)
    engine = pretend(num_steps_ahead, num_blocks=4 if name == "preemptions" else 64)
    sequences, steps = replay_trace(requests, SCHEDULERS[name](engine.num_blocks, engine.block_size), engine)
    assert [sequence.output_token_ids for sequence in sequences] == expected(requests)
    assert any(step.phase == "mixed" for step in steps) == (name == "mixed")


def test_a_capture_that_fails_is_tried_again(pretend, monkeypatch):
    def forward(size):
        raise torch.OutOfMemoryError

    steps = begun(pretend())._steps.mixed
    steps.has_kernels = True
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(steps, "_forward", forward)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            steps.capture(64, lambda message: None)
    assert steps.sizes == []


def test_only_sizes_that_steps_need_are_captured_and_each_once(pretend, monkeypatch):
    class Graph:
        def __init__(self):
            self.pool = None

    @contextmanager
    def capture(graph, pool):
        graph.pool = pool
        yield

    captured = []
    steps = begun(pretend())._steps.mixed
    steps.has_kernels = True
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(steps, "_forward", captured.append)
    for num_rows in (20, 60, 40):
        steps.capture(num_rows, lambda message: None)
    assert captured == [32, 32, 16, 16, 64, 64]  # run, then captured
    assert steps.sizes == [16, 32, 64]
    assert {graph.pool for graph, _ in steps._graphs.values()} == {(0, 1)}


def begun(engine):
    engine.begin(make_requests([1], [1]), 2)
    return engine


def test_a_seat_taken_away_is_brought_anew(pretend):
    """Two seats per running sequence: with 4 requests in batches of 1, everyone's seat is taken again and again."""
    requests = make_requests(PROMPT_LENS, [3] * 4)
    engine = pretend()
    engine.begin(requests, 1)
    sequences = seat(engine, requests)
    for _ in range(3):
        for sequence in sequences:
            step(engine, [sequence])
    assert [sequence.output_token_ids for sequence in sequences] == expected(requests)


def test_a_preempted_sequence_that_goes_on_where_it_left_off_reads_its_new_blocks(pretend):
    """Another one with the same prompt has computed the same eight tokens in other blocks; its own have others' now."""
    same = {"prefix_ids": (1, 2), "prefix_block_size": 4}
    requests = [Request(0, 0.0, 12, 3, **same), Request(1, 0.0, 8, 1, **same), Request(2, 0.0, 8, 1)]
    engine = pretend(block_size=4)
    engine.begin(requests, 3)
    one, same, other = seat(engine, requests, blocks_each=4)
    chunk(engine, one, 0, 8)
    chunk(engine, same, 0, 8)
    other.block_table[:2] = one.block_table[:2]
    chunk(engine, other, 0, 8)
    one.block_table[:2] = same.block_table[:2]
    one.num_preemptions += 1
    chunk(engine, one, 8, 12)
    for _ in range(2):
        step(engine, [one])
    assert one.output_token_ids == expected(requests[:1], block_size=4)[0]


def chunk(engine, sequence, start, end):
    [token_id] = engine.step(Batch([sequence], [start], [end - start], end - start, 0)).token_ids
    sequence.num_computed_tokens = end
    if token_id is not None:
        sequence.append(token_id, 0.0)


def step(engine, sequences):
    """One step of these sequences: whole prompts, or one token each."""
    starts = [sequence.num_computed_tokens for sequence in sequences]
    num_tokens = [sequence.num_tokens - start for sequence, start in zip(sequences, starts, strict=True)]
    num_decode_tokens = len(sequences) if sequences[0].output_token_ids else 0
    result = engine.step(Batch(sequences, starts, num_tokens, sum(num_tokens) - num_decode_tokens, num_decode_tokens))
    for sequence, num, token_id in zip(sequences, num_tokens, result.token_ids, strict=True):
        sequence.num_computed_tokens += num
        sequence.append(token_id, 0.0)


@pytest.mark.slow
def test_decode_steps_take_a_json_schemas_mask_and_are_sampled_in_the_graph_without_one(pretend):
    pytest.importorskip("llguidance")
    shape = GPT2_CONFIG | {"n_embd": 64, "n_head": 2, "n_layer": 1, "vocab_size": 256, "eos_token_id": 0}
    bound = make_requests([3, 5], [9, 9], stop_token_ids=frozenset({0}), json_schema='{"enum": ["ab", 12, null]}')
    free = make_requests([3, 5], [9, 9])
    engine = pretend(config=shape)
    for requests in (bound, free, bound):
        engine.begin(requests, 2)
        assert (engine._steps.decoder.sample is None) == (requests is free)
        tokens = generate(engine, requests)
        assert tokens == expected(requests, config=shape)
        is_document = [bytes(output) in (b'"ab"\0', b"12\0", b"null\0") for output in tokens]
        assert is_document == [requests is bound] * 2


@pytest.mark.parametrize("must_overlap", [False, True])
def test_a_json_schema_needs_the_last_token_so_its_steps_are_not_launched_ahead(pretend, must_overlap):
    pytest.importorskip("llguidance")
    shape = GPT2_CONFIG | {"n_embd": 64, "n_head": 2, "n_layer": 1, "vocab_size": 256, "eos_token_id": 0}
    bound = make_requests([3], [9], stop_token_ids=frozenset({0}), json_schema='{"enum": ["ab"]}')
    engine = pretend(config=shape, num_steps_ahead=1, must_overlap=must_overlap)
    engine.begin(make_requests([3], [9]), 1)
    assert engine.switches["overlap"]
    if must_overlap:
        with pytest.raises(ValueError, match=r"engine\.overlap=true .* json_schema"):
            engine.begin(bound, 1)
        return
    engine.begin(bound, 1)
    assert not engine.switches["overlap"]
    engine.begin(make_requests([3], [9]), 1)
    assert engine.switches["overlap"]


def test_a_budget_above_what_is_captured_is_refused_where_graphs_are_asked_for(pretend):
    requests = make_requests([3], [2])
    with pytest.raises(
        ValueError, match=r"max_num_batched_tokens=4096 is more .* engine\.cuda_graphs=true asks for graphs"
    ):
        pretend(must_replay=True).begin(requests, 2, 4096)
    pretend(must_replay=True).begin(requests, 2, None)
    pretend(must_replay=False).begin(requests, 2, 4096)


def test_what_is_warm_is_not_warmed_again(pretend, monkeypatch):
    monkeypatch.setattr(warm_up, "LENGTHS", (3, 9, 20))
    engine = pretend()
    said = []
    engine.on_progress = said.append
    counts = []
    for requests, max_num_seqs in [
        (make_requests([2], [2]), 2),
        (make_requests([2], [2]), 1),
        (make_requests([9], [9]), 2),
        (make_requests([2, 3], [4, 9]), 2),
    ]:
        said.clear()
        engine.begin(requests, max_num_seqs)
        counts.append([line for line in said if line.startswith("warming")])
    assert [len(lines) for lines in counts] == [2, 1, 3, 3]
    assert counts[1] == ["warming up: 1 prompts of 4 tokens"]
    engine.begin(make_requests([2, 3], [4, 9]), 2)
    assert len(said) == 3 + 1


def test_batch_sizes():
    assert batch_sizes(1) == [1]
    assert batch_sizes(6) == [1, 2, 4, 6]
    assert batch_sizes(32) == [1, 2, 4, 8, 16, 24, 32]
    assert batch_sizes(300)[-4:] == [248, 256, 288, 300]


def test_blocks_are_configured_anew_each_time():
    model = make_engine().model
    rows = []
    for compile in (True, False):
        configure_model(model, fused=compile, compiled=compile_blocks(model) if compile else {})
        rows.append(["project" in vars(block) for block in model.layers])
        assert (model.layers[0].qkv_proj.max_fused_rows > 0) == (model.lm_head.max_fused_rows > 0) == compile
    assert rows == [[True], [False]]


@pytest.mark.parametrize("option", ["fused", "compile", "cuda_graphs", "overlap"])
def test_what_needs_a_gpu_says_so(option):
    with pytest.raises(ValueError, match=f"engine.{option}=true needs a GPU"):
        make_engine(**{option: True})
