"""Least counter first (VTC's baseline): as VTC without the lift, so that a client is owed what it did not ask for."""

from framework.scheduler.orders.vtc import Client, TokenCounters


class LeastCounter(TokenCounters):
    """A client that comes keeps its counter, however long it was away."""

    def lift(self, client: Client) -> None:
        self.counters.setdefault(client, 0.0)
