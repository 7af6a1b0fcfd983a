"""Choosing among servers by what they have to do."""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as ListOf
from operator import attrgetter

from framework.core import Server, ServerState

Load = Callable[[ServerState], float]
Choose = Callable[[Iterable[Server]], Server]

num_unfinished: Load = attrgetter("num_unfinished")
num_tokens: Load = attrgetter("num_tokens")


def least_loaded(servers: ListOf[Server], load: Load = num_unfinished) -> Choose:
    """The one with the least load of those asked about; of equal ones the next behind the one named last."""
    num_servers, first = len(servers), 0

    def order(server: Server) -> tuple[float, int]:
        return load(server.state), (server.index - first) % num_servers

    def choose(among: Iterable[Server]) -> Server:
        nonlocal first
        server = min(among, key=order)
        first = server.index + 1
        return server

    return choose
