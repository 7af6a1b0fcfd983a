"""The device's block tables and tokens are the sequences', whatever was sent before and whoever had the seat."""

import numpy as np
import pytest
import torch

from framework.core import Request, Sequence
from framework.engine.torch_engine.seats import Seats, SeatTables

BLOCK_SIZE = 4


@pytest.fixture
def seats():
    return Seats(SeatTables(2, 8, BLOCK_SIZE, torch.device("cpu")))


def sequence(block_table, prompt=(5, 6, 7), output=()):
    one = Sequence(Request(0, 0.0, len(prompt), 99))
    one.prompt_token_ids = np.array(prompt, dtype=np.int32)
    one.output_token_ids, one.block_table = list(output), list(block_table)
    return one


def bring(seats, sequences, starts, ends, num_decode=0):
    taken = seats.take(sequences)
    missing = seats.missing(sequences, taken, np.array(starts), np.array(ends), num_decode)
    seats.device.write({name: torch.from_numpy(array).int() for name, array in missing.items()})
    assert (seats.device.on_host == seats.device.tables.numpy()).all()
    return [seats.device.tables[seat].tolist() for seat in taken.tolist()], taken, len(missing["blocks"])


def test_chunks_send_only_the_blocks_that_are_new(seats):
    one = sequence([3, 9, 4, 7])
    sent = []
    for start, end in ((0, 6), (6, 7), (7, 13)):
        (table,), _, num_sent = bring(seats, [one], [start], [end])
        assert table[: -(-end // BLOCK_SIZE)] == one.block_table[: -(-end // BLOCK_SIZE)]
        sent.append(num_sent)
    assert sent == [2, 0, 2]


def test_a_sequence_that_left_off_elsewhere_brings_all_its_blocks(seats):
    one = sequence([3, 9])
    bring(seats, [one], [0], [8])
    one.block_table = [6, 1, 2]  # preempted, and admitted again
    assert bring(seats, [one], [0], [9])[0][0][:3] == [6, 1, 2]
    one.block_table = [5, 0, 7]  # behind a prefix that somebody else computed
    assert bring(seats, [one], [8], [12])[0][0][:3] == [5, 0, 7]


def test_a_preempted_sequence_that_goes_on_where_it_left_off_brings_all_its_blocks(seats):
    """A prefix cache has found just what it had computed, in other blocks."""
    one, other = sequence([3, 9]), sequence([4, 5])
    bring(seats, [one, other], [0, 0], [8, 8])
    for one.num_preemptions, table in ((1, [6, 1, 2]), (2, [5, 2, 0])):
        one.block_table = table
        other.block_table = [4, 5, 7]
        start = 8 if one.num_preemptions == 1 else 9
        tables, _, num_sent = bring(seats, [one, other], [start, start], [start + 1] * 2)
        assert [row[:3] for row in tables] == [table, [4, 5, 7]]
        assert num_sent == 3 + (start == 8)  # of the other one only what is new


def test_a_sequence_that_comes_back_from_another_server_brings_all_its_blocks(seats):
    one = sequence([3, 9])
    bring(seats, [one], [0], [8])
    one.block_table, one.num_moves = [6, 1, 2], 2  # no step has had it meanwhile
    assert bring(seats, [one], [8], [9])[0][0][:3] == [6, 1, 2]


def test_only_a_row_that_decodes_and_left_off_elsewhere_brings_its_token(seats):
    one, other = sequence([3, 9], output=[11]), sequence([4, 8], output=[12])
    _, taken, _ = bring(seats, [one, other], [3, 3], [4, 4], num_decode=1)
    assert seats.device.last_tokens[taken].tolist() == [11, 0]
    seats.device.store(torch.from_numpy(taken), torch.tensor([21, -1]))
    one.output_token_ids = []  # its token is in flight: the host is not asked
    bring(seats, [one, other], [4, 4], [5, 5], num_decode=2)
    assert seats.device.last_tokens[taken].tolist() == [21, 0]


def test_decode_steps_that_write_the_tables_themselves_are_noted(seats):
    one = sequence([3, 9, 4], output=[11])
    _, taken, _ = bring(seats, [one], [0], [3])
    for start in range(3, 8):
        seats.note_decoded(taken, np.array([start]), [0], np.array([one.block_table[start // BLOCK_SIZE]]))
        seats.device.tables[taken[0], start // BLOCK_SIZE] = one.block_table[start // BLOCK_SIZE]
    assert seats.device.on_host[taken[0], :2].tolist() == [3, 9]
    assert bring(seats, [one], [8], [9], num_decode=1)[0][0][:3] == [3, 9, 4]


def test_seats_of_this_step_and_the_one_before_are_kept(seats):
    sequences, before = [sequence([index]) for index in range(9)], []
    for first in range(0, 8, 2):
        _, taken, _ = bring(seats, sequences[first : first + 2], [0, 0], [1, 1])
        assert len({*taken.tolist()} - {seats.device.empty}) == 2
        assert not {*taken.tolist()} & {*before}
        before = taken.tolist()


def test_a_table_too_short_names_the_sequence(seats):
    with pytest.raises(AssertionError, match=r"Sequence\(0\) needs 3 blocks and has 2"):
        bring(seats, [sequence([1, 2])], [0], [9])
