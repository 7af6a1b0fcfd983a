"""Adapters come and go under random workloads: tokens as if all were always there, and none goes while it is used."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.build import make_scheduler
from framework.core import Request, Sequence
from framework.engine.torch_engine import TorchEngine
from framework.engine.torch_engine.kv_cache import bytes_per_block
from framework.lora.adapters import RandomAdapters
from framework.lora.gathered import Gathered
from framework.lora.loop import Loop
from framework.lora.merged import merge_adapter
from framework.lora.pool import serve_adapters
from framework.lora.segmented import Segmented
from framework.measure.metrics import request_table, step_table
from framework.models.footprint import footprint
from framework.quantization import fp8, int8_dynamic, int8_weight_only, zero_point
from framework.replay import replay
from framework.scheduler.adapter_slots import AdapterSlots
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.fake_engine import FakeEngine
from tests.lora.serving_models import LargeAdapters, make_engine, outputs
from tests.quantization.small_models import CONFIGS, make_model

NAMES = [None, "a", "b", "c", "d", "e"]
QUANTIZED = {
    "int8": int8_weight_only.quantize,
    "int8_groups": partial(int8_weight_only.quantize, group_size=32, embeddings=True, head=True),
    "int8_dynamic": int8_dynamic.quantize,
    "fp8": fp8.quantize,
    "zero_point": zero_point.quantize,
}
SCHEDULERS = {
    "static": partial(StaticScheduler, max_num_seqs=3, max_wait=0.0),
    "continuous": partial(ContinuousScheduler, max_num_seqs=4),
    "one adapter": partial(ContinuousScheduler, max_num_seqs=4, max_loras=1),
    "no prefetch": partial(ContinuousScheduler, max_num_seqs=4, prefetch=False),
    "preemptions": partial(ContinuousScheduler, max_num_seqs=6, watermark=0.0),
}


def make_requests(names, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (len(names), 2), generator=generator).tolist()
    return [Request(index, 0.001 * index, *lengths[index], adapter_id=name) for index, name in enumerate(names)]


ALONE = {}


def alone(family):
    """16 requests, and the output of each from a model with its adapter merged: no batches, slots or loads."""
    if family not in ALONE:
        requests, expected = make_requests((NAMES * 3)[:16]), []
        for request in requests:
            model = make_model(family)
            if request.adapter_id is not None:
                merge(model, request.adapter_id)
            engine = TorchEngine(model, block_size=4, num_blocks=40)
            expected += outputs(engine, [replace(request, arrival_time=0.0)])[0]
        ALONE[family] = requests, expected
    return ALONE[family]


def merge(model, adapter_id):
    merge_adapter(model, adapters=lambda: LargeAdapters(ranks=[2, 8]), adapter_id=adapter_id)


@pytest.mark.parametrize("strategy", [Loop, Gathered, Segmented])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_strategy_serves_what_merged_models_do(family, strategy):
    requests, expected = alone(family)
    assert outputs(make_engine(family, strategy), requests)[0] == expected
    base, *_ = outputs(TorchEngine(make_model(family), block_size=4, num_blocks=40), requests)
    changed = [one != other for one, other in zip(base, expected, strict=True)]
    assert sum(changed) > 5
    assert not any(was for was, request in zip(changed, requests, strict=True) if request.adapter_id is None)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_tokens_do_not_depend_on_the_schedule(scheduler):
    requests, expected = alone("llama")
    tokens, sequences, _ = outputs(make_engine(strategy=Segmented), requests, SCHEDULERS[scheduler])
    assert tokens == expected
    assert all(sequence.adapter_slot == 0 for sequence in sequences)


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("quantization", QUANTIZED)
def test_on_quantized_weights_as_the_loop(quantization, family, kv_dtype):
    requests, unquantized = alone(family)
    loop, *others = (
        outputs(make_engine(family, strategy, quantize=QUANTIZED[quantization], kv_dtype=kv_dtype), requests)[0]
        for strategy in (Loop, Gathered, Segmented)
    )
    assert others == [loop, loop]
    same = sum(one == other for pair in zip(loop, unquantized, strict=True) for one, other in zip(*pair, strict=True))
    assert same > 0.3 * sum(map(len, loop))  # the adapters are still there


@settings(max_examples=8, deadline=None)
@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=14),
    num_slots=st.integers(1, 4),
    max_num_seqs=st.integers(1, 5),
    prefetch=st.booleans(),
)
def test_adapters_that_come_and_go_change_no_token(names, num_slots, max_num_seqs, prefetch):
    requests = make_requests(names)
    scheduler = partial(ContinuousScheduler, max_num_seqs=max_num_seqs, prefetch=prefetch)
    tokens, sequences, steps = outputs(make_engine(num_slots=num_slots), requests, scheduler)
    resident, _, resident_steps = outputs(make_engine(num_slots=len(NAMES)), requests, scheduler)
    assert tokens == resident
    used = {name for name in names if name is not None}
    assert sum(step.num_adapter_loads for step in resident_steps) == len(used)
    assert sum(step.num_adapter_loads for step in steps) >= len(used)
    assert (sum(step.adapter_wait for step in steps) > 0) == bool(used)
    waits = request_table(sequences)["adapter_load_wait"]
    assert all(name is not None for name, wait in zip(names, waits, strict=True) if wait > 0)
    assert step_table(steps)["adapter_wait"].le(step_table(steps)["elapsed"]).all()


class WatchfulEngine(FakeEngine):
    """Keeps its own account of what is in which slot, and refuses a batch whose adapters are elsewhere."""

    def __init__(self, num_slots, num_steps_ahead):
        super().__init__(lambda batch: 0.01 * sum(batch.num_tokens), num_blocks=200, num_steps_ahead=num_steps_ahead)
        self.num_adapter_slots = num_slots
        self.slots = {}
        self.running = []  # sequences of the steps in flight

    def launch(self, batch):
        for slot, adapter_id in batch.adapter_loads.items():
            assert 1 <= slot <= self.num_adapter_slots
            users = [one for batch in self.running for one in batch.sequences if one.adapter_slot == slot]
            assert not [one for one in users if not one.is_finished and one.request.adapter_id != adapter_id]
            self.slots[slot] = adapter_id
        for sequence in batch.sequences:
            if not sequence.is_finished:
                assert self.slots.get(sequence.adapter_slot) == sequence.request.adapter_id
        self.running.append(batch)
        super().launch(batch)

    def collect(self):
        self.running.pop(0)
        return super().collect()


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(0, 3), st.integers(1, 9), st.integers(1, 9), st.sampled_from(NAMES)),
        min_size=1,
        max_size=25,
    ),
    num_slots=st.integers(1, 4),
    data=st.data(),
)
def test_a_slot_in_use_is_never_given_away(rows, num_slots, data):
    requests = [
        Request(index, *row[:3], adapter_id=row[3]) for index, row in enumerate(sorted(rows, key=lambda row: row[0]))
    ]
    make = data.draw(st.sampled_from([StaticScheduler, ContinuousScheduler]))
    options = {"max_num_seqs": data.draw(st.integers(1, 6))}
    if make is ContinuousScheduler:
        options |= {"max_loras": data.draw(st.integers(1, num_slots)), "prefetch": data.draw(st.booleans())}
        options |= {"adapter_cycle_time": data.draw(st.sampled_from([None, 0.01, 0.5]))}
        options |= {"max_num_batched_tokens": data.draw(st.integers(1, 30)), "watermark": 0.0}
    engine = WatchfulEngine(num_slots, data.draw(st.integers(0, 1)))
    largest = max(-(-(prompt + output) // engine.block_size) for _, prompt, output, _ in rows)
    engine.num_blocks = largest + data.draw(st.integers(0, 5))
    scheduler = make_scheduler(partial(make, **options), engine)
    most = 0
    schedule = scheduler.schedule

    def counted(now):
        nonlocal most
        batch = schedule(now)
        most = max(most, len({one.adapter_slot for one in scheduler.running} - {0}))
        return batch

    scheduler.schedule = counted
    sequences, _ = replay(requests, scheduler, engine)
    assert all(sequence.is_finished and sequence.adapter_slot == 0 for sequence in sequences)
    assert most <= options.get("max_loras", num_slots)
    assert not scheduler.adapters.num_users
    assert sorted([*scheduler.adapters.slot_of.values(), *scheduler.adapters.free]) == list(range(1, num_slots + 1))


def sequence(name):
    return Sequence(Request(0, 0.0, 1, 1, adapter_id=name))


def test_least_recently_used_goes_first():
    slots = AdapterSlots(2)
    for name in ("a", "b", "a"):
        one = sequence(name)
        slots.admit(one)
        slots.release(one)
    assert slots.take_loads() == {1: "a", 2: "b"}
    slots.admit(sequence("c"))
    assert slots.take_loads() == {2: "c"}
    assert slots.can_admit(sequence("a"))


def test_an_adapter_is_used_until_its_last_sequence_ends():
    slots = AdapterSlots(2)
    long, short = sequence("a"), sequence("b")
    slots.admit(long)
    slots.admit(short)
    slots.release(short)
    slots.release(long)
    slots.take_loads()
    slots.admit(sequence("c"))
    assert slots.take_loads() == {2: "c"}


def test_prefetch_keeps_what_is_used_and_what_is_wanted_sooner():
    slots = AdapterSlots(2)
    running = sequence("a")
    slots.admit(running)
    slots.take_loads()
    slots.prefetch([sequence("a"), sequence("b"), sequence("c")])
    assert slots.take_loads() == {2: "b"}
    slots.prefetch([sequence("b"), sequence("c")])  # one slot is used, and what is in the other is wanted sooner
    assert slots.take_loads() == {}
    slots.release(running)
    slots.prefetch([sequence("b"), sequence("c")])
    assert slots.take_loads() == {1: "c"}


class LoggingEngine(WatchfulEngine):
    """Keeps what every batch was to load."""

    def __init__(self, num_slots):
        super().__init__(num_slots, 0)
        self.log = []

    def launch(self, batch):
        super().launch(batch)
        self.log.append((*self.batches[-1], batch.adapter_loads))


@pytest.mark.parametrize("prefetch", [True, False])
def test_the_adapter_of_a_waiting_request_comes_in_a_step_before_its_first(prefetch):
    engine = LoggingEngine(2)
    requests = [Request(0, 0.0, 4, 3, adapter_id="a"), Request(1, 0.0, 4, 1, adapter_id="b")]
    replay(requests, make_scheduler(partial(ContinuousScheduler, max_num_seqs=1, prefetch=prefetch), engine), engine)
    ahead, needed = ({2: "b"}, {}) if prefetch else ({}, {2: "b"})
    assert engine.log == [
        ("prefill", [0], {1: "a"} | ahead),
        ("decode", [0], {}),
        ("decode", [0], {}),
        ("prefill", [1], needed),
    ]


def test_an_adapter_too_many_waits_and_so_do_those_behind_it():
    engine = WatchfulEngine(2, 0)
    requests = [Request(index, 0.0, 4, 3, adapter_id=name) for index, name in enumerate(["a", "b", "c", "a"])]
    replay(requests, make_scheduler(partial(ContinuousScheduler, max_num_seqs=8), engine), engine)
    assert engine.batches[:4] == [("prefill", [0, 1]), *[("decode", [0, 1])] * 2, ("prefill", [2, 3])]


@pytest.mark.parametrize("max_loras", [0, 3])
def test_max_loras_is_within_the_slots(max_loras):
    with pytest.raises(
        ValueError, match=f"max_loras {max_loras} must be at least 1 and at most lora.num_slots, which is 2"
    ):
        ContinuousScheduler(10, 4, max_loras=max_loras, num_adapter_slots=2)
    ContinuousScheduler(10, 4, max_loras=3)  # no adapters are served


@pytest.mark.parametrize("budget", ["kv_cache_bytes", "memory_bytes"])
def test_adapters_and_keys_and_values_share_one_budget(budget):
    sizes, adapters = {}, partial(RandomAdapters, ranks=[4])
    for num_slots in (1, 5):
        model = serve_adapters(make_model("llama"), strategy=Loop, adapters=adapters, num_slots=num_slots, max_rank=4)
        engine = TorchEngine(model, block_size=4, **{budget: 2**20})
        block_bytes = bytes_per_block(model.config, 4, engine.dtype)
        sizes[num_slots] = engine.num_blocks * block_bytes
        taken = engine.adapters.num_bytes + (footprint(model)["total"] if budget == "memory_bytes" else 0)
        assert 2**20 - block_bytes < sizes[num_slots] + taken <= 2**20
    assert sizes[5] < sizes[1]
    with pytest.raises(ValueError, match=r"holds no block .*adapter slots take 0.\d MiB"):
        TorchEngine(model, block_size=4, kv_cache_bytes=2**16)


def test_every_replay_reads_an_adapter_from_its_source_once(monkeypatch):
    engine, read = make_engine(num_slots=1), []
    load = engine.adapters.pool.load
    monkeypatch.setattr(engine.adapters.pool, "load", lambda adapter_id: read.append(adapter_id) or load(adapter_id))
    for _ in range(2):
        read.clear()
        _, _, steps = outputs(engine, make_requests(["a", "b"] * 4))
        assert sorted(read) == ["a", "b"]
        assert sum(step.num_adapter_loads for step in steps) > 2


def test_an_adapter_that_cannot_be_served_fails_before_the_replay():
    engine = make_engine()
    engine.adapters.pool.max_rank = 4
    with pytest.raises(ValueError, match=r"adapter '\w' has rank 8, more than lora.max_rank=4"):
        engine.begin(make_requests(NAMES), 4)
    refused = engine.refused_adapters(make_requests(NAMES))
    assert refused
    assert all(f"adapter {name!r} has rank 8" in reason for name, reason in refused.items())
    assert refused.keys() < {name for name in NAMES if name}
    assert TorchEngine(make_model("llama"), num_blocks=20).refused_adapters(make_requests(NAMES)) == {}


def test_an_adapter_is_looked_at_once():
    engine, checked = make_engine(), []
    engine.adapters.pool.check = checked.append
    for _ in range(2):
        engine.begin(make_requests(["a", "b", "a"]), 4)
    assert checked == ["a", "b"]
