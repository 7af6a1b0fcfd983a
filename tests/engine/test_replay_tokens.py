"""Tokens through the whole replay, with real arrivals and preemptions, equal transformers' generate."""

from functools import partial

import pytest

from framework.core import Request
from framework.engine.prompts import prompt_token_ids
from framework.engine.torch_engine import TorchEngine
from framework.replay import replay
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.engine.test_torch_engine import load
from tests.models.checkpoints import greedy, make_hf_model

LENGTHS = [(5, 18), (23, 12), (1, 25), (30, 1), (12, 16), (7, 9), (9, 30), (4, 14)]
SCHEDULERS = {
    "static": partial(StaticScheduler, max_num_seqs=3, max_wait=0.0),
    "continuous": partial(ContinuousScheduler, max_num_seqs=6),
    "continuous with preemptions": partial(ContinuousScheduler, max_num_seqs=6, watermark=0.0),
    "continuous with split prompts": partial(ContinuousScheduler, max_num_seqs=6, max_num_batched_tokens=8),
}


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "qwen3", "gpt2"])
def served(request, tmp_path_factory):
    """A loaded model, requests that arrive one after the other, and the outputs that transformers gives."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_hf_model(request.param)
    model.save_pretrained(folder)
    requests = [Request(index, 0.001 * index, *lengths) for index, lengths in enumerate(LENGTHS)]
    prompts = [prompt_token_ids(one, model.config.vocab_size, seed=0).tolist() for one in requests]
    expected = [greedy(model, prompt, length[1]) for prompt, length in zip(prompts, LENGTHS, strict=True)]
    return load(folder), requests, expected


@pytest.mark.parametrize("name", SCHEDULERS)
def test_replayed_tokens_equal_transformers(served, name):
    model, requests, expected = served
    num_blocks = 8 if "preemptions" in name else 64  # of 7 tokens; the longest request needs 6
    engine = TorchEngine(model, block_size=7, num_blocks=num_blocks)
    sequences, _ = replay(requests, SCHEDULERS[name](engine.num_blocks, engine.block_size), engine)
    assert [sequence.output_token_ids for sequence in sequences] == expected
    assert any(sequence.num_preemptions for sequence in sequences) == ("preemptions" in name)
