"""Virtual token counters: what is charged, the lift, and the bound at every step."""

import random
from itertools import pairwise

import pytest

from framework.build import replay_trace
from framework.core import Request, Sequence
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.orders.vtc import TokenCounters
from tests.fake_engine import FakeEngine, requests_at
from tests.scheduler.orders.logs import served, with_fields
from tests.scheduler.orders.shipped import shipped_order


def make():
    return TokenCounters(prompt_weight=1, output_weight=2)


def of(client, request_id=0, num_prompt_tokens=4, num_output_tokens=3):
    return Sequence(Request(request_id, 0.0, num_prompt_tokens, num_output_tokens, client_id=client))


def test_the_client_with_the_least_service_is_next():
    requests = with_fields(requests_at(*[(0.0, 4, 2)] * 4, (0.0, 2, 1), (0.0, 2, 1)), client_id=list("aaaabb"))
    log, _ = served(requests, shipped_order("vtc"))
    assert log == [
        (0.0, [0]),  # a: 4, then 6
        (1.0, [0]),  # a: 8
        (1.125, [4]),  # b: 2, then 4
        (2.125, [5]),  # b: 6, then 8; of equal counters it is a's turn, who has had it for longer
        (3.125, [1]),
        (4.125, [1]),
        (4.25, [2]),
        (5.25, [2]),
        (5.375, [3]),
        (6.375, [3]),
    ]


def test_what_is_computed_again_is_not_charged_again():
    requests = with_fields(requests_at((0.0, 4, 6), (0.0, 4, 6)), client_id=["a", "b"])
    orders = []
    order = lambda: orders.append(make()) or orders[-1]  # noqa: E731
    _, sequences = served(requests, order, max_num_seqs=2, num_blocks=4, watermark=0.0)
    assert sum(one.num_preemptions for one in sequences) > 0
    assert orders[-1].counters == {"a": 4 + 2 * 6, "b": 4 + 2 * 6}


def test_a_client_that_comes_is_lifted_to_the_lowest_that_waits():
    order = make()
    for index, client in enumerate("aab"):
        order.append(of(client, index))
    order.counters |= {"a": 50.0, "b": 30.0}
    order.append(of("c", 3))
    assert order.counters["c"] == 30.0
    assert order[0].request.client_id == "b"
    order.counters["b"] = 70.0
    order.append(of("b", 4))  # it waits already: no lift
    assert order.counters == {"a": 50.0, "b": 70.0, "c": 30.0}


def test_with_nobody_waiting_it_is_lifted_to_who_was_admitted_last():
    order = make()
    order.append(of("a"))
    order.popleft()
    order.counters["a"] = 90.0
    order.append(of("b", 1))
    assert order.counters["b"] == 90.0


def test_a_lift_lowers_nobody():
    order = make()
    order.append(of("a"))
    order.popleft()
    order.append(of("b", 1))
    order.counters["a"] = 90.0
    order.append(of("a", 2))
    assert order.counters == {"a": 90.0, "b": 4.0}


def test_several_tokens_at_once_are_charged_at_once():
    order = make()
    order.append(of("a"))
    order.served([order.popleft()], 5)
    assert order.counters == {"a": 4.0 + 2 * 5}


def test_requests_without_a_client_are_one_clients():
    order = make()
    for index, client in enumerate([None, "a", None]):
        order.append(of(client, index))
    assert [order.popleft().request.request_id for _ in range(3)] == [0, 1, 2]
    assert order.counters == {None: 8.0, "a": 4.0}


class Counting(ContinuousScheduler):
    """Keeps after every step the service of each client so far, by its own account, and whether it is backlogged."""

    def __init__(self, *blocks, **options):
        super().__init__(*blocks, **options)
        self.admitted, self.history = {}, []
        self.service = {}

    def schedule(self, now):
        batch = super().schedule(now)
        for sequence in () if batch is None else batch.sequences:
            if sequence not in self.admitted:
                self.admitted[sequence] = None
                self.count(sequence, sequence.request.num_prompt_tokens)
        self.note()
        return batch

    def postprocess(self, batch, token_ids, now):
        known = {one: len(one.output_token_ids) for one in batch.sequences}
        num_delivered = super().postprocess(batch, token_ids, now)
        for sequence in batch.sequences:
            self.count(sequence, 2 * (len(sequence.output_token_ids) - known[sequence]))
        self.note()
        return num_delivered

    def count(self, sequence, service):
        client = sequence.request.client_id
        self.service[client] = self.service.get(client, 0) + service

    def note(self):
        self.history.append(({one.request.client_id for one in self.waiting}, dict(self.service)))


def largest_difference(history, clients=("a", "b")):
    """Of what two clients got since both became backlogged, over all spans in which both are."""
    largest, since = 0, None
    for backlogged, service in history:
        difference = service.get(clients[0], 0) - service.get(clients[1], 0)
        if not backlogged.issuperset(clients):
            since = None
            continue
        since = (difference, difference) if since is None else (min(since[0], difference), max(since[1], difference))
        largest = max(largest, since[1] - since[0])
    return largest


def overloaded(seed, rates=(3.0, 6.0), num_requests=120):
    """Two clients that send more than is served, the second one twice as much, in any lengths."""
    rng = random.Random(seed)
    rows = [
        (index / rate, rng.randint(1, 24), rng.randint(1, 24), client)
        for client, rate in zip("ab", rates, strict=True)
        for index in range(num_requests)
    ]
    rows.sort(key=lambda row: row[0])
    return [Request(index, *row[:3], client_id=row[3]) for index, row in enumerate(rows)]


def replayed(requests, order, num_steps_ahead=0, **options):
    engine = FakeEngine(lambda batch: 0.1, num_blocks=30, num_steps_ahead=num_steps_ahead)
    scheduler = Counting(30, 4, max_num_seqs=16, max_num_batched_tokens=40, order=order, **options)
    replay_trace(requests, scheduler, engine)
    return scheduler.history


@pytest.mark.parametrize("num_steps_ahead", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {"reservation": "oracle"},
        {"reservation": "oracle", "steps": "mixed", "whole_prompts": False},
        {"reservation": "paged", "preemption": "swap", "num_swap_blocks": 60, "watermark": 0.0},
        {"reservation": "paged", "steps": "mixed", "watermark": 0.0},
    ],
    ids=["oracle", "mixed", "swap", "recompute"],
)
def test_the_bound_holds_at_every_step_from_when_both_are_backlogged(options, num_steps_ahead):
    """2 · max(w_p · L_input, w_q · M), with prompts of up to 24 tokens and a KV cache of 120."""
    bound = 2 * max(1 * 24, 2 * 120)
    for seed in range(3):
        requests = overloaded(seed)
        vtc = largest_difference(replayed(requests, shipped_order("vtc"), num_steps_ahead, **options))
        assert 0 < vtc <= bound
    fcfs = largest_difference(replayed(requests, shipped_order("fcfs"), num_steps_ahead, **options))
    assert fcfs > bound


@pytest.mark.parametrize(("reservation", "holds"), [("oracle", True), ("paged", False)])
def test_paged_blocks_may_break_the_bound(reservation, holds):
    """Short prompts of one client are admitted at once, and each that ends leaves its blocks to the others."""
    num_slots, outputs = 512, [512 // index for index in range(2, 160)]
    rows = [(1, num_tokens, "a") for num_tokens in outputs] + [(1, 150, "a")] * 12 + [(450, 2, "b")] * 20
    requests = [Request(index, 0.0, *row[:2], client_id=row[2]) for index, row in enumerate(rows)]
    engine = FakeEngine(num_blocks=num_slots, block_size=1)
    options = {"order": shipped_order("vtc"), "reservation": reservation, "watermark": 0.0}
    scheduler = Counting(num_slots, 1, max_num_seqs=500, max_num_batched_tokens=2048, **options)
    replay_trace(requests, scheduler, engine)
    assert (largest_difference(scheduler.history) <= 2 * max(1 * 450, 2 * num_slots)) == holds


def test_counters_are_what_was_served_where_nobody_was_lifted():
    requests = overloaded(1)
    orders = []
    history = replayed(requests, lambda: orders.append(make()) or orders[-1])
    served_last = history[-1][1]
    totals = {client: sum(p + 2 * o for p, o in lengths(requests, client)) for client in "ab"}
    assert served_last == totals
    assert all(orders[-1].counters[client] >= total for client, total in totals.items())


def lengths(requests, client):
    return [(one.num_prompt_tokens, one.num_output_tokens) for one in requests if one.client_id == client]


def test_history_of_the_test_itself_only_grows():
    history = replayed(overloaded(2), shipped_order("vtc"))
    totals = [sum(service.values()) for _, service in history]
    assert all(later >= earlier for earlier, later in pairwise(totals))


@pytest.mark.parametrize("key", ["prompt_weight", "output_weight"])
def test_weights_are_positive(key):
    with pytest.raises(ValueError, match=f"order.{key}=0 is not a finite number above 0"):
        shipped_order("vtc", **{key: 0})()
