"""What the Order protocol promises, for every order in conf/order."""

import random
from functools import partial
from itertools import islice

import pytest

import framework.scheduler.orders
from framework.build import make_scheduler, replay_trace
from framework.contracts import Order
from framework.core import Request, Sequence
from framework.scheduler.continuous import ContinuousScheduler
from tests.contracts.implementations import factories, implementations
from tests.fake_engine import FakeEngine
from tests.scheduler.orders.shipped import ORDERS, shipped_order
from tests.scheduler.shipped import NAMES, shipped

BLOCK_SIZE = 4
CONTINUOUS = [name for name in NAMES if name != "static"]
each_order = pytest.mark.parametrize("name", ORDERS)


def random_requests(seed: int, num_requests: int = 60) -> list[Request]:
    """Of three clients, one of which asks for half of all."""
    rng = random.Random(seed)
    times = sorted(rng.choice([0.0, rng.uniform(0, 4)]) for _ in range(num_requests))
    return [
        Request(
            index,
            time,
            rng.randint(1, 20),
            rng.randint(1, 12),
            priority=rng.randrange(3),
            client_id=rng.choice("aabc"),
            num_predicted_tokens=rng.randint(1, 12),
        )
        for index, time in enumerate(times)
    ]


class Conserving(ContinuousScheduler):
    """Asserts of each decision that no seat stays idle without a reason."""

    def schedule(self, now):
        num_preemptions = self.num_preemptions()
        is_decode_turn = self.steps == "alternate" and self.was_of_prompts
        batch = super().schedule(now)
        if batch is None or batch.swap_in or is_decode_turn or self.num_preemptions() > num_preemptions:
            return batch
        num_seats = len(self.running) + sum(not one.num_unscheduled_tokens for one in batch.sequences)
        if num_seats < self.max_num_seqs and self.waiting and self.order.has_turn(self.waiting[0]):
            assert self.waiting[0] in self.swap or self.is_full(batch) or self.is_tight(self.waiting[0])
        return batch

    def num_preemptions(self):
        return sum(one.num_preemptions for one in (*self.waiting, *self.running, *self.ending))

    def is_full(self, batch):
        """No token fits in or, of whole prompts, not the first one, or one is alone in several steps."""
        num_left = self.max_num_batched_tokens - sum(batch.num_tokens)
        if not self.whole_prompts:
            return num_left < 1
        goes_on = any(batch.starts[batch.num_decode_tokens :]) or self.split is not None
        return goes_on or num_left < self.waiting[0].num_tokens

    def is_tight(self, first):
        slots = max(self.promises.num_slots(first.request), first.num_tokens)
        num_left = self.num_blocks_left if self.running else 0
        return -(-slots // BLOCK_SIZE) + num_left > self.blocks.num_free


def test_every_order_is_in_conf():
    made = {
        *implementations(framework.scheduler.orders, "popleft", "served"),
        *factories(framework.scheduler.orders, Order),
    }
    shipped_ones = {shipped_order(name).func for name in ORDERS}
    assert made == shipped_ones | {type(shipped_order("sjf")())}


@each_order
@pytest.mark.parametrize("num_steps_ahead", [0, 1])
@pytest.mark.parametrize("scheduler", CONTINUOUS)
def test_all_orders_serve_the_same_tokens_and_leave_no_seat_idle(name, scheduler, num_steps_ahead):
    for seed, (reservation, preemption) in enumerate([("paged", "recompute"), ("paged", "swap"), ("oracle", "swap")]):
        requests = random_requests(seed)
        engine = FakeEngine(lambda batch: 0.02, 14, BLOCK_SIZE, num_steps_ahead, num_swap_blocks=30)
        options = {"reservation": reservation, "preemption": preemption, "order": shipped_order(name)}
        keywords = shipped(scheduler, max_num_seqs=5, max_num_batched_tokens=24, **options).keywords
        served, _ = replay_trace(requests, make_scheduler(partial(Conserving, **keywords), engine), engine)
        assert [one.output_token_ids for one in served] == [list(range(one.num_output_tokens)) for one in requests]


@each_order
def test_an_order_is_a_queue_whose_iteration_begins_with_the_next_one(name):
    order, sequences = shipped_order(name)(), [Sequence(request) for request in random_requests(0)]
    for sequence in sequences:
        order.append(sequence)
    order.update(3.0)
    gone = []
    while order:
        assert len(order) == len(sequences) - len(gone)
        if not order.has_turn(order[0]):
            order.update(order.wake_time)
        assert [order[0]] == list(islice(order, 1))
        assert set(order) == {*sequences}.difference(gone)
        gone.append(order.popleft())
        if len(gone) % 7 == 3:  # preempted, and it ends by a stop token
            back = gone[-1]
            back.num_preemptions += 1
            order.appendleft(back)
            assert len(order) == len(sequences) - len(gone) + 1
            order.remove(back)
    assert sorted(one.request.request_id for one in gone) == list(range(60))


@each_order
def test_a_step_costs_the_same_however_many_wait(name):
    """By how many sequences are asked for anything, which is what a queue has to do."""
    counts = []
    for num_waiting in (100, 3200):
        order = shipped_order(name)()
        for index in range(num_waiting):
            order.append(Counted(Request(index, 0.0, 8, 1 + index % 9, client_id=f"client-{index % 3}")))
        order.update(1.0)
        order[0]
        Counted.num_looks = 0
        for _ in range(20):
            order.update(1.0)
            sequence = order.popleft()
            sequence.num_preemptions += 1
            order.appendleft(sequence)
            assert order[0]
        counts.append(Counted.num_looks)
    assert counts[1] <= counts[0] + 20


class Counted(Sequence):
    """Counts how often anybody looks at the request of one."""

    __slots__ = ("own",)
    num_looks = 0

    @property
    def request(self):
        Counted.num_looks += 1
        return self.own

    @request.setter
    def request(self, request):
        self.own = request
