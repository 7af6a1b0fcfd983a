"""The tables that a replay leaves, by hand: one row per request and per step."""

import random
from dataclasses import fields

import numpy as np
import pandas as pd

from framework import step_runs
from framework.core import Request, Sequence, Step
from framework.measure.replay_tables import request_table, step_table, table_of_logs
from framework.step_runs import StepLog
from framework.study.parquet import write_parquet
from framework.trace.source import compact


def served(request, times, scheduled_time, num_preemptions=0):
    sequence = Sequence(request)
    sequence.scheduled_time, sequence.num_preemptions = scheduled_time, num_preemptions
    for index, time in enumerate(times):
        sequence.append(index, time)
    return sequence


def test_latencies_follow_from_the_timestamps():
    one = served(Request(0, 1.0, 8, 3, adapter_id="a", session_id="s", priority=2), [2.0, 2.5, 4.0], 1.5, 1)
    row = request_table([one]).iloc[0]
    assert (row["adapter_id"], row["session_id"], row["priority"], row["num_preemptions"]) == ("a", "s", 2, 1)
    assert (row["arrival_time"], row["scheduled_time"], row["first_token_time"], row["finish_time"]) == (1, 1.5, 2, 4)
    assert (row["ttft"], row["e2e"], row["tpot"], row["normalized_latency"]) == (1.0, 3.0, 1.0, 1.0)
    assert row["token_times"].tolist() == [2.0, 2.5, 4.0]


def test_what_is_not_defined_is_nan():
    """The time per token of a single one; all that an unfinished request has no time for."""
    single = served(Request(0, 1.0, 8, 1), [2.0], 1.5)
    unfinished, unscheduled = served(Request(1, 1.0, 8, 3), [2.0], 1.5), Sequence(Request(2, 1.0, 8, 3))
    table = request_table([single, unfinished, unscheduled])
    assert table["tpot"].isna().all()
    assert table["e2e"].fillna(-1).tolist() == [1.0, -1, -1]
    assert table["ttft"].fillna(-1).tolist() == [1.0, 1.0, -1]
    assert np.isnan(table["scheduled_time"][2])


def test_compact_sequences_make_the_same_table():
    sequences = [served(Request(0, 1.0, 8, 3), [2.0, 2.5, 4.0], 1.5), served(Request(1, 1.0, 8, 1), [1 / 3], 0.1)]
    table = request_table([*sequences, Sequence(Request(2, 1.0, 8, 3))], {2: "too long"})
    known = {}
    for sequence in sequences:
        compact(sequence, known)
    again = request_table([*sequences, Sequence(Request(2, 1.0, 8, 3))], {2: "too long"})
    pd.testing.assert_frame_equal(again, table, check_exact=True)


def test_the_steps_of_servers_are_in_the_order_of_their_start():
    logs = StepLog(), StepLog()
    for log, starts in zip(logs, ([0.0, 2.0], [1.0, 2.0]), strict=True):
        for start in starts:
            log.append(Step(start, *range(1, len(fields(Step)))))
    assert table_of_logs(logs)["start_time"].tolist() == [0.0, 1.0, 2.0, 2.0]
    assert [len(log) for log in logs] == [0, 0]


def test_the_table_of_logs_takes_little_memory_and_has_the_same_values(monkeypatch, tmp_path):
    monkeypatch.setattr(step_runs, "KEPT", 8)
    rng, logs, steps = random.Random(0), [StepLog(), StepLog()], []
    for index in range(500):
        step = Step(0.25 * index, rng.random(), rng.choice(["decode", "mixed"]), *[3] * (len(fields(Step)) - 3))
        step.num_context_tokens, step.num_prefill_pairs = rng.randrange(300), rng.choice([0, 1 << 33])
        step.adapter_waits = rng.choice([None, [(1, 0.5)]])
        logs[rng.random() < 0.3].append(step)
        steps.append(step)
    table, expected = table_of_logs(logs), step_table(steps)
    assert table["num_context_tokens"].dtype == np.uint16
    assert table["num_waiting"].to_numpy().strides == (0,)
    pd.testing.assert_frame_equal(table.astype(expected.dtypes), expected)
    for name, one in {"narrow": table, "wide": expected}.items():
        write_parquet(tmp_path / name, one)
    pd.testing.assert_frame_equal(*(pd.read_parquet(tmp_path / name) for name in ("narrow", "wide")))


def test_a_step_has_a_column_per_field():
    step = Step(*range(len(fields(Step))))
    table = step_table([step, step])
    assert list(table.columns) == [field.name for field in fields(Step)]
    assert table.iloc[1].tolist() == list(range(len(fields(Step))))
