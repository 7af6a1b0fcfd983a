"""Hand-overs by hand, and what must hold of any: all tokens, no block left behind, nobody who waits for ever.

Blocks have 4 tokens and 4 bytes. A step with a prompt takes 1 s, one of decodes 0.125 s, unless a test says otherwise.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.core import Request
from framework.handover import HandOver, Transfers
from framework.link import Link
from framework.replay import Server, replay
from framework.router.least_outstanding import least_outstanding
from framework.router.round_robin import round_robin
from framework.router.shared_queue import shared_queue
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from framework.trace.source import TraceSource
from tests.fake_engine import FakeEngine, requests_at


def step_time(batch):
    return 1.0 if batch.num_prefill_tokens else 0.125


def make_server(index, num_blocks=100, num_steps_ahead=0, step_time=step_time, **options):
    engine = FakeEngine(step_time, num_blocks, num_steps_ahead=num_steps_ahead)
    engine.num_cache_bytes = 4 * num_blocks
    return Server(ContinuousScheduler(num_blocks, engine.block_size, **options), engine, index)


def serve(requests, prefill, decode, link, num_layers=4, route=least_outstanding):
    """Served by these; whatever happened, nothing is left behind."""
    servers = [*prefill, *decode]
    for server in servers:
        server.engine.num_tokens = servers[0].engine.num_tokens  # a sequence goes on with the next token anywhere
    mover = HandOver(Transfers(servers, link, num_layers), prefill, route(decode))
    sequences = replay(TraceSource(requests), servers, least_outstanding(prefill), movers=[mover])
    assert [one.output_token_ids for one in sequences] == [list(range(one.num_output_tokens)) for one in requests]
    for server in servers:
        scheduler = server.scheduler
        assert scheduler.num_used_blocks == scheduler.num_unfinished == scheduler.blocks.num_used == 0
        assert not scheduler.adapters.num_users
        assert (server.load.num_unfinished, server.load.num_tokens) == (0, 0)
        assert scheduler.slot_use[:3] == (0, 0, 0)
    assert mover.num_copying == 0
    return sequences


def log_of(*servers):
    """(start in s, server, phase, requests) of every step."""
    rows = []
    for server in servers:
        for step, (phase, ids) in zip(server.steps, server.engine.batches, strict=True):
            rows.append((round(step.start_time, 9), server.index, phase, ids))
    return sorted(rows)


def moves_of(sequences):
    return [(one.prefill_server, one.server, one.transfer_wait, one.transfer_time) for one in sequences]


def test_a_sequence_goes_on_where_it_was_handed_to_once_its_blocks_are_copied():
    """16 bytes at 32 bytes/s and 0.25 s: it stands still for 0.75 s between its first and its second token."""
    prefill, decode = make_server(0), make_server(1)
    (sequence,) = serve(requests_at((0.0, 16, 3)), [prefill], [decode], Link(bandwidth=32.0, latency=0.25))
    assert log_of(prefill, decode) == [(0.0, 0, "prefill", [0]), (1.75, 1, "decode", [0]), (1.875, 1, "decode", [0])]
    assert sequence.token_times == [1.0, 1.875, 2.0]
    assert moves_of([sequence]) == [(0, 1, 0.0, 0.75)]
    assert sequence.num_moves == 1


def test_copies_over_one_link_queue_behind_one_another():
    """Both prompts end at 1 s; each takes 0.5 s of the link, and decode servers do not share theirs."""
    prefill, decode = make_server(0), [make_server(1), make_server(2)]
    sequences = serve(requests_at((0.0, 16, 2), (0.0, 16, 2)), [prefill], decode, Link(bandwidth=32.0))
    assert moves_of(sequences) == [(0, 2, 0.0, 0.5), (0, 1, 0.5, 0.5)]
    prefill, decode = [make_server(0), make_server(1)], make_server(2)
    sequences = serve(requests_at((0.0, 16, 2), (0.0, 16, 2)), prefill, [decode], Link(bandwidth=32.0))
    assert moves_of(sequences) == [(0, 2, 0.0, 0.5), (1, 2, 0.5, 0.5)]


def test_layer_by_layer_only_the_last_layers_part_is_left_when_the_prefill_is_over():
    """A layer takes 0.125 s of the link, and 0.25 s of the prefill; at 8 bytes/s it takes 0.5 s of the link."""
    (sequence,) = serve(
        requests_at((0.0, 16, 2)), [make_server(0)], [make_server(1)], Link(bandwidth=32.0, copy="layer_by_layer")
    )
    assert moves_of([sequence]) == [(0, 1, 0.0, 0.125)]
    (sequence,) = serve(
        requests_at((0.0, 16, 2)), [make_server(0)], [make_server(1)], Link(bandwidth=8.0, copy="layer_by_layer")
    )
    assert moves_of([sequence]) == [(0, 1, 0.0, 1.25)]  # from 0.25 s on for 2 s


def test_layer_by_layer_without_room_when_the_step_begins_all_of_it_is_copied_once_there_is():
    prefill, decode = make_server(0), make_server(1, max_num_seqs=1)
    requests = requests_at((0.0, 16, 10), (1.0, 16, 2))
    link = Link(bandwidth=32.0, copy="layer_by_layer")
    first, second = serve(requests, [prefill], [decode], link)
    assert first.token_times[-1] == 1.125 + 9 * 0.125  # when the seat is free
    assert moves_of([second]) == [(0, 1, 0.25, 0.5)]


def test_who_finds_no_room_waits_at_the_prefill_server_whose_blocks_keep_others_out():
    """Each takes 4 blocks, and either server has 5: the third prompt begins when the first has ended."""
    prefill, decode = make_server(0, num_blocks=5), make_server(1, num_blocks=5)
    requests = requests_at((0.0, 16, 3), (0.0, 16, 3), (0.0, 16, 3))
    sequences = serve(requests, [prefill], [decode], Link(bandwidth=16.0))
    assert log_of(prefill, decode) == [
        (0.0, 0, "prefill", [0]),
        (2.0, 0, "prefill", [1]),  # the first was copied until 2 s
        (2.0, 1, "decode", [0]),
        (2.125, 1, "decode", [0]),
        (4.0, 0, "prefill", [2]),
        (4.0, 1, "decode", [1]),
        (4.125, 1, "decode", [1]),
        (6.0, 1, "decode", [2]),
        (6.125, 1, "decode", [2]),
    ]
    assert {move[2:] for move in moves_of(sequences)} == {(0.0, 1.0)}


def test_a_request_of_one_token_or_one_that_stops_with_its_first_is_handed_to_nobody():
    prefill, decode = make_server(0), make_server(1)
    requests = [Request(0, 0.0, 4, 1), Request(1, 0.0, 4, 5, stop_token_ids=frozenset([0]))]
    servers = [prefill, decode]
    transfers = Transfers(servers, Link(bandwidth=1.0, copy="layer_by_layer"), 4)
    mover = HandOver(transfers, [prefill], round_robin([decode]))
    sequences = replay(TraceSource(requests), servers, round_robin([prefill]), movers=[mover])
    assert [one.token_times for one in sequences] == [[1.0], [1.0]]
    assert [(one.num_moves, one.server, one.prefill_server) for one in sequences] == [(0, 0, None)] * 2
    assert not decode.steps
    assert [server.scheduler.num_used_blocks + server.load.num_unfinished for server in servers] == [0, 0]


def test_a_step_ahead_of_the_prefill_has_nobody_who_leaves():
    prefill = make_server(0, num_steps_ahead=1)
    sequences = serve(
        requests_at((0.0, 16, 3), (0.5, 16, 3)), [prefill], [make_server(1, num_steps_ahead=1)], Link(bandwidth=32.0)
    )
    assert log_of(prefill) == [(0.0, 0, "prefill", [0]), (1.0, 0, "prefill", [1])]
    assert [one.token_times[:2] for one in sequences] == [[1.0, 1.625], [2.0, 2.625]]


def test_a_router_that_names_no_decode_server_is_asked_again():
    decode = [make_server(1, max_num_seqs=1), make_server(2, max_num_seqs=1)]
    requests = requests_at(*[(0.0, 16, 4)] * 4)
    sequences = serve(requests, [make_server(0)], decode, Link(bandwidth=1e9), route=shared_queue)
    assert [one.server for one in sequences] == [2, 1, 2, 1]
    assert [round(one.transfer_wait, 6) for one in sequences] == [0.0, 0.0, 0.375, 0.375]


@st.composite
def clusters(draw):
    """Requests, and options of prefill and decode servers of which the smallest holds the longest request alone."""
    rows = draw(st.lists(st.tuples(st.floats(0, 8), st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=25))
    requests = [
        Request(index, *row, adapter_id=draw(st.sampled_from([None, "a", "b"])))
        for index, row in enumerate(sorted(rows, key=lambda row: row[0]))
    ]
    least = max(-(-(one.num_prompt_tokens + one.num_output_tokens) // 4) for one in requests)
    roles = [
        [
            {
                "num_blocks": least + draw(st.integers(0, 6)),
                "num_steps_ahead": draw(st.integers(0, 1)),
                "max_num_seqs": draw(st.integers(1, 4)),
                "max_num_batched_tokens": draw(st.sampled_from([4, 16, 2048])),
                "steps": draw(st.sampled_from(["prompts_first", "mixed"])),
                "prefix_cache": draw(st.sampled_from([None, "lru"])),
                "reservation": draw(st.sampled_from(["paged", "oracle"])),
                "num_adapter_slots": 1,
                "max_model_len": 64,
            }
            for _ in range(draw(st.integers(1, 3)))
        ]
        for _ in range(2)
    ]
    link = Link(
        bandwidth=draw(st.sampled_from([2.0, 64.0, 1e9])),
        latency=draw(st.sampled_from([0.0, 0.3])),
        copy=draw(st.sampled_from(["at_end", "layer_by_layer"])),
    )
    return requests, roles, link


@settings(max_examples=30, deadline=None)
@given(clusters(), st.sampled_from([least_outstanding, round_robin, shared_queue]))
def test_every_request_is_served_once_with_all_its_tokens_whatever_room_there_is(cluster, route):
    requests, (prefill, decode), link = cluster
    prefill = [make_server(index, **options) for index, options in enumerate(prefill)]
    decode = [make_server(len(prefill) + index, **options) for index, options in enumerate(decode)]
    for server in (*prefill, *decode):
        server.engine.num_adapter_slots = 1
    for server in (*prefill, *decode):  # blocks alike, whatever their number
        server.engine.num_cache_bytes = 4 * server.engine.num_blocks
    sequences = serve(requests, prefill, decode, link, route=route)
    for sequence in sequences:
        assert sequence.num_moves == (sequence.request.num_output_tokens > 1)
        assert sequence.prefill_server in ([None] if not sequence.num_moves else range(len(prefill)))
        assert min(sequence.transfer_wait, sequence.transfer_time) >= 0
    assert not any(batch[0] == "decode" for server in prefill for batch in server.engine.batches)


def test_schedulers_that_let_no_sequence_go_and_blocks_that_are_not_alike_are_refused():
    static = Server(StaticScheduler(100, 4), FakeEngine(), 1)
    with pytest.raises(ValueError, match="server 1: StaticScheduler has no release and accept"):
        Transfers([make_server(0), static], Link(bandwidth=1.0), 4)
    other = make_server(1)
    other.engine.num_cache_bytes *= 2
    with pytest.raises(ValueError, match=r"must be alike, not of 4 tokens in 4 bytes, 4 tokens in 8 bytes"):
        Transfers([make_server(0), other], Link(bandwidth=1.0), 4)
