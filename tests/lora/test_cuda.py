"""Adapters on a real GPU: graphs, compiled blocks, fused kernels and copies beside the steps change no token."""

from dataclasses import replace
from functools import partial

import pytest

from framework.build import make_scheduler, replay_trace
from framework.engine.torch_engine import TorchEngine
from framework.lora.gathered import Gathered
from framework.lora.loop import Loop
from framework.lora.pool import serve_adapters
from framework.lora.segmented import Segmented
from framework.quantization import int8_weight_only
from framework.scheduler.continuous import ContinuousScheduler
from tests.engine.torch_engine.hand_schedules import make_requests
from tests.engine.torch_engine.test_decode import EAGER, MODELS, OUTPUT_LENS, PROMPT_LENS, SCHEDULERS, make_model
from tests.engine.torch_engine.test_schedules import float32_through
from tests.lora.serving_models import LargeAdapters

pytestmark = pytest.mark.gpu

NAMES = ["a", None, "b", "c", "a", "d"] * 2
REQUESTS = [
    replace(request, adapter_id=name, arrival_time=0.001 * request.request_id)
    for request, name in zip(make_requests(PROMPT_LENS * 2, OUTPUT_LENS * 2), NAMES, strict=True)
]


def serve(
    name,
    strategy,
    scheduler=ContinuousScheduler,
    *,
    dtype="float32",
    num_slots=4,
    quantize=None,
    targets=None,
    memory="split",
    num_blocks=64,
    **options,
):
    """Output tokens and steps of REQUESTS."""
    model = make_model(name, dtype=dtype)
    if quantize is not None:
        model = quantize(model)
    adapters = partial(LargeAdapters, ranks=[8, 16, 64])
    room = {"num_slots": num_slots, "max_rank": 64, "targets": targets, "memory": memory}
    serve_adapters(model, strategy=strategy, adapters=adapters, **room)
    engine = TorchEngine(model, block_size=16, num_blocks=num_blocks, **options)
    if memory == "unified":  # two adapters fit, and few sequences beside them
        engine = TorchEngine(model, block_size=16, num_blocks=2 * engine.blocks_per_adapter + 12, **options)
    sequences, steps = replay_trace(REQUESTS, make_scheduler(scheduler, engine), engine)
    return [sequence.output_token_ids for sequence in sequences], steps


@pytest.fixture(scope="module", params=MODELS)
def family(request):
    """A model, and the float32 tokens of the eager loop with all adapters resident."""
    return request.param, serve(request.param, Loop, **EAGER)[0]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("strategy", [Loop, Gathered, Segmented])
def test_float32_tokens_equal_the_eager_loop(family, strategy, overlap):
    name, expected = family
    assert serve(name, strategy, overlap=overlap)[0] == expected
    assert len({token for output in expected for token in output}) > 20


@pytest.mark.parametrize("strategy", [Loop, Gathered, Segmented])
def test_adapters_on_the_head_and_the_embedding(family, strategy):
    name, others = family
    targets = ["lm_head", "wte", "c_attn"] if name == "gpt2" else ["lm_head", "embed_tokens", "q_proj"]
    expected = serve(name, Loop, targets=targets, **EAGER)[0]
    assert serve(name, strategy, targets=targets)[0] == expected != others


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_whatever_the_schedule(family, scheduler, overlap):
    name, expected = family
    assert serve(name, Segmented, SCHEDULERS[scheduler], overlap=overlap)[0] == expected


@pytest.mark.parametrize("scheduler", ["mixed", "hybrid"])
def test_mixed_steps_through_kernels_and_graphs(family, scheduler):
    """Which float32 takes only here: so tokens must be equal, where bfloat16's may differ."""
    name, expected = family
    with float32_through(kernels=True):
        assert serve(name, Segmented, SCHEDULERS[scheduler], overlap=True)[0] == expected


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("num_slots", [1, 2])
def test_adapters_that_come_and_go_change_no_token(family, num_slots, overlap, prefetch):
    name, expected = family
    scheduler = partial(ContinuousScheduler, prefetch=prefetch)
    tokens, steps = serve(name, Segmented, scheduler, num_slots=num_slots, overlap=overlap)
    assert tokens == expected
    assert sum(step.num_adapter_loads for step in steps) > 4
    assert sum(step.adapter_wait > 0 for step in steps) >= 4
    assert all(step.adapter_wait <= step.elapsed for step in steps)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("strategy", [Gathered, Segmented])
def test_adapters_in_kv_blocks_change_no_token(family, strategy, overlap):
    """Under graphs, and with copies beside steps into blocks that were a sequence's one step before."""
    name, expected = family
    room = {"memory": "unified", "num_blocks": 4096}
    tokens, steps = serve(name, strategy, overlap=overlap, **room)
    assert tokens == expected
    assert sum(step.num_adapter_loads for step in steps) > 4
    with float32_through(kernels=True):
        scheduler = SCHEDULERS["mixed"]
        assert serve(name, strategy, scheduler, overlap=overlap, **room)[0] == expected


@pytest.mark.parametrize("strategy", [Gathered, Segmented])
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_graphs_give_the_tokens_of_eager_decode_steps(name, strategy):
    """Most of them: sums in another order may turn a near tie."""
    graphs, eager = (serve(name, strategy, dtype="bfloat16", cuda_graphs=is_on)[0] for is_on in (True, False))
    same = sum(one == other for pair in zip(graphs, eager, strict=True) for one, other in zip(*pair, strict=True))
    assert same >= 0.9 * sum(map(len, eager))


@pytest.mark.parametrize("name", MODELS)
def test_on_int8_weights(name):
    tokens = [
        serve(name, strategy, quantize=int8_weight_only.quantize, **options)[0]
        for strategy, options in ((Loop, EAGER), (Segmented, {}))
    ]
    same = sum(one == other for pair in zip(*tokens, strict=True) for one, other in zip(*pair, strict=True))
    assert same >= 0.9 * sum(map(len, tokens[0]))
