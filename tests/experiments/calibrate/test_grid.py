"""The grid of steps: what is timed, in which order, and what its rows say."""

from dataclasses import replace
from time import perf_counter

import numpy as np
import pandas as pd
import pytest

from experiments.calibrate import grid as module
from experiments.calibrate.grid import Bench, Cell, Grid, cells_of, check_grid, fitting, measure_cells
from tests.fake_engine import FakeEngine

GRID = Grid(
    decode=None, contexts=[64, 128, 256], prefill=[[2, 16]], mixed=[[8, 4, 2, 64]], num_adapters=[1, 4], num_steps=4
)
GRAPHS = {"decode": [1, 2, 4, *range(8, 257, 8)]}


def timed_engine():
    engine = FakeEngine(num_steps_ahead=1)
    engine.timer = perf_counter
    return engine


def test_every_size_is_timed_with_every_context_and_with_every_number_of_adapters():
    cells = cells_of(GRID, {}, 5, 0)
    assert len(cells) == len(set(cells)) == 4 * 3 + 1 + 1
    assert {(cell.num_decodes, cell.context) for cell in cells if not cell.num_prompts} == {
        (size, context) for size in (1, 2, 4, 5) for context in (64, 128, 256)
    }
    assert {cell for cell in cells if cell.num_prompts} == {Cell(2, 16, 0, 0, 0, 0), Cell(1, 8, 4, 2, 64, 0)}
    served = cells_of(GRID, {}, 5, 3)  # four adapters do not fit
    assert len(served) == 3 + 3 * 3 * 2 + 2 + 2
    assert {cell.num_adapters for cell in served if cell.num_decodes == 5} == {1, 3}
    assert {cell.num_adapters for cell in served if cell.num_decodes == 1} == {1}


@pytest.mark.parametrize("num_cells", [8, 20, 40])
def test_the_first_ones_cover_the_sizes_and_the_contexts_evenly(num_cells):
    prompts = replace(GRID, prefill=[[1, size] for size in range(64, 2049, 64)])
    cells = cells_of(prompts, GRAPHS, 256, 0)[:num_cells]
    for values, largest in (
        ([cell.num_decodes for cell in cells if not cell.num_prompts], 256),
        ([cell.num_tokens for cell in cells if cell.num_prompts and not cell.num_decodes], 2048),
    ):
        assert len(values) >= num_cells // 3
        gaps = np.diff([0, *sorted(set(values)), largest])
        assert max(gaps) <= 2.5 * largest / len(set(values))
    assert {cell.context for cell in cells if not cell.num_prompts} == {64, 128, 256}


def test_a_row_says_what_a_step_attends_to():
    bench = Bench(timed_engine())
    row = bench.measure(Cell(2, 8, 4, 3, 64, 0), 3)
    assert (row["num_seqs"], row["num_prefill_tokens"], row["num_decode_tokens"]) == (5, 16, 3)
    assert row["num_prefill_pairs"] == 2 * sum(range(5, 13))
    assert row["num_context_tokens"] == pytest.approx(2 * 12 + 3 * 64, rel=0.2)
    assert np.isnan(row["elapsed"])


def test_sequences_have_blocks_of_their_own_and_take_adapters_in_turn():
    engine = FakeEngine(num_blocks=1000)
    engine.num_adapter_slots, engine.adapter_names = 2, lambda num: [f"adapter-{index}" for index in range(num)]
    bench = Bench(engine)
    assert bench.loads == {1: "adapter-0", 2: "adapter-1"}
    cell = Cell(1, 8, 4, 6, 64, 2)
    *_, last = bench.batches(cell, 7)
    blocks = [block for sequence in last.sequences for block in sequence.block_table]
    assert len(blocks) == len(set(blocks))
    for sequence, start, num_tokens in zip(last.sequences, last.starts, last.num_tokens, strict=True):
        assert len(sequence.block_table) * engine.block_size >= start + num_tokens
    assert [sequence.adapter_slot for sequence in last.sequences] == [1, 2, 1, 2, 1, 2, 1]


def test_what_has_no_room_is_told():
    said = []
    cells = [Cell(2, 100, 0, 0, 0, 0), Cell(0, 0, 0, 1, 3000, 0), Cell(1, 8, 4, 30, 200, 0), Cell(0, 0, 0, 33, 8, 0)]
    engine = FakeEngine(num_blocks=1000)
    engine.max_model_len = 2000
    assert list(fitting(engine, cells, 4, 32, said.append)) == cells[:1]
    assert [line.split(":")[0] for line in said] == [cell.name for cell in cells[1:]]
    assert said[-1] == "33 decodes of 8: skipped, more than 32 sequences"


def test_what_was_timed_is_not_timed_again_and_time_ends(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(module, "get_ready", lambda *_, **__: None)
    cells, path = [Cell(1, size, 0, 0, 0, 0) for size in (8, 16, 32)], tmp_path / "grid.csv"
    engine = timed_engine()
    assert len(measure_cells(engine, cells[:1], 4, 1, path, 60.0, said.append)) == 1
    num_batches = len(engine.batches)
    assert len(measure_cells(engine, cells, 4, 1, path, -1.0, said.append)) == 1
    assert said == ["2 of 3 steps of the grid are left: the same command goes on with them"]
    assert len(measure_cells(engine, cells, 4, 1, path, 60.0, said.append)) == 3
    assert len(engine.batches) == 3 * num_batches
    assert pd.read_csv(path)["cell"].tolist() == ["1 × 8 behind 0", "1 × 16 behind 0", "1 × 32 behind 0"]


def test_sizes_that_no_step_has_are_refused():
    with pytest.raises(ValueError, match="a prefill needs at least 1 sequence"):
        check_grid(replace(GRID, prefill=[[0, 4]]))
    with pytest.raises(ValueError, match=r"grid.num_adapters=\[0\]"):
        check_grid(replace(GRID, num_adapters=[0]))
