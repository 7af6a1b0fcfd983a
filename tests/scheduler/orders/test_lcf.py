"""Least counter first: without the lift who was away is owed."""

from tests.fake_engine import requests_at
from tests.scheduler.orders.logs import served, with_fields
from tests.scheduler.orders.shipped import shipped_order

# b comes when a has had much, and then asks for much at once
REQUESTS = with_fields(
    requests_at(*[(0.0, 4, 3)] * 6, *[(3.9, 4, 3)] * 5),
    client_id=["a"] * 6 + ["b"] * 5,
)


def order_of_clients(name):
    log, _ = served(REQUESTS, shipped_order(name))
    return "".join(REQUESTS[index].client_id for index in dict.fromkeys(ids[0] for _, ids in log))


def test_who_was_away_goes_first_until_it_has_had_as_much():
    assert order_of_clients("lcf").startswith("aaaabbbb")
    assert order_of_clients("vtc").startswith("aaaaba")
