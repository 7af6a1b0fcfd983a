"""Virtual token counters (VTC, OSDI 2024): the client that has had the least service is next."""

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count

from framework.checks import positive
from framework.contracts import Order
from framework.core import Sequence

Client = str | None  # requests without a client_id are one client's
Place = tuple[float, int, Client]  # a counter, when it was that, and whose


class TokenCounters(Order):
    """First come, first served for each client; a counter for each says whose turn it is, the lowest first.

    A prompt's token counts `prompt_weight` when its sequence is first admitted, an output token `output_weight` when it
    is delivered: what is computed again is not charged again, and what a prefix cache finds is charged as well. A
    client that comes with nothing waiting is lifted to the lowest counter of those that wait or, if nobody does, to
    that of the client that was admitted last, so that nobody saves service up.

    While two clients wait, their services differ by no more than 2 · max(`prompt_weight` · the longest prompt,
    `output_weight` · the tokens that the KV cache holds): proven where all that run fit in to their ends, as with
    `reservation` max, pow2 or oracle, and an output token counts no less than one of a prompt.

    A call costs O(log clients), and after a step what it moved the counters of those that ran.
    """

    uses = ("client_id",)

    def __init__(self, *, prompt_weight: float, output_weight: float) -> None:
        self.prompt_weight = positive("order.prompt_weight", prompt_weight)
        self.output_weight = positive("order.output_weight", output_weight)
        self.counters: dict[Client, float] = {}
        self.queues: dict[Client, deque[Sequence]] = {}  # none is empty
        self.heap: list[Place] = []  # with outdated ones
        self.places: dict[Client, Place] = {}  # the current one of each client that waits; its counter may have grown
        self.stamps = count()
        self.last_client: Client = None
        self.num_waiting = 0

    def __len__(self) -> int:
        return self.num_waiting

    def __iter__(self) -> Iterator[Sequence]:
        """As if nothing but admissions were charged; costs O(clients)."""
        clients = [self._next_client(), *self.queues] if self.queues else []
        heads = [(self.counters[client], index, client, 0) for index, client in enumerate(dict.fromkeys(clients))]
        heapify(heads)
        while heads:
            counter, index, client, position = heappop(heads)
            queue = self.queues[client]
            yield queue[position]
            if position + 1 < len(queue):
                counter += self.cost_of_admission(queue[position])
                heappush(heads, (counter, index, client, position + 1))

    def __getitem__(self, index: int) -> Sequence:
        assert index == 0
        return self.queues[self._next_client()][0]

    def append(self, sequence: Sequence) -> None:
        self.join(sequence)
        client = sequence.request.client_id
        self._queue(client).append(sequence)
        self.num_waiting += 1

    def join(self, sequence: Sequence) -> None:
        client = sequence.request.client_id
        if client not in self.queues:
            self.lift(client)

    def appendleft(self, sequence: Sequence) -> None:
        self._queue(sequence.request.client_id).appendleft(sequence)
        self.num_waiting += 1

    def popleft(self) -> Sequence:
        client = self._next_client()
        sequence = self.queues[client][0]
        self.remove(sequence)
        self.charge(client, self.cost_of_admission(sequence))
        self.last_client = client
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Costs O(1) of the first of its client, else how many of its requests wait before it."""
        client = sequence.request.client_id
        self.queues[client].remove(sequence)
        if not self.queues[client]:
            del self.queues[client], self.places[client]
        self.num_waiting -= 1

    def served(self, sequences: list[Sequence], num_tokens: int = 1) -> None:
        counters, cost = self.counters, self.output_weight
        for _ in range(num_tokens):  # a sum's last bits depend on its order
            for sequence in sequences:
                counters[sequence.request.client_id] += cost

    def charge(self, client: Client, cost: float) -> None:
        self.counters[client] += cost

    def lift(self, client: Client) -> None:
        """The client comes with nothing waiting."""
        lowest = self._next_client() if self.queues else self.last_client
        counter = self.counters.get(client, 0.0)
        self.counters[client] = max(counter, self.counters.get(lowest, 0.0))

    def cost_of_admission(self, sequence: Sequence) -> float:
        return 0.0 if sequence.num_preemptions else self.prompt_weight * sequence.request.num_prompt_tokens

    def place(self, client: Client) -> None:
        """The client waits, with the counter that it has now."""
        place = self.places[client] = (self.counters[client], next(self.stamps), client)
        heappush(self.heap, place)

    def _queue(self, client: Client) -> deque[Sequence]:
        if client not in self.queues:
            self.queues[client] = deque()
            self.place(client)
        return self.queues[client]

    def _next_client(self) -> Client:
        """Whose counter is the lowest of those that wait; among equals, who has had it for longer."""
        while True:
            place = self.heap[0]
            counter, _, client = place
            is_current = self.places.get(client) is place
            if is_current and counter == self.counters[client]:
                return client
            heappop(self.heap)
            if is_current:
                self.place(client)
