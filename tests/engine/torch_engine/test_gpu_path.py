"""Whole replays on the GPU's way, on a CPU: windows and random schedules give the plain way's tokens."""

from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework.build import replay_trace
from framework.engine.torch_engine.replica import make_replicas
from framework.engine.torch_engine.seats import Seats
from framework.replay import Server, replay
from framework.router.round_robin import round_robin
from framework.scheduler.continuous import ContinuousScheduler
from framework.trace.source import TraceSource
from tests.engine.torch_engine.hand_schedules import generate_alone, make_requests
from tests.engine.torch_engine.test_engine import GPT2_CONFIG
from tests.engine.torch_engine.test_engine import make_engine as make_any_engine
from tests.engine.torch_engine.test_gpu_steps import SCHEDULERS, pretend, with_kernels  # noqa: F401

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the real path is tested there")

WINDOW = {
    "model_type": "mistral", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "sliding_window": 6, "tie_word_embeddings": False,
}  # fmt: skip
SMALL = GPT2_CONFIG | {"n_embd": 32, "n_head": 2, "n_layer": 1}
PROMPT_LENS, OUTPUT_LENS = [7, 13, 1, 12], [4, 6, 8, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_steps_ahead"),
    [
        pytest.param("mixed", 1, marks=pytest.mark.nightly),
        pytest.param("static", 0, marks=pytest.mark.nightly),
        pytest.param("split prompts", 1, marks=pytest.mark.nightly),
        pytest.param("preemptions", 1, marks=pytest.mark.nightly),
    ],
)
def test_windows_through_the_kernels(pretend, with_kernels, name, num_steps_ahead):  # noqa: F811
    """In chunks, decode steps and whole prompts, most of which are longer than the window."""
    requests = make_requests(PROMPT_LENS, OUTPUT_LENS)
    engine = pretend(num_steps_ahead, config=WINDOW, num_blocks=5 if name == "preemptions" else 64, block_size=4)
    sequences, _ = replay_trace(requests, SCHEDULERS[name](engine.num_blocks, engine.block_size), engine)
    assert [sequence.output_token_ids for sequence in sequences] == plain_tokens("window", PROMPT_LENS, OUTPUT_LENS)


@pytest.mark.nightly
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.tuples(st.integers(1, 14), st.integers(1, 6)), min_size=1, max_size=4),
    max_num_seqs=st.integers(1, 4),
    budget=st.integers(4, 30),
    steps=st.sampled_from(["mixed", "alternate", "prompts_first"]),
    whole_prompts=st.booleans(),
    num_more_blocks=st.integers(0, 6),
    num_steps_ahead=st.integers(0, 1),
    preemption=st.sampled_from(["swap", "recompute"]),
)
def test_random_schedules_give_the_plain_ways_tokens(
    pretend,  # noqa: F811
    with_kernels,  # noqa: F811
    lengths,
    max_num_seqs,
    budget,
    steps,
    whole_prompts,
    num_more_blocks,
    num_steps_ahead,
    preemption,
):
    """With as few blocks as the longest request needs, so that most are preempted, and a few more."""
    num_blocks = -(-max(map(sum, lengths)) // 4) + num_more_blocks
    sizes = {"num_blocks": num_blocks, "block_size": 4, "num_swap_blocks": num_blocks}
    engine = pretend(num_steps_ahead, config=SMALL, **sizes)
    options = {"max_num_batched_tokens": budget, "steps": steps, "whole_prompts": whole_prompts}
    options |= {"preemption": preemption, "num_swap_blocks": num_blocks}
    scheduler = ContinuousScheduler(num_blocks, 4, max_num_seqs=max_num_seqs, watermark=0.0, **options)
    sequences, _ = replay_trace(make_requests(*zip(*lengths, strict=True)), scheduler, engine)
    expected = plain_tokens("gpt2", *zip(*lengths, strict=True))
    assert [sequence.output_token_ids for sequence in sequences] == expected


@cache
def plain_engine(name):
    return make_any_engine(config={"window": WINDOW, "gpt2": SMALL}[name])


def plain_tokens(name, prompt_lens, output_lens):
    """Of each request alone, in the CPU's steps."""
    return generate_alone(plain_engine(name), make_requests(prompt_lens, output_lens))


@pytest.mark.slow
@pytest.mark.parametrize("num_steps_ahead", [1, pytest.param(0, marks=pytest.mark.nightly)])
def test_servers_by_turns_do_what_each_would_alone(pretend, monkeypatch, num_steps_ahead):  # noqa: F811
    """No server takes another's seats away: no more is sent to the device, and every token is the same."""
    work = Counter()
    for name in ("missing", "take"):
        monkeypatch.setattr(Seats, name, counted(name, work))
    requests, sizes = make_requests([7, 3, 1, 6], [3, 5, 6, 3]), {"num_blocks": 16, "block_size": 4}
    engine = pretend(num_steps_ahead, config=SMALL, **sizes | {"num_blocks": 32})
    engines = [[engine], [engine], make_replicas(engine, 2)]
    outputs, steps, done = [], [], []
    for offered, one in zip([requests[::2], requests[1::2], requests], engines, strict=True):
        work.clear()
        servers = [Server(ContinuousScheduler(**sizes, max_num_seqs=2), own, i) for i, own in enumerate(one)]
        sequences = replay(TraceSource(offered), servers, round_robin(servers))
        outputs += [sequence.output_token_ids for sequence in sequences]
        steps += [[(step.phase, step.num_seqs) for step in server.steps] for server in servers]
        done += [{name: work[name, server.index] for name in ("missing", "take")} for server in servers]
        assert all(step.elapsed > 0 and step.device > 0 for server in servers for step in server.steps)
    assert outputs[4::2] + outputs[5::2] == outputs[:4]
    assert steps[:2] == steps[2:]
    assert done[:2] == done[2:]
    assert all(min(counts.values()) > 0 for counts in done)


def counted(name, work):
    """The method of Seats, which also counts sequences by server; those of a warm-up have none."""
    method = getattr(Seats, name)

    def count(seats, sequences, *others):
        work[name, sequences[0].server] += len(sequences)
        return method(seats, sequences, *others)

    return count
