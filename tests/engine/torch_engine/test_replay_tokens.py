"""Tokens through the whole replay, with real arrivals and preemptions, equal transformers' generate."""

from functools import partial

import pytest

from framework.build import make_scheduler, replay_trace
from framework.core import Request
from framework.engine.torch_engine import TorchEngine
from framework.engine.torch_engine.prompt_tokens import prompt_token_ids
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.engine.torch_engine.hand_schedules import generate_alone
from tests.engine.torch_engine.test_engine import TINY_CONFIG, load, make_engine
from tests.models.checkpoints import greedy, make_hf_model
from tests.scheduler.shipped import shipped
from tests.thinning import mostly_nightly

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
@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_int8_cache_gives_the_tokens_of_one_request_after_the_other(name):
    options = {"config": TINY_CONFIG, "block_size": 7, "kv_dtype": "int8"}
    requests = make_arrivals()
    expected = generate_alone(make_engine(**options), requests)
    assert len({token for output in expected for token in output}) > 20
    check(make_engine(**options, num_blocks=num_blocks(name)), name, requests, expected)


def num_blocks(name):
    return 8 if "preemptions" in name else 64  # of 7 tokens; the longest request needs 6


def check(engine, name, requests, expected):
    sequences, _ = replay_trace(requests, make_scheduler(SCHEDULERS[name], engine), engine)
    assert [sequence.output_token_ids for sequence in sequences] == expected
    assert any(sequence.num_preemptions for sequence in sequences) == ("preemptions" in name)
