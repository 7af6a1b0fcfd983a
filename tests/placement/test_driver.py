"""A driver of servers in other processes: who is sent where, what is recorded, and what a server's death costs."""

from functools import partial

import pytest

from framework.core import Request
from framework.placement.messages import Stuck
from framework.placement.workers import when_ready
from framework.router.least_outstanding import least_outstanding
from framework.router.shared_queue import shared_queue
from tests.fake_engine import requests_at
from tests.placement.engines import NUM_SEATS, STEP_TIME, Failing, Sleeper, deaf, driver_of, in_threads, spawned


@pytest.fixture(scope="module")
def workers():
    """Two, which serve one test after the other."""
    return when_ready(in_threads())


def num_tokens(served, server: int) -> int:
    return sum(step.num_output_tokens for step in served.steps if step.server == server)


def test_every_request_is_served_once_where_the_router_says(workers):
    requests = requests_at(*[(0.02 * index, 4, 3) for index in range(10)])
    served = driver_of(requests, workers).serve()
    assert [sequence.request for sequence in served.sequences] == requests
    assert [sequence.server for sequence in served.sequences] == [0, 1] * 5
    assert all(sequence.output_token_ids == [0, 1, 2] for sequence in served.sequences)
    assert [num_tokens(served, server) for server in (0, 1)] == [15, 15]
    assert [step.start_time for step in served.steps] == sorted(step.start_time for step in served.steps)
    for sequence in served.sequences:
        assert sequence.is_finished
        assert sequence.arrival_time <= sequence.scheduled_time <= sequence.token_times[0] - STEP_TIME
        assert sequence.token_times == sorted(sequence.token_times)
    assert (served.died, served.num_rerouted) == ([], 0)
    for offset in served.offsets:  # of one machine's clock from itself
        assert abs(offset.seconds) <= offset.round_trip / 2


def test_servers_work_beside_each_other(workers):
    """Two requests of 20 steps each take the time of one."""
    served = driver_of(requests_at((0.0, 4, 20), (0.0, 4, 20)), workers).serve()
    first, second = ([step for step in served.steps if step.server == server] for server in (0, 1))
    assert first[0].start_time < second[-1].start_time
    assert second[0].start_time < first[-1].start_time


def test_a_router_sees_what_was_sent_and_reported(workers):
    """A long request keeps its server's load up; those that come later, one after the other, go to the other server."""
    rows = [(0.0, 4, 60), *((0.05 + 0.1 * index, 4, 1) for index in range(4))]
    served = driver_of(requests_at(*rows), workers, least_outstanding).serve()
    assert [sequence.server for sequence in served.sequences] == [0, 1, 1, 1, 1]


def test_who_finds_no_seat_waits_at_the_router(workers):
    requests = requests_at(*[(0.0, 4, 5)] * (2 * NUM_SEATS + 3))
    served = driver_of(requests, workers, shared_queue).serve()
    assert all(sequence.output_token_ids == [0, 1, 2, 3, 4] for sequence in served.sequences)
    late = [sequence.scheduled_time for sequence in served.sequences[2 * NUM_SEATS :]]
    assert min(late) >= min(sequence.token_times[-1] for sequence in served.sequences)


def test_a_turn_takes_the_conversation_along_to_another_server(workers):
    said = Request(0, 0.0, 4, 2, session_id="chat")
    turns = [
        Request(index, 0.0, 4 + 3 * index, 2, None, 0, "chat", turn=index + 1, think_time=0.01) for index in (1, 2)
    ]
    served = driver_of([said, *turns], workers).serve()
    assert [(one.request.request_id, one.server) for one in served.sequences] == [(0, 0), (1, 1), (2, 0)]
    for before, turn in zip(served.sequences, served.sequences[1:], strict=False):
        assert turn.previous is before
        assert turn.arrival_time == before.token_times[-1] + 0.01


def test_users_take_turns(workers):
    served = driver_of(requests_at(*[(0.0, 4, 2)] * 5), workers, max_concurrency=1).serve()
    ends = [sequence.token_times[-1] for sequence in served.sequences]
    assert [sequence.arrival_time for sequence in served.sequences[1:]] == ends[:-1]


def test_requests_of_a_server_that_dies_begin_anew_at_another(tmp_path):
    dying = partial(Sleeper, dies_with=3, died=tmp_path / "died")
    requests = requests_at(*[(0.02 * index, 4, 8) for index in range(8)])
    served = driver_of(requests, spawned(dying)).serve()
    assert served.died == [1]
    assert served.num_rerouted >= 1
    assert [sequence.request for sequence in served.sequences] == requests
    assert all(sequence.output_token_ids == [*range(8)] for sequence in served.sequences)
    assert {sequence.server for sequence in served.sequences[3:]} == {0}
    assert {step.server for step in served.steps} == {0}  # those of the dead went with it


@pytest.mark.nightly
def test_when_the_last_server_dies_the_replay_fails(tmp_path):
    dying = partial(Sleeper, dies_with=0, died=tmp_path / "died")
    driver = driver_of(requests_at(*[(0.0, 4, 8)] * 4), spawned(dying, 1))
    with pytest.raises(RuntimeError, match="server 0 died, and no other is left; unfinished requests: 4"):
        driver.serve()


def test_what_a_server_raises_is_raised():
    driver = driver_of(requests_at((0.0, 4, 1)), when_ready(in_threads(Failing, 1)))
    with pytest.raises(ValueError, match="step 1: the logits are NaN"):
        driver.serve()


def test_a_stall_is_an_error():
    driver = driver_of(
        requests_at((0.0, 4, 1), (0.0, 4, 1)), when_ready(in_threads(num_servers=1)), make_scheduler=deaf
    )
    with pytest.raises(RuntimeError, match=r"stalled at 0\.\d+ s, unfinished requests: 2"):
        driver.serve()


def test_a_server_that_has_not_seen_all_is_not_stuck(workers):
    """It said so before what is on its way arrived."""
    driver = driver_of(requests_at((0.0, 4, 1)), workers)
    server = driver.servers[0]
    server.num_sent = 2
    driver.take(server, Stuck(num_arrived=1))
    assert not server.is_stuck
    driver.take(server, Stuck(num_arrived=2))
    assert server.is_stuck
    server.num_sent, server.is_stuck = 0, False
    driver.serve()
