"""A log of steps gives them back one by one and as columns, whether they were kept alone or in runs."""

from dataclasses import asdict, replace

import pandas as pd

from framework import step_runs
from framework.core import Step
from framework.step_runs import Growth, StepLog, StepRun, columns_of, steps_of

FIRST = Step(
    start_time=1.0, elapsed=0.5, phase="decode", num_seqs=2, num_prefill_tokens=0, num_decode_tokens=2,
    num_context_tokens=10, max_context_tokens=7, num_prefill_pairs=0, num_used_blocks=4, num_waiting=1, schedule=0.0,
    prepare=0.1, device=0.4, num_output_tokens=2, num_cached_blocks=3, num_token_slots=10, num_reserved_slots=6,
    num_lost_slots=0, num_free_slots=4,
)  # fmt: skip
# A block after the first step, which is empty, and two after the second, of cached ones; one that nobody sees
RUN = StepRun(
    FIRST, [1.0, 1.5, 2.5], [0.5, 1.0, 0.25], [0.1, 0.2, 0.3], [0.4, 0.9, 0.2], Growth([0, 1, 1, 2], [(1, 3)], 4, 1)
)


def test_a_run_is_its_steps():
    assert len(RUN) == 3
    assert RUN.num_output_tokens == 6
    first, second, third = steps_of([RUN])
    assert first == FIRST
    assert second == replace(
        FIRST, start_time=1.5, elapsed=1.0, prepare=0.2, device=0.9, num_context_tokens=12, max_context_tokens=8,
        num_used_blocks=5, num_token_slots=12, num_reserved_slots=8, num_free_slots=0,
    )  # fmt: skip
    assert third == replace(
        FIRST, start_time=2.5, elapsed=0.25, prepare=0.3, device=0.2, num_context_tokens=14, max_context_tokens=9,
        num_used_blocks=7, num_cached_blocks=1, num_token_slots=14, num_reserved_slots=11, num_lost_slots=3,
        num_free_slots=0,
    )  # fmt: skip


def test_the_columns_of_a_log_are_those_of_its_steps():
    log = []
    alone = replace(FIRST, phase="mixed", num_waiting=0, start_time=9.0, adapter_waits=[(1, 0.5)])
    for run in (RUN, StepRun(replace(FIRST, num_seqs=5), [3.0], [0.1], [0.1], [0.1], Growth([0], [], 4, 9))):
        log += [run, alone]
    steps = steps_of(log)
    assert [step.start_time for step in steps] == [1.0, 1.5, 2.5, 9.0, 3.0, 9.0]
    pd.testing.assert_frame_equal(pd.DataFrame(columns_of(log)), pd.DataFrame([asdict(step) for step in steps]))
    assert len(columns_of([])["phase"]) == 0
    assert steps_of([alone]) == [alone]
    waits = columns_of([alone, alone])["adapter_waits"]
    assert waits.tolist() == [[(1, 0.5)], [(1, 0.5)]]


def test_a_long_log_has_the_columns_of_its_entries(monkeypatch):
    monkeypatch.setattr(step_runs, "KEPT", 2)
    waited = replace(FIRST, start_time=9.0, num_prefill_pairs=1 << 40, adapter_waits=[(1, 0.5)])
    log, entries = StepLog(), [RUN, FIRST, waited, RUN, replace(FIRST, phase="mixed")]
    for entry in entries:
        log.append(entry)
    assert (len(log), len(log.blocks), len(log.entries)) == (5, 3, 1)
    pd.testing.assert_frame_equal(pd.DataFrame(log.columns()), pd.DataFrame(columns_of(entries)))
    assert log.steps == steps_of(entries)
    assert log.blocks[0]["num_seqs"].itemsize == 1
    assert list(StepLog().columns()) == list(columns_of(entries))
