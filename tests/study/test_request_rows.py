"""Rows that are written while a replay goes on: the file is that of a table that is written at its end."""

import random
from dataclasses import replace
from io import BytesIO

import pandas as pd
import pytest

from framework.core import Request
from framework.engine.modelled import ModelledEngine
from framework.measure.replay_tables import request_table
from framework.replay import Server, replay
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from framework.study import parquet
from framework.study.parquet import read_rows, write_whole
from framework.study.request_rows import with_refused, write_replay
from framework.trace.source import TraceSource
from tests.cost_models import kind_cost, target, write_model


def make_requests(num_requests=20):
    rng = random.Random(0)
    lengths = [(rng.randint(1, 30), rng.randint(1, 12)) for _ in range(num_requests)]
    requests = [Request(index, 0.2 * (index // 2), *pair) for index, pair in enumerate(lengths)]
    requests[3] = replace(requests[3], num_output_tokens=60)
    return [*requests[:-1], replace(requests[-1], adapter_id="only the last has one")]


@pytest.fixture
def serve(tmp_path):
    path = write_model(tmp_path, kinds={kind: kind_cost(kind, 0.05) for kind in ("decode", "prompt")})

    def serve(source, make=ContinuousScheduler, **keywords):
        engine = ModelledEngine(target(), path=str(path), num_blocks=100, block_size=4)
        server = Server(make(engine.num_blocks, 4, max_num_seqs=4, **keywords), engine)
        return replay(source, [server], lambda sequence: server)

    return serve


def at_the_end(sequences, requests, refused):
    file = BytesIO()
    write_whole(file, request_table(with_refused(sequences, requests, refused), refused))
    return file.getvalue()


@pytest.mark.parametrize(
    ("rows", "make"), [(3, ContinuousScheduler), (6, StaticScheduler), (19, ContinuousScheduler), (30, StaticScheduler)]
)
def test_the_file_is_the_same_to_the_byte_and_tokens_that_are_written_are_forgotten(monkeypatch, serve, rows, make):
    monkeypatch.setattr(parquet, "ROWS", rows)
    requests, refused = make_requests(), {0: "no reason", 8: "no room", 9: "no room"}
    served = [request for request in requests if request.request_id not in refused]
    file = BytesIO()
    offered = write_replay(
        file, TraceSource(served), lambda source: serve(source, make), requests, refused, may_forget=True
    )
    assert file.getvalue() == at_the_end(serve(TraceSource(served), make), requests, refused)
    assert [one.request.request_id for one in offered] == list(range(20))
    num_kept = sum(bool(len(one.token_times)) for one in offered)
    assert num_kept == (17 if rows == 30 else 20 % rows)


def test_nothing_is_written_before_the_requests_that_came_earlier(monkeypatch, serve):
    monkeypatch.setattr(parquet, "ROWS", 2)
    requests, written = make_requests(), []
    monkeypatch.setattr("framework.study.request_rows.write_rows", lambda writer, rows: written.append(rows))
    write_replay(BytesIO(), TraceSource(requests), serve, requests, {}, may_forget=True)
    table = pd.concat(written)
    assert table["request_id"].tolist() == list(range(20))
    assert table["num_output_tokens"].tolist() == [request.num_output_tokens for request in requests]


@pytest.mark.parametrize("change", ["same time", "think time", "limit"])
def test_where_the_order_is_not_known_from_the_start_rows_are_written_at_the_end(monkeypatch, serve, change):
    monkeypatch.setattr(parquet, "ROWS", 3)
    requests = make_requests()
    if change == "same time":
        requests[4:6] = reversed(requests[4:6])
    if change == "think time":
        requests = [replace(one, session_id=one.request_id // 2, turn=1 + one.request_id % 2) for one in requests]
        requests = [replace(one, think_time=0.5 if one.turn == 2 else None) for one in requests]
        requests = [replace(one, num_prompt_tokens=90 if one.turn == 2 else 9) for one in requests]
    source, again = (TraceSource(requests, 3 if change == "limit" else None) for _ in range(2))
    file = BytesIO()
    offered = write_replay(file, source, serve, requests, {}, may_forget=True)
    assert file.getvalue() == at_the_end(serve(again), requests, {})
    assert all(len(one.token_times) for one in offered)


def test_what_is_read_again_is_all_but_the_tokens(monkeypatch, serve):
    monkeypatch.setattr(parquet, "ROWS", 7)
    requests = make_requests()
    file = BytesIO()
    write_replay(file, TraceSource(requests), serve, requests, {5: "no room"}, may_forget=False)
    pd.testing.assert_frame_equal(read_rows(file), pd.read_parquet(file).drop(columns="token_ids"), check_exact=True)
