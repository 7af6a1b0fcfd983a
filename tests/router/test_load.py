"""Choosing the least loaded server: by hand."""

from types import SimpleNamespace

from framework.router.load import least_loaded, num_tokens


def servers_with(*loads):
    return [
        SimpleNamespace(index=index, state=SimpleNamespace(num_unfinished=load, num_tokens=-load))
        for index, load in enumerate(loads)
    ]


def test_the_least_loaded_one_is_chosen_and_equal_ones_take_turns():
    servers = servers_with(3, 1, 1, 2)
    choose = least_loaded(servers)
    assert [choose(servers).index for _ in range(4)] == [1, 2, 1, 2]
    assert choose([servers[0], servers[3]]).index == 3


def test_what_load_is_can_be_told():
    servers = servers_with(3, 1, 2)
    assert least_loaded(servers, num_tokens)(servers).index == 0
