"""Choosing among servers by what they have to do."""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as ListOf
from operator import attrgetter

from framework.contracts import Server, ServerState

Load = Callable[[ServerState], float]
Choose = Callable[[Iterable[Server]], Server]

num_unfinished: Load = attrgetter("num_unfinished")
num_tokens: Load = attrgetter("num_tokens")


def least_loaded(servers: ListOf[Server], load: Load = num_unfinished) -> Choose:
    """The one with the least load of those asked about; of equal ones the next behind the one named last."""
    num_servers, first = len(servers), 0

    def choose(among: Iterable[Server]) -> Server:
        nonlocal first
        asked = list(among)
        loads = [load(server.state) for server in asked]
        least = min(loads)
        equal = [server for server, its_load in zip(asked, loads, strict=True) if its_load == least]
        named = equal[0] if len(equal) == 1 else min(equal, key=lambda server: (server.index - first) % num_servers)
        first = named.index + 1
        return named

    return choose
