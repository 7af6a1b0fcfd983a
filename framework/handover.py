"""Prefill servers hand sequences over to decode servers with their KV blocks (Splitwise, ISCA; DistServe, OSDI 2024).

A sequence moves while it is in no step in flight. Its blocks at the source stay taken until they have been copied.
"""

from collections import defaultdict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from framework.contracts import MovingScheduler, Rebalance, ReceivingEngine, Router
from framework.core import Batch, Sequence, Step
from framework.link import Link, Traffic
from framework.replay import Process, Server, World


@dataclass(eq=False, slots=True)
class Move:
    """A sequence that leaves `source` for `target` (None: nobody has named one); `ready_time` (s): it stands still."""

    sequence: Sequence
    source: Server
    target: Server | None = None
    is_accepted: bool = False
    goes_by_layer: bool = False  # beside the last step of its prompt
    blocks: list[int] = field(default_factory=list)  # kept for it at the target
    num_output_tokens: int = 0  # when it was given to its target
    ready_time: float = 0.0


class Transfers:
    """Brings sequences from one server to another, over a `link`.

    `num_layers` parts of a prompt's blocks are copied one after the other where the link copies layer by layer. Raises
    ValueError for a server whose scheduler can let no sequence go, and for servers whose blocks are not alike.
    """

    def __init__(self, servers: Iterable[Server], link: Link, num_layers: int) -> None:
        self.link, self.num_layers, self.traffic = link, num_layers, Traffic(link)
        self.schedulers = {server.index: moving_scheduler(server) for server in servers}
        check_alike([server for server in servers if server.index in self.schedulers])
        self.leaving: defaultdict[int, list[Move]] = defaultdict(list)  # by source, with a step in flight
        self.waiting: defaultdict[int, deque[Move]] = defaultdict(deque)  # by target, for room there
        self.num_copying = 0

    def open(self, world: World) -> None:
        self.world = world

    def release(self, sequence: Sequence, source: Server) -> Move:
        """No later step of the source has it."""
        self.schedulers[source.index].release(sequence)
        move = Move(sequence, source)
        self.leaving[source.index].append(move)
        return move

    def send(self, move: Move, target: Server) -> None:
        """Name the target, as routers see it from now on."""
        move.target, move.num_output_tokens = target, len(move.sequence.output_token_ids)
        self.world.move(move.sequence, target)

    def accept_early(self, move: Move) -> bool:
        """Keep room at the target before the sequence stands still, if it has any now and nobody waits for it."""
        return move.target is not None and not self.waiting[move.target.index] and self.accept(move)

    def accept(self, move: Move) -> bool:
        """Keep room at the target, if it has any now."""
        assert move.target is not None
        scheduler = self.schedulers[move.target.index]
        move.is_accepted = scheduler.can_accept(move.sequence)
        if move.is_accepted:
            move.blocks = scheduler.accept(move.sequence)
        return move.is_accepted

    def step_ended(self, server: Server, step: Step) -> list[Move]:
        """Begin to copy those that were in the step and are in no other; those of them that have no target yet."""
        ready = [move for move in list(self.leaving[server.index]) if self.stands_still(move)]
        self.copy_at_once([move for move in ready if move.is_accepted], step)
        for move in ready:
            if move.target is not None and not move.is_accepted:
                self.wait(move)
        self.offer(server)
        return [move for move in ready if move.target is None]

    def stands_still(self, move: Move) -> bool:
        """Whether it goes on from here: it is in no step in flight, and has not finished."""
        sequence, source, target, now = move.sequence, move.source, move.target, self.world.env.now
        num_later = len(sequence.output_token_ids) - move.num_output_tokens
        if target is not None and num_later:  # which the source has counted
            source.load.step_ended(-num_later, {}, now)
            target.load.step_ended(num_later, {}, now)
            move.num_output_tokens += num_later
        if sequence.is_finished:
            self.leaving[source.index].remove(move)
            sequence.server = source.index
            if move.is_accepted and target is not None:
                self.schedulers[target.index].cancel(sequence)
                self.offer(target)
            return False
        if any(sequence in other.sequences for other, _ in source.in_flight):
            return False
        self.leaving[source.index].remove(move)
        move.ready_time = now
        return True

    def wait(self, move: Move) -> None:
        """For room at its target, behind those that wait there."""
        assert move.target is not None
        self.waiting[move.target.index].append(move)
        self.offer(move.target)

    def offer(self, target: Server) -> None:
        """Copy who waits for room at the target, up to the first that there is none for."""
        waiting = self.waiting[target.index]
        while waiting and self.accept(waiting[0]):
            move = waiting.popleft()
            self.carry(move, num_bytes(move), self.world.env.now)

    def copy_at_once(self, moves: list[Move], step: Step) -> None:
        """Those whose room was kept before the step: by layers, all but the last went beside it."""
        now = self.world.env.now
        queued: dict[Move, float] = {}  # of those that go by layer
        for move in (move for move in moves if move.goes_by_layer):
            first_layer = step.start_time + step.elapsed / self.num_layers
            start, _ = self.begin(move, num_bytes(move) * (1 - 1 / self.num_layers), first_layer)
            queued[move] = start - first_layer
        for move in moves:
            share = 1 / self.num_layers if move in queued else 1.0
            self.carry(move, num_bytes(move) * share, now, queued.get(move))

    def copy_now(self, move: Move) -> None:
        """Unless a step in flight has the sequence: then once that has ended."""
        if self.stands_still(move):
            self.carry(move, num_bytes(move), self.world.env.now)

    def begin(self, move: Move, size: float, ready_time: float) -> tuple[float, float]:
        assert move.target is not None
        return self.traffic.carry(move.source.index, move.target.index, size, ready_time)

    def carry(self, move: Move, size: float, now: float, queued: float | None = None) -> None:
        """Copy the last `size` bytes; those before them, if there were any, were `queued` for so many seconds."""
        start, end = self.begin(move, size, now)
        total = end + self.link.latency - move.ready_time
        wait = min(total, start - move.ready_time if queued is None else queued)
        self.num_copying += 1
        self.world.env.process(self.arrive(move, wait, total))

    def arrive(self, move: Move, wait: float, total: float) -> Process:
        sequence, source, target, env = move.sequence, move.source, move.target, self.world.env
        assert target is not None
        yield env.timeout(move.ready_time + total - env.now)
        self.num_copying -= 1
        if isinstance(target.engine, ReceivingEngine):  # others keep no keys and values
            pairs = zip(sequence.block_table, move.blocks[: num_blocks(move)], strict=False)
            target.engine.receive(source.engine, list(pairs))
        self.schedulers[source.index].drop(sequence)
        self.schedulers[target.index].join(sequence)
        if not sequence.num_moves:
            sequence.prefill_server = source.index
        sequence.num_moves += 1
        sequence.transfer_wait += wait
        sequence.transfer_time += total - wait
        for server in (source, target):
            server.ring()
        self.offer(source)


class HandOver:
    """Every sequence leaves its prefill server with its first token, for the decode server that `route` names.

    It is named as the last step of the prompt begins; while `route` names none, it is asked again after every step.
    """

    def __init__(self, transfers: Transfers, prefill: Iterable[Server], route: Router) -> None:
        self.transfers, self.route = transfers, route
        self.copies_layers = transfers.link.copy == "layer_by_layer"
        self.prefill: Collection[int] = {server.index for server in prefill}
        self.unnamed: deque[Move] = deque()  # in no step, without a target

    @property
    def num_copying(self) -> int:
        return self.transfers.num_copying

    @property
    def heeds_steps(self) -> bool:
        return bool(self.unnamed)

    def open(self, world: World) -> None:
        self.world = world
        self.transfers.open(world)

    def launched(self, server: Server, batch: Batch) -> None:
        if server.index in self.prefill:
            for sequence in batch.sequences:
                if sequence.num_computed_tokens == sequence.num_tokens and sequence.num_unscheduled_tokens:
                    move = self.transfers.release(sequence, server)
                    if not self.unnamed and self.name_target(move) and self.copies_layers:
                        move.goes_by_layer = self.transfers.accept_early(move)

    def name_target(self, move: Move) -> bool:
        named = self.route(move.sequence)
        if named is not None:
            self.transfers.send(move, self.world.servers[named.index])
        return named is not None

    def step_ended(self, server: Server, step: Step) -> None:
        self.unnamed.extend(self.transfers.step_ended(server, step))
        while self.unnamed and self.name_target(self.unnamed[0]):
            self.transfers.wait(self.unnamed.popleft())


class Migration:
    """A running sequence moves from one of the `servers` to another when `rebalance` says so (Llumnix, OSDI 2024).

    It is the one with the fewest tokens of those that the other has room for. It stands still while it is copied, and
    moves once its step in flight has ended.
    """

    def __init__(self, transfers: Transfers, rebalance: Rebalance) -> None:
        self.transfers, self.rebalance = transfers, rebalance
        self.heeds_steps = True

    @property
    def num_copying(self) -> int:
        return self.transfers.num_copying

    def open(self, world: World) -> None:
        self.world = world
        self.transfers.open(world)

    def launched(self, server: Server, batch: Batch) -> None:
        """Nobody leaves for what a step is of."""

    def step_ended(self, server: Server, step: Step) -> None:
        self.transfers.step_ended(server, step)
        named = self.rebalance(self.world.env.now)
        if named is not None:
            source, target = (self.world.servers[one.index] for one in named)
            self.migrate(source, target)

    def migrate(self, source: Server, target: Server) -> None:
        transfers = self.transfers
        leaving, arriving = (transfers.schedulers[server.index] for server in (source, target))
        if transfers.waiting[target.index]:
            return
        for sequence in sorted(leaving.movable(), key=lambda one: one.num_tokens):
            if arriving.can_accept(sequence):
                move = transfers.release(sequence, source)
                transfers.send(move, target)
                transfers.accept(move)
                transfers.copy_now(move)
                return


def moving_scheduler(server: Server) -> MovingScheduler:
    """Its scheduler; ValueError if that can let no sequence go."""
    if not isinstance(server.scheduler, MovingScheduler):
        raise ValueError(
            f"server {server.index}: {type(server.scheduler).__name__} has no release and accept, so no sequence can "
            "move from or to it: take scheduler=continuous"
        )
    return server.scheduler


def check_alike(servers: list[Server]) -> None:
    """ValueError where a block of one server is none of another's."""
    blocks = {(server.engine.block_size, bytes_per_block(server)) for server in servers}
    if len(blocks) > 1:
        sizes = ", ".join(f"{size} tokens in {num_bytes:g} bytes" for size, num_bytes in sorted(blocks))
        raise ValueError(f"KV blocks of servers between which sequences move must be alike, not of {sizes}")


def bytes_per_block(server: Server) -> float:
    return server.engine.num_cache_bytes / server.engine.num_blocks


def num_bytes(move: Move) -> float:
    """Of the blocks with what is computed of it."""
    return num_blocks(move) * bytes_per_block(move.source)


def num_blocks(move: Move) -> int:
    return -(-move.sequence.num_computed_tokens // move.source.engine.block_size)
