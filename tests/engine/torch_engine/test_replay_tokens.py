"""Tokens through the whole replay, with real arrivals and preemptions, equal transformers' generate."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest

from framework.build import make_scheduler, replay_trace
from framework.core import Request
from framework.engine.torch_engine import TorchEngine
from framework.engine.torch_engine.prompt_tokens import prompt_token_ids
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.engine.torch_engine.hand_schedules import generate_alone
from tests.engine.torch_engine.test_engine import TINY_CONFIG, load, make_engine
from tests.lora.serving_models import make_engine as make_adapter_engine
from tests.lora.serving_models import outputs
from tests.models.checkpoints import greedy, make_hf_model
from tests.scheduler.shipped import shipped
from tests.thinning import every_nth, mostly_nightly

LENGTHS = [(5, 18), (23, 12), (1, 25), (30, 1), (12, 16), (7, 9), (9, 30), (4, 14)]
SCHEDULERS = {
    "static": partial(StaticScheduler, max_num_seqs=3, max_wait=0.0),
    "continuous": partial(ContinuousScheduler, max_num_seqs=6),
    "continuous with preemptions": partial(ContinuousScheduler, max_num_seqs=6, watermark=0.0),
    "continuous with split prompts": partial(ContinuousScheduler, max_num_seqs=6, max_num_batched_tokens=8),
    "mixed": shipped("mixed", max_num_seqs=6, max_num_batched_tokens=8),
    "mixed with preemptions": shipped("mixed", max_num_seqs=6, max_num_batched_tokens=16, watermark=0.0),
    "hybrid_only": shipped("hybrid_only", max_num_seqs=6, max_num_batched_tokens=32),
    "hybrid_only with preemptions": shipped("hybrid_only", max_num_seqs=6, watermark=0.0),
    "chunk_only": shipped("chunk_only", max_num_seqs=6, max_num_batched_tokens=8),
}
MEMORY_POLICIES = {
    "continuous with preemptions, swapped": partial(
        ContinuousScheduler, max_num_seqs=6, watermark=0.0, preemption="swap"
    ),
    "mixed with preemptions, swapped": shipped(
        "mixed", max_num_seqs=6, max_num_batched_tokens=16, watermark=0.0, preemption="swap"
    ),
    "mixed, oracle": shipped("mixed", max_num_seqs=6, max_num_batched_tokens=8, reservation="oracle"),
    "sarathi, pow2": shipped("sarathi", max_num_seqs=6, max_num_batched_tokens=8, reservation="pow2"),
    "continuous, max": partial(ContinuousScheduler, max_num_seqs=6, reservation="max"),
}


def make_arrivals():
    return [Request(index, 0.001 * index, *lengths) for index, lengths in enumerate(LENGTHS)]


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "qwen3", "gpt2"])
def served(request, tmp_path_factory):
    """A loaded model, requests that arrive one after the other, and the outputs that transformers gives."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_hf_model(request.param)
    model.save_pretrained(folder)
    requests = make_arrivals()
    prompts = [prompt_token_ids(one, model.config.vocab_size, seed=0).tolist() for one in requests]
    expected = [greedy(model, prompt, length[1]) for prompt, length in zip(prompts, LENGTHS, strict=True)]
    return load(folder), requests, expected


@pytest.mark.parametrize("name", SCHEDULERS)
def test_replayed_tokens_equal_transformers(served, name):
    model, requests, expected = served
    check(TorchEngine(model, block_size=7, num_blocks=num_blocks(name)), name, requests, expected)


@pytest.mark.parametrize("name", MEMORY_POLICIES)
@pytest.mark.parametrize("served", ["llama"], indirect=True)
def test_no_memory_policy_changes_a_token(served, name):
    model, requests, expected = served
    engine = TorchEngine(model, block_size=7, num_blocks=num_blocks(name), num_swap_blocks=9)
    check(engine, name, requests, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "steps", "whole_prompts", "blocks"),
    mostly_nightly([4, 5, 7, 11, 23, 64], ["mixed", "alternate", "prompts_first"], [False, True], [8, 7, 64]),
)
def test_every_chunk_size_gives_the_same_tokens(served, budget, steps, whole_prompts, blocks):
    model, requests, expected = served
    engine = TorchEngine(model, block_size=7, num_blocks=blocks)
    options = {"max_num_batched_tokens": budget, "steps": steps, "whole_prompts": whole_prompts}
    make = partial(ContinuousScheduler, max_num_seqs=4, watermark=0.0, **options)
    sequences, _ = replay_trace(requests, make_scheduler(make, engine), engine)
    assert [sequence.output_token_ids for sequence in sequences] == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", every_nth(2, [*SCHEDULERS, "mixed with preemptions, swapped"]))
def test_an_int8_cache_gives_the_tokens_of_one_request_after_the_other(name):
    options = {"config": TINY_CONFIG, "block_size": 7, "kv_dtype": "int8"}
    requests = make_arrivals()
    expected = generate_alone(make_engine(**options), requests)
    assert len({token for output in expected for token in output}) > 20
    check(make_engine(**options, num_blocks=num_blocks(name), num_swap_blocks=9), name, requests, expected)


def with_equal_beginnings(adapters=(None,), has_text=False):
    """Twelve prompts of 17 to 50 tokens, named up to the 45th in blocks of 5; four for each adapter; all at once."""
    requests = []
    for index in range(12):
        length = 17 + 3 * index
        ids = (1, 2, 3 + index % 2, 5, 6, 7, 8, 9, 10)[: -(-length // 5)]
        named = {"prefix_ids": ids, "prefix_block_size": 5, "adapter_id": adapters[index // 4 % len(adapters)]}
        request = Request(index, 0.0, length, 14, **named)
        if has_text:
            text = tuple(prompt_token_ids(request, TINY_CONFIG["vocab_size"], seed=0).tolist())
            request = replace(request, prompt_token_ids=text)
        requests.append(request)
    return requests


PREFIX_CACHES = {
    "whole prompts": {"prefix_cache": "lru"},
    "chunks": {"prefix_cache": "lfu", "steps": "mixed", "max_num_batched_tokens": 9, "whole_prompts": False},
    "whole prompts with preemptions": {"prefix_cache": "fifo", "steps": "mixed", "max_num_batched_tokens": 64},
    "chunks with preemptions": {
        "prefix_cache": "lru", "steps": "alternate", "max_num_batched_tokens": 11, "whole_prompts": False,
    },
}  # fmt: skip
MEMORY_CACHES = {
    "chunks with preemptions, swapped": {
        "prefix_cache": "lru", "steps": "mixed", "max_num_batched_tokens": 11, "whole_prompts": False,
        "preemption": "swap",
    },
    "chunks, pow2": {
        "prefix_cache": "fifo", "steps": "mixed", "max_num_batched_tokens": 11, "whole_prompts": False,
        "reservation": "pow2",
    },
}  # fmt: skip


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "block_size_and_text"),
    mostly_nightly(list(PREFIX_CACHES), [(1, False), (7, False), (16, False), (7, True)]),
)
def test_a_prefix_cache_changes_no_token(name, block_size_and_text, device):
    block_size, has_text = block_size_and_text
    requests = with_equal_beginnings(has_text=has_text)
    make = partial(make_engine, config=TINY_CONFIG, device=device)
    check_prefix_hits(make, name, block_size, requests, generate_alone(make(block_size=16), requests))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "block_size"), [*mostly_nightly(list(PREFIX_CACHES), [1, 7, 16]), *product(MEMORY_CACHES, [7])]
)
def test_a_prefix_cache_changes_no_token_of_any_adapter(name, block_size, device):
    requests = with_equal_beginnings([None, "a", "b"])
    alone = partial(ContinuousScheduler, max_num_seqs=1)
    make = partial(make_adapter_engine, device=device)
    engine = make(block_size=16)
    expected = [outputs(engine, [request], alone)[0][0] for request in requests]
    assert expected != generate_alone(engine, requests)  # without their adapters
    check_prefix_hits(make, name, block_size, requests, expected)


def check_prefix_hits(make, name, block_size, requests, expected):
    """Of 64 tokens at most a sequence has 64; with a second one of 30 beside it, one is preempted."""
    has_preemptions = "preemptions" in name
    size = -(-64 // block_size) + -(-30 // block_size) if has_preemptions else -(-400 // block_size)
    engine = make(block_size=block_size, num_blocks=size, num_swap_blocks=size if "swapped" in name else 0)
    scheduler = partial(ContinuousScheduler, max_num_seqs=3, watermark=0.0, **(PREFIX_CACHES | MEMORY_CACHES)[name])
    sequences, steps = replay_trace(requests, make_scheduler(scheduler, engine), engine)
    assert [sequence.output_token_ids for sequence in sequences] == expected
    assert any(sequence.num_preemptions for sequence in sequences) == has_preemptions
    assert any(sequence.num_swaps for sequence in sequences) == ("swapped" in name)
    assert sum(sequence.num_cached_tokens for sequence in sequences) > 0
    assert any(step.num_cached_blocks for step in steps)


def make_sessions():
    """Four of three turns each, whose new texts have 5 tokens."""
    requests = []
    for index in range(4):
        turns = [(9 + 3 * index, 9), (23 + 3 * index, 5), (33 + 3 * index, 7)]
        for turn, lengths in enumerate(turns, start=1):
            session = {"session_id": str(index), "turn": turn, "think_time": None if turn == 1 else 0.001}
            requests.append(Request(len(requests), 0.001 * index, *lengths, **session))
    return requests


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [None, "whole prompts", "chunks with preemptions"])
def test_a_turn_equals_the_same_text_sent_at_once(name, device):
    engine = make_engine(config=TINY_CONFIG, device=device, block_size=7, num_blocks=64)  # none is evicted
    options = {} if name is None else PREFIX_CACHES[name]
    scheduler = partial(ContinuousScheduler, max_num_seqs=3, watermark=0.0, **options)
    sequences, _ = replay_trace(make_sessions(), make_scheduler(scheduler, engine), engine)
    assert len(sequences) == 12
    assert sum(one.num_cached_tokens >= 14 for one in sequences) == (0 if name is None else 8)
    texts = []
    for one in sequences:
        text = tuple(one.prompt_token_ids.tolist())
        if one.previous is not None:
            said = [*one.previous.prompt_token_ids.tolist(), *one.previous.output_token_ids]
            assert list(text[: len(said)]) == said
        assert len(text) == one.request.num_prompt_tokens
        texts.append(replace(one.request, prompt_token_ids=text, think_time=None))
    alone = make_engine(config=TINY_CONFIG, device=device, block_size=16)
    assert generate_alone(alone, texts) == [one.output_token_ids for one in sequences]


def num_blocks(name):
    return 8 if "preemptions" in name else 64  # of 7 tokens; the longest request needs 6


def check(engine, name, requests, expected):
    sequences, _ = replay_trace(requests, make_scheduler((SCHEDULERS | MEMORY_POLICIES)[name], engine), engine)
    assert [sequence.output_token_ids for sequence in sequences] == expected
    assert any(sequence.num_preemptions for sequence in sequences) == ("preemptions" in name)
    assert any(sequence.num_swaps for sequence in sequences) == ("swapped" in name)
