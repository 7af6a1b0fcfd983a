"""What the host sends of decode steps: rows of two servers by turns are no more work than those of one."""

import numpy as np
import pytest
import torch

from framework.core import Batch, Request, Sequence
from framework.engine.torch_engine import decode_rows
from framework.engine.torch_engine.decode_rows import DecodeRows
from framework.engine.torch_engine.seats import Seats, SeatTables

BLOCK_SIZE, NUM_SEQS, FIRST_BLOCK = 4, 2, 100


class Counted(Seats):
    """Counts rows whose blocks were sent anew, and batches that took seats."""

    num_missing = num_taken = 0

    def missing(self, sequences, *others):
        self.num_missing += len(sequences)
        return super().missing(sequences, *others)

    def take(self, sequences):
        self.num_taken += 1
        return super().take(sequences)


@pytest.fixture(autouse=True)
def no_events(monkeypatch):
    monkeypatch.setattr(decode_rows, "record_event", lambda: None)


def make_rows(num_servers):
    tables = SeatTables(NUM_SEQS, 16, BLOCK_SIZE, torch.device("cpu"), num_servers)
    seats = [Counted(tables, index, index * FIRST_BLOCK) for index in range(num_servers)]
    return [DecodeRows(one, None, 0, lambda num_seqs: num_seqs) for one in seats]


def make_sequences(first_id):
    sequences = []
    for index in range(NUM_SEQS):
        one = Sequence(Request(first_id + index, 0.0, 3, 40))
        one.prompt_token_ids, one.output_token_ids = np.array([5, 6, 7], dtype=np.int32), [8]
        one.block_table = list(range(10 * index, 10 * index + 10))
        sequences.append(one)
    return sequences


def decode(rows, sequences, start):
    """A step of each, whose rows are (4, num_seqs)."""
    rows.fill(Batch(sequences, [start] * len(sequences), [1] * len(sequences), 0, len(sequences)))
    sent, received, _ = rows.next_buffers()
    assert len(received) == NUM_SEQS
    return sent[:, : len(sequences)].tolist()


def test_servers_by_turns_send_what_each_would_alone():
    alone, *both = [*make_rows(1), *make_rows(2)]
    sequences = make_sequences(0)
    of_one = [decode(alone, sequences, start) for start in range(3, 15)]
    of_each = [[], []]
    own = [make_sequences(10), make_sequences(20)]
    for start in range(3, 15):
        for index, rows in enumerate(both):
            of_each[index].append(decode(rows, own[index], start))
    for index, sent in enumerate(of_each):
        for (_, *lens_and_padding, blocks), (_, *others, other_blocks) in zip(of_one, sent, strict=True):
            assert others == lens_and_padding
            assert [block - index * FIRST_BLOCK for block in other_blocks] == blocks
        assert all(seat // (2 * NUM_SEQS) == index for seats, *_ in sent for seat in seats)
    assert [(rows.seats.num_missing, rows.seats.num_taken) for rows in (alone, *both)] == [(NUM_SEQS, 1)] * 3


def test_blocks_of_the_tables_are_the_servers_own():
    _, second = make_rows(2)
    sequences = make_sequences(0)
    for one in sequences:
        one.output_token_ids = [8] * 7
    seats, *_ = decode(second, sequences, 9)
    tables = second.seats.device.tables[seats][:, :3]
    assert tables.tolist() == [[100, 101, 102], [110, 111, 112]]


def test_buffers_are_used_by_turns_and_a_step_between_makes_rows_anew():
    (rows,) = make_rows(1)
    sequences = make_sequences(0)
    rows.fill(Batch(sequences, [3, 3], [1, 1], 0, 2))
    first, second, third = (rows.next_buffers()[0] for _ in range(3))
    assert first is third
    assert first is not second
    rows.fill(Batch(sequences, [4, 4], [1, 1], 0, 2))
    assert rows.seats.num_taken == 1
    rows.forget()
    rows.fill(Batch(sequences, [5, 5], [1, 1], 0, 2))
    assert rows.seats.num_taken == 2
    rows.fill(Batch(sequences, [6, 6], [1, 1], 0, 2, swap_in=[(0, 3)]))
    assert rows.seats.num_taken == 3
