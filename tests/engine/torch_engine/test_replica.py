"""Servers that share an engine: tokens, blocks and work are those of engines of their own."""

from functools import partial
from statistics import median

import pytest
import torch

from framework.build import make_scheduler, replay_trace
from framework.core import Batch, Request
from framework.engine.torch_engine import TorchEngine, cpu_steps
from framework.engine.torch_engine.kv_cache import attention_modules
from framework.engine.torch_engine.replica import make_replicas
from framework.handover import HandOver, Migration, Transfers
from framework.link import Link
from framework.models.loading import load_model
from framework.replay import Server, replay
from framework.router.migrate import migrate
from framework.router.round_robin import round_robin
from framework.scheduler.continuous import ContinuousScheduler
from framework.trace.source import TraceSource
from tests.engine.torch_engine.hand_schedules import make_requests, seat
from tests.engine.torch_engine.test_decode import LLAMA
from tests.engine.torch_engine.test_engine import make_engine as make_loud_engine
from tests.fake_engine import FakeEngine
from tests.lora.serving_models import make_engine
from tests.quantization.small_models import make_model
from tests.thinning import mostly_nightly

NUM_SERVERS, NUM_BLOCKS = 3, 12  # of each server: its longest sequence has 9
LENGTHS = [(9, 14), (17, 12), (5, 25), (30, 4), (12, 16), (7, 18), (9, 21), (14, 14), (21, 9)]
PLAIN = partial(ContinuousScheduler, max_num_seqs=4)
PRESSED = partial(PLAIN, watermark=0.0)
SCHEDULERS = {
    "recomputed": PRESSED,
    "swapped": partial(PRESSED, preemption="swap"),
    "prefix cache": partial(PRESSED, prefix_cache="lru", steps="mixed", max_num_batched_tokens=16),
}


def make_arrivals():
    """Each server gets three, whose prompts begin with the same 8 tokens; two of them have the same adapter."""
    requests = []
    for index, lengths in enumerate(LENGTHS):
        named = {"prefix_ids": (index % 3,), "prefix_block_size": 8}
        adapter_id = None if index < 3 else "abc"[index % 3]
        requests.append(Request(index, 0.0005 * index, *lengths, **named, adapter_id=adapter_id))
    return requests


@pytest.fixture(scope="module")
def model():
    """It serves adapters, two for each server; engines of it are used one after the other."""
    return make_engine(num_slots=2 * NUM_SERVERS).model


def make(model, num_servers=NUM_SERVERS, **options):
    """An engine with room for so many servers."""
    sizes = {"num_blocks": num_servers * NUM_BLOCKS, "num_swap_blocks": 9 * num_servers, "block_size": 4}
    return TorchEngine(model, **sizes | options)


def serve(engines, requests, scheduler=PLAIN):
    servers = [Server(make_scheduler(scheduler, engine), engine, index) for index, engine in enumerate(engines)]
    return replay(TraceSource(requests), servers, round_robin(servers)), servers


@pytest.fixture(scope="module")
def expected(model):
    """The outputs of one server with room for all."""
    engine = make(model, num_blocks=200)
    sequences, _ = replay_trace(make_arrivals(), make_scheduler(PLAIN, engine), engine)
    outputs = [sequence.output_token_ids for sequence in sequences]
    assert len({token for output in outputs for token in output}) > 20
    return outputs


@pytest.mark.parametrize("name", SCHEDULERS)
def test_tokens_are_those_of_one_server(model, expected, name):
    sequences, servers = serve(make_replicas(make(model), NUM_SERVERS), make_arrivals(), SCHEDULERS[name])
    assert [sequence.output_token_ids for sequence in sequences] == expected
    assert [sequence.server for sequence in sequences] == [0, 1, 2] * 3
    assert all(any(step.num_adapter_loads for step in server.steps) for server in servers)
    assert any(one.num_preemptions for one in sequences)
    assert any(one.num_swaps for one in sequences) == (name == "swapped")
    assert any(one.num_cached_tokens for one in sequences) == (name == "prefix cache")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_those_of_engines_of_their_own(model, temperature):
    requests, sampling = make_requests([5, 9, 7, 12], [12] * 4), {"temperature": temperature, "seed": 3}
    sequences, _ = serve(make_replicas(make(model, 2, **sampling), 2), requests)
    for index in range(2):
        engine = make(model, 1, **sampling)
        alone, _ = replay_trace(requests[index::2], make_scheduler(PLAIN, engine), engine)
        assert [one.output_token_ids for one in alone] == [one.output_token_ids for one in sequences[index::2]]


def test_no_block_of_the_device_is_in_two_servers(model, monkeypatch):
    tables, step_inputs = {}, cpu_steps.step_inputs

    def note(batch, given, *others, **keywords):
        tables.setdefault(batch.sequences[0].server, set()).update(given.ravel().tolist())
        return step_inputs(batch, given, *others, **keywords)

    replicas = make_replicas(make(model), NUM_SERVERS)
    monkeypatch.setattr(cpu_steps, "step_inputs", note)
    _, servers = serve(replicas, make_arrivals(), SCHEDULERS["swapped"])
    assert any(step.num_swapped_in_blocks for server in servers for step in server.steps)
    del tables[None]  # the warm-up's
    assert sorted(tables) == [0, 1, 2]
    for index, blocks in tables.items():
        assert blocks <= set(range(index * NUM_BLOCKS, (index + 1) * NUM_BLOCKS))
        assert len(blocks) > 9


def test_every_servers_clock_advances_by_its_own_steps_only(model):
    """Four equal requests at once, by round robin: in simulated time two servers work beside each other."""
    sequences, servers = serve(make_replicas(make(model, 2), 2), make_requests([6] * 4, [9] * 4))
    assert [sequence.server for sequence in sequences] == [0, 1, 0, 1]
    for server in servers:
        assert [(step.phase, step.num_seqs) for step in server.steps] == [("prefill", 2), *[("decode", 2)] * 8]
        assert {step.server for step in server.steps} == {server.index}
        ends = [(step.start_time, step.start_time + step.elapsed) for step in server.steps]
        assert ends[0][0] == 0.0
        for (_, end), step, (start, _) in zip(ends, server.steps, ends[1:], strict=False):
            assert start == pytest.approx(end + step.update)


def test_replicas_get_their_engine_ready_once_for_all(model, monkeypatch):
    calls, begin_for = [], TorchEngine.begin_for

    def note(engine, servers, requests, max_num_seqs, max_num_batched_tokens):
        calls.append((len(servers), max_num_seqs, max_num_batched_tokens))
        begin_for(engine, servers, requests, max_num_seqs, max_num_batched_tokens)

    monkeypatch.setattr(TorchEngine, "begin_for", note)
    replicas, requests = make_replicas(make(model), NUM_SERVERS), make_requests([3], [2])
    for _ in range(2):
        for replica in replicas:
            replica.begin(requests, 4, 64)
    assert calls == [(3, 4, 64)] * 2


def test_servers_of_different_kinds_have_room_for_the_largest_batch(model, monkeypatch):
    calls = []
    monkeypatch.setattr(TorchEngine, "begin_for", lambda engine, servers, requests, *limits: calls.append(limits))
    replicas, requests = make_replicas(make(model), NUM_SERVERS), make_requests([3], [2])
    for replica, limits in zip(replicas, [(4, 64), (2, 8), (2, None)], strict=True):
        replica.begin(requests, *limits)
    assert calls == [(4, 64), (4, None)]


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_a_sequence_goes_on_at_a_server_that_has_received_its_blocks(kv_dtype):
    """Prompt at one server, decode steps at another one, in other blocks."""
    requests = make_requests([18], [9])
    first, second = make_replicas(make_loud_engine(num_blocks=2 * NUM_BLOCKS, block_size=4, kv_dtype=kv_dtype), 2)
    for replica in (first, second):
        replica.begin(requests, 2)
    expected = generate(first, seat(first, requests)[0])
    assert len(set(expected)) > 4
    for module in attention_modules(first.model):
        module.cache.fill_randomly()
    second.begin(requests, 2)
    (sequence,) = seat(first, requests)
    step(first, sequence)
    own = [11, 0, 5, 9, 3, 7, 8]  # as long as the output needs
    assert second.receive(first, list(zip(sequence.block_table, own, strict=False))[:5]) > 0.0
    sequence.block_table = own
    assert generate(second, sequence) == expected


def generate(replica, sequence):
    while not sequence.is_finished:
        step(replica, sequence)
    return sequence.output_token_ids


def step(replica, sequence):
    """The whole prompt, or one token."""
    start, num_tokens = sequence.num_computed_tokens, sequence.num_tokens - sequence.num_computed_tokens
    num_decode = 1 if sequence.output_token_ids else 0
    result = replica.step(Batch([sequence], [start], [num_tokens], num_tokens - num_decode, num_decode))
    sequence.num_computed_tokens += num_tokens
    sequence.append(result.token_ids[0], 0.0)


def test_only_what_was_sent_changes_and_only_there(model):
    engine = make(model, 2)
    first, second = make_replicas(engine, 2)
    caches = [module.cache for module in attention_modules(engine.model)]
    for cache in caches:
        cache.fill_randomly()
    before = [cache.k.view(2 * NUM_BLOCKS, -1).clone() for cache in caches]
    second.receive(first, [(0, 5), (7, 2)])
    second.receive(first, [])
    for was, cache in zip(before, caches, strict=True):
        expected = was.clone()
        expected[NUM_BLOCKS + 5], expected[NUM_BLOCKS + 2] = was[0], was[7]
        assert torch.equal(cache.k.view(2 * NUM_BLOCKS, -1), expected)


class Noted:
    """A filler that only notes what was asked of it."""

    def __init__(self):
        self.asked = []

    def begin(self, seconds=None):
        self.asked.append("between steps" if seconds is None else seconds)

    def end(self):
        self.asked.append("end")


def two_steps(replica, busy=0.0):
    """Launch a prompt and its first decode step, behind so many seconds of a step; what was asked of the filler."""
    replica.servers.filler.asked.clear()
    (sequence,) = seat(replica, make_requests([6], [4]))
    replica.launch(Batch([sequence], [0], [6], 6, 0))
    sequence.num_computed_tokens += 6
    sequence.append(5, 0.0)
    replica._clock.device_end += busy
    replica.launch(Batch([sequence], [6], [1], 0, 1))
    for _ in range(2):
        replica.collect()
    return replica.servers.filler.asked


def test_a_device_is_kept_busy_where_the_step_before_would_keep_it_busy(model):
    (replica,) = make_replicas(make(model, 1), 1)
    replica.begin(make_requests([6], [4]), 1)
    replica.servers.filler = Noted()
    replica.num_steps_ahead = 0
    assert two_steps(replica) == []
    replica.num_steps_ahead = 1
    replica._clock.device_end += 100.0
    first, end, between, beside, *others = two_steps(replica)
    assert (end, between, others) == ("end", "between steps", ["end", "between steps"])
    assert 90.0 < beside < first < 100.0
    replica.begin(make_requests([6], [4]), 1)  # everything is over, and on a CPU each step is when it is launched
    replica.num_steps_ahead = 1
    assert two_steps(replica) == ["end"] * 4
    replica.begin(make_requests([6], [4]), 1)
    replica.num_steps_ahead = 1
    *idle, beside, end, between = two_steps(replica, busy=100.0)
    assert (idle, end, between) == (["end", "end"], "end", "between steps")
    assert 90.0 < beside < 100.0


def test_nothing_keeps_a_device_busy_that_copies_or_gets_ready(model):
    replicas = make_replicas(make(model, 2), 2)
    filler = replicas[0].servers.filler = Noted()
    replicas[1].begin(make_requests([6], [4]), 1)
    replicas[1].receive(replicas[0], [(0, 0)])
    assert filler.asked == ["end", "end"]


def test_blocks_of_another_engine_and_of_none_are_refused(model):
    first, second = (make_replicas(make(model, 2), 2)[0] for _ in range(2))
    with pytest.raises(ValueError, match="from replicas of its own engine only"):
        second.receive(first, [(0, 0)])
    first, second = make_replicas(TorchEngine(make_model("llama"), num_blocks=4, use_cache=False), 2)
    with pytest.raises(ValueError, match=r"engine\.use_cache=false keeps no KV blocks"):
        second.receive(first, [(0, 0)])


def test_a_replica_has_its_share_of_everything(model):
    engine = make(model, 3, num_blocks=38)
    for replica in make_replicas(engine, 3):
        assert (replica.num_blocks, replica.num_adapter_slots, replica.num_swap_blocks) == (12, 2, 9)
        assert replica.num_cache_bytes == engine.num_cache_bytes // 38 * 12
        assert replica.refused_adapters(make_arrivals()) == {}
        assert replica.switches == engine.switches


@pytest.mark.parametrize(
    ("num_servers", "options", "message"),
    [
        (4, {"num_blocks": 3}, r"servers=4 share 3 KV blocks \(engine\.num_blocks\), and each needs at least one"),
        (4, {"num_swap_blocks": 1}, r"servers=4 share 1 host blocks \(engine\.num_swap_blocks\)"),
        (7, {}, r"servers=7 share 6 adapter slots \(lora\.num_slots\)"),
    ],
)
def test_a_share_of_nothing_is_refused(model, num_servers, options, message):
    with pytest.raises(ValueError, match=message):
        make_replicas(make(model, 4, **options), num_servers)


@pytest.mark.parametrize("num_servers", [1, 2])
def test_adapters_in_a_cache_on_which_servers_take_turns_are_refused(num_servers):
    with pytest.raises(
        ValueError, match=rf"servers={num_servers} cannot keep adapters in the KV cache: set lora\.memory=split"
    ):
        make_replicas(make_engine(memory="unified", num_blocks=200), num_servers)


def test_an_engine_that_cannot_be_shared_and_no_server_are_refused(model):
    with pytest.raises(ValueError, match="servers=2 measured ones share one engine, and FakeEngine cannot be shared"):
        make_replicas(FakeEngine(), 2)
    with pytest.raises(ValueError, match="servers"):
        make_replicas(make(model, 1), 0)


def movers_of(servers, name):
    """The first server is for prompts, or all serve whole requests and the busiest gives its sequences away."""
    transfers = Transfers(servers, Link(bandwidth=1e9, copy="layer_by_layer"), 2)
    if name == "handed over":
        return [HandOver(transfers, servers[:1], round_robin(servers[1:]))]
    return [Migration(transfers, migrate(servers, min_ratio=1.0, interval=0.0))]


@pytest.mark.parametrize(("name", "scheduler"), mostly_nightly(["handed over", "migrated"], list(SCHEDULERS)))
def test_sequences_that_move_have_the_tokens_of_one_server(model, expected, name, scheduler):
    engines = make_replicas(make(model), NUM_SERVERS)
    servers = [
        Server(make_scheduler(SCHEDULERS[scheduler], engine), engine, index) for index, engine in enumerate(engines)
    ]
    route = round_robin(servers[:1] if name == "handed over" else servers[:2])
    sequences = replay(TraceSource(make_arrivals()), servers, route, movers=movers_of(servers, name))
    assert [sequence.output_token_ids for sequence in sequences] == expected
    moved = [sequence.num_moves for sequence in sequences]
    assert moved == [1] * len(moved) if name == "handed over" else sum(moved) > 2
    for server in servers:
        assert server.scheduler.num_used_blocks == server.scheduler.num_unfinished == 0


ON_GPU = {
    "small": LLAMA,  # the host takes longer than the device
    "large": LLAMA
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 8, "num_attention_heads": 32},
}


def engine_on_gpu(config, **options):
    given = {"path": None, "weights": "random", "config": config, "max_model_len": None, "device": "cuda", "seed": 0}
    return TorchEngine(load_model(**given, dtype="bfloat16"), **{"num_blocks": 2048} | options)


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [False, True])
def test_graphs_of_shared_seats_give_the_tokens_of_engines_of_their_own(overlap):
    engine = engine_on_gpu(LLAMA, overlap=overlap)
    requests = make_requests([5, 70, 2, 37, 12, 130, 9, 44], [9, 3, 40, 1, 11, 25, 30, 18])
    scheduler = partial(ContinuousScheduler, max_num_seqs=4, steps="mixed", max_num_batched_tokens=64)
    sequences, servers = serve(make_replicas(engine, 2), requests, scheduler)
    for index in range(2):
        alone = engine_on_gpu(LLAMA, overlap=overlap)
        own, steps = replay_trace(requests[index::2], make_scheduler(scheduler, alone), alone)
        assert [one.output_token_ids for one in own] == [one.output_token_ids for one in sequences[index::2]]
        assert [(step.phase, step.num_seqs) for step in steps] == [
            (step.phase, step.num_seqs) for step in servers[index].steps
        ]


@pytest.mark.gpu
@pytest.mark.timing
@pytest.mark.parametrize("name", ON_GPU)
@pytest.mark.parametrize("steps", ["prompts_first", "mixed"])
def test_an_emulated_overlap_takes_as_long_as_the_real_one(name, steps):
    """One server, whose steps overlap or run alone: within the spread of repeats, and 2%."""
    engine = engine_on_gpu(ON_GPU[name], overlap=True)
    lengths = [(20 + 37 * index % 200, 60 + 11 * index % 60) for index in range(48)]
    scheduler = partial(ContinuousScheduler, max_num_seqs=32, max_num_batched_tokens=512, steps=steps)
    requests = make_requests(*zip(*lengths, strict=True))
    seconds = {"real": [], "emulated": []}
    for _ in range(6):
        for kind, (one,) in (("real", [engine]), ("emulated", make_replicas(engine, 1))):
            sequences, _ = serve([one], requests, scheduler)
            seconds[kind].append(max(sequence.token_times[-1] for sequence in sequences))
    real, emulated = (sorted(values[1:]) for values in seconds.values())
    spread = (real[-1] - real[0]) / median(real)
    assert median(emulated) == pytest.approx(median(real), rel=0.02 + spread)
