"""The shares of an engine have nothing in common, and what is read from steps has the server's own numbers."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framework.core import Batch, Request, Sequence
from framework.engine.torch_engine.in_flight import Done, Launched, Waited
from framework.engine.torch_engine.share import ServerSteps, Share

MODEL = SimpleNamespace(norm=SimpleNamespace(weight=torch.ones(1)))


@given(st.integers(1, 6), st.tuples(st.integers(1, 9), st.integers(0, 4), st.integers(0, 5)))
def test_no_block_and_no_slot_is_in_two_shares(num_servers, sizes):
    shares = [Share(index, *sizes) for index in range(num_servers)]
    num_blocks, num_slots, num_host_blocks = sizes
    blocks = [share.first_block + block for share in shares for block in range(num_blocks)]
    slots = [share.first_slot + slot for share in shares for slot in range(1, num_slots + 1)]
    assert sorted(blocks) == list(range(num_servers * num_blocks))
    assert sorted(slots) == list(range(1, num_servers * num_slots + 1))
    pairs = [(block, num_host_blocks - 1) for block in range(num_blocks) if num_host_blocks]
    batch = Batch([], [], [], 0, 0, swap_out=pairs, swap_in=[(host, block) for block, host in pairs])
    going = [pair for share in shares for pair in share.outgoing(batch)]
    coming = [pair for share in shares for pair in share.incoming(batch)[0]]
    assert going == [(block, host) for host, block in coming]
    assert [block for block, _ in going] == (blocks if num_host_blocks else [])
    assert {host for _, host in going} <= set(range(num_servers * num_host_blocks))


def test_whether_a_sequence_reads_what_comes_back_is_asked_by_its_own_numbers():
    sequence = Sequence(Request(0, 0.0, 4, 4))
    sequence.block_table = [1, 2]
    share = Share(3, 10, 0, 5)
    for block, is_read in ((2, True), (3, False)):
        batch = Batch([sequence], [4], [1], 0, 1, swap_in=[(4, block)])
        assert share.incoming(batch) == ([(19, 30 + block)], is_read)


def test_a_step_says_what_it_waited_for_by_the_servers_slots():
    steps = ServerSteps(Share(2, 10, 3, 0), MODEL)
    sequence = Sequence(Request(0, 0.0, 4, 4))
    waited = Waited({8}, host=0.125)
    steps.in_flight.append(Launched(1.0, 0.25, [sequence], [True], Done([7], 0.5), waited, launch=0.0625))
    result = steps.collect(lambda: 2.0)
    assert (result.token_ids, result.elapsed, result.prepare, result.device) == ([7], 1.0, 0.25, 0.5)
    assert result.launch == 0.0625
    assert result.adapter_waits == {2: 0.125}


def test_servers_draw_the_same_numbers_each_for_itself():
    servers = [ServerSteps(Share(index, 10, 0, 0), MODEL) for index in range(2)]
    drawn = []
    for steps in servers:
        steps.begin("step", seed=5)
        drawn.append(torch.rand(3, generator=steps.generator))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("kind", ["step", "warm-up step"])
def test_logits_that_are_not_finite_name_the_step_and_the_request(kind):
    steps = ServerSteps(Share(0, 10, 0, 0), MODEL)
    steps.begin(kind, seed=0)
    sequence = Sequence(Request(4, 0.0, 4, 4))
    for token in (7, -1):
        steps.in_flight.append(Launched(1.0, 0.25, [sequence], [True], Done([token], 0.5)))
    steps.collect(lambda: 2.0)
    with pytest.raises(ValueError, match=f"^{kind} 2: the logits of request 4 are NaN or infinite"):
        steps.collect(lambda: 3.0)
