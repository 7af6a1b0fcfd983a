"""Sessions stick to a server."""

from framework.router.session import session
from tests.router.seen import State, see, sequence


def test_turns_go_where_the_first_one_went():
    servers = see(State(2), State(1))
    route = session(servers)
    assert route(sequence(session_id="a")).index == 1
    servers[1].state.num_unfinished = 9
    assert route(sequence(session_id="a")).index == 1
    assert route(sequence(session_id="b")).index == 0


def test_a_request_without_a_session_goes_to_the_least_loaded():
    servers = see(State(2), State(1))
    route = session(servers)
    assert route(sequence()).index == 1
    servers[1].state.num_unfinished = 9
    assert route(sequence()).index == 0
