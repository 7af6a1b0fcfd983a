"""VTC with known lengths: an output is charged at the admission."""

from dataclasses import replace

from framework.core import Request, Sequence
from framework.scheduler.orders.vtc_oracle import OracleCounters
from tests.fake_engine import requests_at
from tests.scheduler.orders.logs import served, with_fields
from tests.scheduler.orders.shipped import shipped_order


def test_seats_are_given_by_what_will_be_generated():
    """Of equal prompts VTC gives both clients two of four seats; the oracle knows that b's answers are short."""
    requests = with_fields(requests_at(*[(0.0, 2, 5)] * 3, *[(0.0, 2, 1)] * 3), client_id=list("aaabbb"))
    _, by_oracle = served(requests, shipped_order("vtc_oracle"), max_num_seqs=4)
    _, by_vtc = served(requests, shipped_order("vtc"), max_num_seqs=4)
    assert [one.scheduled_time for one in by_oracle] == [0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert [one.scheduled_time for one in by_vtc] == [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]


def test_what_a_stop_token_saves_is_given_back():
    order = OracleCounters(prompt_weight=1, output_weight=2)
    request = Request(0, 0.0, 4, 10, client_id="a", stop_token_ids=frozenset({7}))
    sequence, waiting = Sequence(request), Sequence(replace(request, request_id=1))
    for one in (sequence, waiting, Sequence(Request(2, 0.0, 30, 1, client_id="b"))):
        order.append(one)
    assert order.popleft() is sequence
    assert order.counters == {"a": 24.0, "b": 0.0}
    order.popleft()
    assert order.counters["b"] == 32.0
    order.append(Sequence(Request(3, 0.0, 1, 1, client_id="b")))
    order.counters["a"] = 40.0
    assert order[0].request.client_id == "b"
    sequence.append(7, 0.0)
    order.served([sequence])
    assert order.counters["a"] == 40.0 - 2 * 9
    assert order[0] is waiting
