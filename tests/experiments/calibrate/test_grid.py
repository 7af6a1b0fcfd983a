"""The grid of steps: what is timed, in which order, and what its rows say."""

import pandas as pd
import pytest

from experiments.calibrate import grid as module
from experiments.calibrate.grid import Grid, cells_of, check_grid, fitting, log_row, measure_cells
from tests.fake_engine import FakeEngine

GRID = Grid(decode=None, contexts=[64, 128, 256], prefill=[[2, 16]], mixed=[[8, 4, 2, 64]], num_steps=4)


def test_every_batch_size_is_timed_with_every_context_and_every_second_context_comes_last():
    cells = cells_of(GRID, {}, 5)
    assert cells[:2] == [("prefill", (2, 16)), ("mixed", (8, 4, 2, 64))]
    assert [sizes for _, sizes in cells[2:]] == [(size, context) for context in (64, 256, 128) for size in (1, 2, 4, 5)]
    graphs = {"decode": [1, 2, 4, 8, 64, 72, 80, 88]}
    assert [sizes[0] for _, sizes in cells_of(GRID, graphs, 88)[2:][:7]] == [1, 2, 4, 8, 64, 72, 88]


def test_a_row_says_what_a_step_attends_to():
    row = log_row(0.5, 1, 8, 4, 2, 64, ["a", "b"])
    assert row["num_context_tokens"] == 12 + 128
    assert row["num_prefill_pairs"] == sum(range(5, 13))
    assert (row["num_seqs"], row["num_adapters"], row["device"]) == (3, 2, 0.5)


def test_what_has_no_room_is_told():
    said = []
    cells = [("prefill", (2, 100)), ("decode", (1, 3000)), ("mixed", (8, 4, 30, 200))]
    engine = FakeEngine(num_blocks=1000)
    engine.max_model_len = 2000
    assert list(fitting(engine, cells, 4, said.append)) == cells[:1]
    assert [line.split(":")[0] for line in said] == ["decode 1 3000", "mixed 8 4 30 200"]


def test_what_was_timed_is_not_timed_again_and_time_ends(tmp_path, monkeypatch):
    timed, said = [], []
    monkeypatch.setattr(module, "get_ready", lambda *_, **__: None)
    monkeypatch.setattr(
        module, "measure_cell", lambda engine, cell, num: timed.append(cell) or log_row(1.0, 1, 8, 0, 0, 0, None)
    )
    cells, path = [("prefill", (1, size)) for size in (8, 16, 32)], tmp_path / "grid.csv"
    engine = FakeEngine()
    assert len(measure_cells(engine, cells[:1], 4, 1, path, 60.0, said.append)) == 1
    assert len(measure_cells(engine, cells, 4, 1, path, -1.0, said.append)) == 1
    assert said == ["2 of 3 steps of the grid are left: the same command goes on with them"]
    assert len(measure_cells(engine, cells, 4, 1, path, 60.0, said.append)) == 3
    assert timed == cells
    assert pd.read_csv(path)["cell"].tolist() == ["prefill 1 8", "prefill 1 16", "prefill 1 32"]


def test_sizes_that_no_step_has_are_refused():
    with pytest.raises(ValueError, match="a prefill needs at least 1 sequence"):
        check_grid(Grid(decode=None, contexts=[64], prefill=[[0, 4]], mixed=[], num_steps=4))
