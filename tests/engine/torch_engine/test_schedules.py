"""Tokens under every scheduler of conf/scheduler on a real GPU, with chunks and preemptions, graphs and overlap.

In float32 they equal transformers'. In bfloat16, whose products round by shape, logits are near float32's. Requests
arrive all at once: how long a step takes changes no schedule.
"""

from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch

from framework.build import make_scheduler, replay_trace
from framework.engine.torch_engine import TorchEngine, mixed
from framework.engine.torch_engine.prompt_tokens import prompt_token_ids
from framework.lora.adapters import RandomAdapters
from framework.lora.pool import serve_adapters
from framework.lora.segmented import Segmented
from framework.models.loading import load_model
from framework.quantization import int8_dynamic, int8_weight_only
from framework.scheduler.block_manager import BlockManager
from tests.engine.torch_engine.hand_schedules import in_order, make_requests, relative_error, told
from tests.engine.torch_engine.test_decode import EAGER, INT8_LOGIT_ERROR, LLAMA, LOGIT_ERROR
from tests.engine.torch_engine.test_engine import load
from tests.fake_engine import FakeEngine
from tests.models.checkpoints import greedy, make_hf_model
from tests.scheduler.shipped import NAMES, shipped

LENGTHS = [(5, 18), (70, 12), (1, 25), (130, 1), (37, 16), (7, 9), (90, 30), (16, 14)]
REQUESTS = make_requests(*zip(*LENGTHS, strict=True))
RNG = np.random.default_rng(0)
MANY_REQUESTS = make_requests(RNG.integers(1, 120, 48).tolist(), RNG.integers(1, 24, 48).tolist())
SIZES = {"block_size": 16, "num_blocks": 64, "num_swap_blocks": 12}
FEW_BLOCKS = 10  # the longest request needs 9
SCHEDULERS = {
    "continuous": shipped("continuous", max_num_seqs=6),
    "continuous with preemptions": shipped("continuous", max_num_seqs=6, watermark=0.0),
    "mixed": shipped("mixed", max_num_seqs=6, max_num_batched_tokens=7),
    "mixed with preemptions": shipped("mixed", max_num_seqs=6, max_num_batched_tokens=40, watermark=0.0),
    "sarathi": shipped("sarathi", max_num_seqs=6, max_num_batched_tokens=24),
    "hybrid_only": shipped("hybrid_only", max_num_seqs=6),
    "hybrid_only with preemptions": shipped("hybrid_only", max_num_seqs=6, watermark=0.0),
    "chunk_only": shipped("chunk_only", max_num_seqs=6, max_num_batched_tokens=13),
    "continuous with preemptions, swapped": shipped("continuous", max_num_seqs=6, watermark=0.0, preemption="swap"),
    "mixed with preemptions, swapped": shipped(
        "mixed", max_num_seqs=6, max_num_batched_tokens=40, watermark=0.0, preemption="swap"
    ),
    "continuous with pow2": shipped("continuous", max_num_seqs=6, reservation="pow2"),
    "sarathi with oracle": shipped("sarathi", max_num_seqs=6, max_num_batched_tokens=24, reservation="oracle"),
    "static": shipped("static", max_num_seqs=3, max_wait=0.0),
}
CPU = pytest.param(("cpu", {}, False), marks=pytest.mark.slow, id="cpu")  # shows that the tests hold


def on_cuda(name, through_kernels=False, **options):
    return pytest.param(("cuda", options, through_kernels), marks=pytest.mark.gpu, id=name)


def serve(engine, name, requests=REQUESTS):
    """Sequences and steps."""
    scheduler = make_scheduler(SCHEDULERS[name], engine)
    if "preemptions" in name:
        scheduler.blocks = BlockManager(FEW_BLOCKS, engine.block_size)
    sequences, steps = replay_trace(requests, scheduler, engine)
    assert any(sequence.num_preemptions for sequence in sequences) == ("preemptions" in name)
    assert any(sequence.num_swaps for sequence in sequences) == ("swapped" in name)
    assert any(step.phase == "mixed" for step in steps) == name.startswith(("mixed", "sarathi", "hybrid_only"))
    return sequences, steps


def outputs(engine, name, requests=REQUESTS):
    sequences, _ = serve(engine, name, requests)
    return [sequence.output_token_ids for sequence in sequences]


def logits_of(engine, name, answers, requests=REQUESTS):
    """Of every token, while the tokens are `answers`."""
    with told(engine, answers) as seen:
        assert outputs(engine, name, requests) == answers
    assert len(seen) == sum(map(len, answers))
    return in_order(seen)


def test_every_scheduler_is_here():
    assert {name.split()[0] for name in SCHEDULERS} == set(NAMES)


@pytest.mark.parametrize("requests", [REQUESTS, MANY_REQUESTS], ids=["few", "many"])
@pytest.mark.parametrize("num_steps_ahead", [0, 1])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_preempt_and_mix_as_their_names_say(name, num_steps_ahead, requests):
    """Known without a GPU."""
    serve(FakeEngine(**SIZES, num_steps_ahead=num_steps_ahead), name, requests)


@pytest.fixture(scope="module", params=["llama", "mistral_window"])
def checkpoint(request, tmp_path_factory):
    """A folder, and the outputs that transformers gives; a window of 16 tokens is shorter than most prompts."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_hf_model(request.param, num_attention_heads=8, num_key_value_heads=2, head_dim=64)
    model.save_pretrained(folder)
    prompts = [prompt_token_ids(one, model.config.vocab_size, seed=0).tolist() for one in REQUESTS]
    return folder, [greedy(model, prompt, length[1]) for prompt, length in zip(prompts, LENGTHS, strict=True)]


@contextmanager
def float32_through(kernels):
    """If so, prompts and mixed steps take the kernels and graphs in float32 too, as they do in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        if kernels:
            patch.setattr(mixed, "FLASH_DTYPES", (*mixed.FLASH_DTYPES, torch.float32))
        yield


@pytest.fixture(
    scope="module",
    params=[
        CPU,
        on_cuda("one ahead", overlap=True),
        on_cuda("kernels", through_kernels=True, overlap=False),
        on_cuda("kernels one ahead", through_kernels=True, overlap=True),
    ],
)
def engine(request, checkpoint):
    device, options, through_kernels = request.param
    with float32_through(through_kernels):
        yield TorchEngine(load(checkpoint[0], device=device), **SIZES, **options)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_float32_tokens_equal_transformers(engine, checkpoint, name):
    assert outputs(engine, name) == checkpoint[1]


WINDOW = 50
CONFIGS = {"llama": LLAMA, "window": LLAMA | {"model_type": "mistral", "sliding_window": WINDOW}}
QUANTIZED = {"int8_weight_only": int8_weight_only.quantize, "int8_dynamic": int8_dynamic.quantize}
ADAPTERS = {"a": 8, "b": 64, "c": 16}
WITH_ADAPTERS = [replace(one, adapter_id=[*ADAPTERS, None][one.request_id % 4]) for one in REQUESTS]


def make_engine(name="llama", device="cuda", dtype="bfloat16", change=None, **options):
    """Of the same weights everywhere, which are drawn in float32 on the CPU."""
    given = {"path": None, "weights": "random", "config": CONFIGS[name], "max_model_len": None, "seed": 0}
    model = load_model(**given, dtype="float32", device="cpu")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(3.0)  # else the model repeats one token, whatever came before
    model = model.to(device, getattr(torch, dtype))
    if change in QUANTIZED:
        model = QUANTIZED[change](model)
    elif change == "segmented":
        adapters = partial(RandomAdapters, ranks=[8, 64, 16])
        serve_adapters(model, strategy=Segmented, adapters=adapters, num_slots=3, max_rank=64)
    elif change == "int8 cache":
        options["kv_dtype"] = "int8"
    return TorchEngine(model, **SIZES, **options)


@cache
def exact(name):
    """Tokens and logits of the model in float32, on the CPU and in whole prompts."""
    engine = make_engine(name, "cpu", "float32")
    with told(engine) as seen:
        tokens = outputs(engine, "continuous")
    assert len({token for output in tokens for token in output}) > 20
    return tokens, in_order(seen)


def are_decided(logits, error):
    """Whether no such error explains another token, for each row.

    An error is relative, root mean square. Of the difference of two logits it is larger by the root of two; the largest
    of some hundred tokens times a few rivals is about three times that: the two best must be further apart.
    """
    best, second = logits.topk(2, dim=-1).values.T
    return best - second > 3 * 2**0.5 * error * logits.square().mean(-1).sqrt()


BFLOAT16 = [CPU, on_cuda("eager", overlap=False, **EAGER), on_cuda("graphs one ahead", overlap=True)]
CHUNKED = ["mixed with preemptions", "hybrid_only", "continuous with preemptions, swapped"]


@pytest.fixture(scope="module", params=BFLOAT16)
def rounded(request):
    """Makes the engine of a model in bfloat16."""
    device, options, _ = request.param
    return cache(lambda name: make_engine(name, device, **options))


@pytest.mark.parametrize("schedule", CHUNKED)
@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_logits_are_near_float32s(rounded, name, schedule):
    """All of a replay's, while the tokens are float32's; the largest is the same one wherever that is decided."""
    tokens, expected = exact(name)
    logits = logits_of(rounded(name), schedule, tokens)
    assert 0 < relative_error(logits, expected) < LOGIT_ERROR
    assert max(map(relative_error, logits, expected)) < 2 * LOGIT_ERROR
    decided = are_decided(expected, LOGIT_ERROR)
    assert decided.float().mean() > 0.5
    assert torch.equal(logits.argmax(-1)[decided], expected.argmax(-1)[decided])


@pytest.mark.parametrize("schedule", CHUNKED)
@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_tokens_are_float32s_up_to_one_that_is_not_decided(rounded, name, schedule):
    """Chosen in the graphs: what comes after another token may be anything."""
    tokens, logits = exact(name)
    decided = iter(are_decided(logits, LOGIT_ERROR).tolist())
    num_same = 0
    for output, expected in zip(outputs(rounded(name), schedule), tokens, strict=True):
        flags = [next(decided) for _ in expected]
        same = [one == other for one, other in zip(output, expected, strict=True)]
        first = same.index(False) if False in same else len(same)
        assert all(same) or not flags[first]
        num_same += first
    assert num_same > 0.3 * len(logits)


@pytest.mark.gpu
@pytest.mark.parametrize("change", [*QUANTIZED, "int8 cache", "segmented"])
def test_bfloat16_graphs_one_ahead_are_near_the_eager_steps_of_the_same_schedule(change):
    """Products round by shape, which rows of nobody change; with int8 a sum may round to another whole number."""
    requests = WITH_ADAPTERS if change == "segmented" else REQUESTS
    tokens, unchanged = exact("llama")
    eager, graphs = (
        logits_of(make_engine(change=change, **options), "mixed with preemptions", tokens, requests)
        for options in (EAGER | {"overlap": False}, {"overlap": True})
    )
    most = INT8_LOGIT_ERROR if "int8" in change else LOGIT_ERROR
    assert relative_error(graphs, eager) < most
    decided = are_decided(eager, most)
    assert decided.any()
    assert torch.equal(graphs.argmax(-1)[decided], eager.argmax(-1)[decided])
    assert relative_error(eager, unchanged) > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("schedule", ["mixed with preemptions", "mixed with preemptions, swapped", "sarathi"])
@pytest.mark.parametrize("change", ["int8_weight_only", "int8 cache", "segmented"])
def test_float32_graphs_one_ahead_give_the_tokens_of_eager_steps(change, schedule):
    """Of an int8 cache in all requests but one: see test_an_int8_cache_gives_the_same_tokens_under_every_schedule."""
    requests = WITH_ADAPTERS if change == "segmented" else REQUESTS
    expected = outputs(make_engine(dtype="float32", change=change, **EAGER, overlap=False), schedule, requests)
    with float32_through(kernels=True):
        tokens = outputs(make_engine(dtype="float32", change=change, overlap=True), schedule, requests)
    num_others = sum(one != other for one, other in zip(tokens, expected, strict=True))
    assert num_others <= (change == "int8 cache")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_a_second_replay_of_many_requests_gives_the_same_bits_from_the_same_graphs(name):
    engine = make_engine(name, overlap=True)
    replays, graphs = [], []
    for _ in range(2):
        sequences, steps = serve(engine, "mixed with preemptions", MANY_REQUESTS)
        replays.append(([one.output_token_ids for one in sequences], [step.phase for step in steps]))
        graphs.append({size: graph for size, (graph, _) in engine._steps.mixed._graphs.items()})
    assert replays[0] == replays[1]
    assert graphs[0] == graphs[1]  # nothing was captured again
    assert graphs[0].keys() == {16, 32, 64}
