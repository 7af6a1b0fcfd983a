"""Adapter-aware routing: by hand."""

import pytest

from framework.router.adapter_aware import adapter_aware
from tests.router.seen import State, see, sequence


def test_a_server_that_has_the_adapter_is_named_although_another_has_less_to_do():
    route = adapter_aware(see(State(0), State(5, adapter_ids={"a"}), State(4, adapter_ids={"a"})))
    assert route(sequence(adapter_id="a")).index == 2
    assert route(sequence(adapter_id="b")).index == 0
    assert route(sequence()).index == 0


def test_a_server_with_too_many_requests_more_loses_its_claim():
    servers = see(State(0), State(5, adapter_ids={"a"}))
    assert adapter_aware(servers, max_excess=5)(sequence(adapter_id="a")).index == 1
    assert adapter_aware(servers, max_excess=4)(sequence(adapter_id="a")).index == 0


@pytest.mark.parametrize("max_excess", [-1, 1.5, None])
def test_an_excess_is_a_whole_number(max_excess):
    with pytest.raises(ValueError, match=r"router.max_excess="):
        adapter_aware(see(State()), max_excess=max_excess)
