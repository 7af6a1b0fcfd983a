"""Mixed steps and prompts in chunks: their batches, their work, and what is said of them."""

from contextlib import nullcontext
from functools import partial

import pandas as pd
import pytest

from framework.core import StepResult
from framework.engine.torch_engine import TorchEngine
from framework.measure.cases import Case
from framework.measure.ceilings import Ceilings
from framework.measure.floors import Work
from framework.measure.mixed_steps import (
    NUM_PASSES,
    Comparison,
    check_comparisons,
    check_graphs,
    comparison_name,
    comparisons_table,
    measure_comparisons,
    most_seqs,
    sizes_in,
)
from framework.measure.steps import NUM_WARM_UP_STEPS, get_ready, measure_prefill
from framework.models.loading import load_model
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.engine.torch_engine.test_engine import GPT2_CONFIG, make_engine

CEILINGS = Ceilings(read_bandwidth=100.0, copy_bandwidth=100.0, matmul_rate=1000.0)


@pytest.fixture
def engine() -> TorchEngine:
    engine = make_engine(config=GPT2_CONFIG | {"n_embd": 32, "n_head": 2, "n_layer": 2})
    get_ready(engine, 4)
    return engine


class Recorder:
    """A real engine whose steps take 2 s of 3 on the device, and which keeps what they were."""

    def __init__(self, engine: TorchEngine) -> None:
        self.engine, self.batches, self.now = engine, [], 0.0

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def launch(self, batch):
        self.engine.launch(batch)
        rows = zip(batch.sequences, batch.starts, batch.num_tokens, strict=True)
        self.batches.append([(one.request.request_id, start, num) for one, start, num in rows])

    def collect(self):
        result = self.engine.collect()
        self.now += 3.0
        return StepResult(result.token_ids, result.elapsed, device=2.0)

    def timer(self):
        return self.now


def test_decodes_stand_first_and_advance_while_the_same_part_of_the_prompt_is_computed(engine):
    recorder = Recorder(engine)
    [comparison] = measure_comparisons({"mixed": [[5, 12, 2, 24]]}, recorder, 4, print)
    num_mixed = NUM_WARM_UP_STEPS + 4
    middle = NUM_WARM_UP_STEPS + 2
    assert recorder.batches[num_mixed:] == [[(0, 0, 7)]] * num_mixed  # as many rows, alone
    del recorder.batches[num_mixed:]
    assert recorder.batches[middle] == [(1, 23, 1), (2, 23, 1), (0, 12, 5)]  # 24 tokens with the new one
    assert [batch[0][1] for batch in recorder.batches] == list(range(23 - middle, 23 - middle + num_mixed))
    assert {batch[2] for batch in recorder.batches} == {(0, 12, 5)}
    assert (comparison.device, comparison.waited, comparison.ratio) == (2.0, 1.0, 1.0)
    assert comparison.name == "mixed 5 behind 12 + 2 × 24"


def test_every_chunk_is_computed_behind_those_before_it_and_only_the_last_one_samples(engine):
    recorder = Recorder(engine)
    [comparison] = measure_comparisons({"chunks": [[20, 8]]}, recorder, 4, print)
    in_turns = [[(0, 0, 20)], [(0, 0, 8)], [(0, 8, 8)], [(0, 16, 4)]]
    assert recorder.batches == in_turns * (1 + NUM_PASSES)
    assert (comparison.device, comparison.waited, comparison.ratio) == (6.0, 1.0, 3.0)
    together, whole = sum(work.num_flops for work in comparison.works), comparison.alone.work.num_flops
    assert together == pytest.approx(whole)
    weights = [work.num_bytes for work in comparison.works]
    assert sum(weights) > 2 * comparison.alone.work.num_bytes  # they are read once per chunk
    assert comparison.name == "20 in chunks of 8"


def test_what_does_not_fit_is_skipped_and_said(engine):
    said = []
    sizes = {"mixed": [[4, 4, 2, 24], [4, 4, 999, 24], [4, 9999, 1, 24]], "chunks": [[16, 8], [9999, 8]]}
    comparisons = list(measure_comparisons(sizes, engine, 4, said.append))
    assert [comparison.name for comparison in comparisons] == ["mixed 4 behind 4 + 2 × 24", "16 in chunks of 8"]
    assert [line.partition(": skipped")[0] for line in said] == [
        "mixed 4 behind 4 + 999 × 24", "mixed 4 behind 9999 + 1 × 24", "9999 in chunks of 8",
    ]  # fmt: skip
    assert "the model's context" in said[1]
    assert most_seqs(sizes) == 1000
    assert most_seqs({"mixed": []}) == 1


def test_a_row_has_the_floor_of_all_steps_and_the_share_of_the_matmul_rate():
    alone = Case("prefill", 1, 20, Work(50.0, 1200.0), device=2.0, elapsed=2.5)
    works = (Work(50.0, 600.0), Work(70.0, 600.0))
    comparison = Comparison("chunks", (20, 10), works, device=3.0, waited=0.25, alone=alone)
    row = comparison.row(CEILINGS)
    assert (row["floor"], row["mfu"], row["alone_mfu"], row["ratio"]) == (0.6 + 0.7, 0.4, 0.6, 1.5)
    assert comparison.line(CEILINGS) == (
        "20 in chunks of 10: device 3000.000 ms, 1.500× of prefill 1 × 20 (2000.000 ms), floor 1300.000 ms, "
        "MFU 40.0%, the device waited 250000 µs a step"
    )
    shown = comparisons_table(pd.DataFrame([row])).iloc[0]
    assert (shown["ratio"], shown["MFU (%)"], shown["device waited (µs a step)"]) == (1.5, 40.0, 250_000.0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"mixed": [[1, 2, 3]]}, r"an entry of mixed is \[prompt tokens, .*\], not \[1, 2, 3\]"),
        ({"mixed": [[0, 0, 1, 1]]}, r"mixed: prompt tokens must be at least 1, not 0 as in \[0, 0, 1, 1\]"),
        ({"mixed": [[1, -1, 1, 1]]}, "cached ones before them must be at least 0, not -1"),
        ({"chunks": [[8, 0]]}, "chunks: tokens of a chunk must be at least 1, not 0"),
        ({"chunks": [[8, 9]]}, "chunks: a chunk of 9 tokens is no part of a prompt of 8"),
        ({"mixed": [[8, 0, 1, 8]]}, r"a context of 8 tokens, as in \[8, 0, 1, 8\], is too short for .*: at least 9"),
    ],
)
def test_sizes_are_checked(sizes, message):
    with pytest.raises(ValueError, match=message):
        check_comparisons(sizes, 4)
    check_comparisons({"mixed": [[8, 0, 1, 9]]}, 4)
    with pytest.raises(ValueError, match="num_steps 0 must be at least 1"):
        check_comparisons({}, 0)


def test_a_name_tells_its_sizes():
    for kind, sizes in (("chunks", (2048, 512)), ("mixed", (5, 0, 2, 24))):
        assert sizes_in(comparison_name(kind, sizes)) == (kind, sizes)
    for name in (
        "2048 in chunk of 512",
        "2048 in chunks of",
        "02048 in chunks of 512",
        "mixed 5 behind 0 + 2 x 24",
        "",
    ):
        assert sizes_in(name) is None, name


@pytest.mark.parametrize(
    ("mixed", "budget", "max_model_len", "message"),
    [
        (
            [[1792, 0, 256, 64], [2000, 0, 49, 64]],
            2048,
            None,
            r"mixed: a step of 2049 tokens, as in \[2000, 0, 49, 64\],",
        ),
        ([], 2049, None, "arms.a.scheduler.max_num_batched_tokens=2049 is more than the 2,048 tokens"),
        ([], None, 4096, r"max_num_batched_tokens=4096 \(null: the model's context\) is more"),
        ([], None, 1024, ""),
        ([], None, None, ""),
    ],
)
def test_steps_that_no_graph_holds_are_refused_where_graphs_are_asked_for(mixed, budget, max_model_len, message):
    scheduler = partial(ContinuousScheduler, max_num_batched_tokens=budget)
    model = partial(load_model, max_model_len=max_model_len)

    def check(scheduler, cuda_graphs=True):
        check_graphs(partial(TorchEngine, cuda_graphs=cuda_graphs), model, scheduler, mixed, "arms.a.scheduler")

    check(scheduler, cuda_graphs=None)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check(scheduler)
    if not mixed:
        check(partial(StaticScheduler))


def test_what_fills_the_context_or_the_cache_is_measured():
    """A prompt is as long as the context, then a block's worth of tokens in every block."""
    engine = make_engine(config=GPT2_CONFIG, num_blocks=GPT2_CONFIG["n_positions"] // 4, block_size=4)
    get_ready(engine, 2)
    most = engine.max_model_len
    said: list[str] = []
    sizes = {"mixed": [[most - 1 - 32, 0, 1, 20]], "chunks": [[most, 16], [most + 1, 16]]}
    names = [comparison.name for comparison in measure_comparisons(sizes, engine, 4, said.append)]
    assert names == [f"mixed {most - 33} behind 0 + 1 × 20", f"{most} in chunks of 16"]
    assert said == [
        f"{most + 1} in chunks of 16: skipped, {most + 1} tokens are more than the model's context of {most}"
    ]
    assert measure_prefill(engine, 1, most, 4).num_tokens == most
