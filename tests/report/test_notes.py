"""Notes on requests dropped, refused or served without their adapter, and on memory: numbers, and which arms."""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from framework.engine.torch_engine import TorchEngine
from framework.report.notes import (
    idle_swap_notes,
    left_out_notes,
    limits,
    memory_notes,
    nothing_shared_notes,
    offered_notes,
    placement_notes,
    service_notes,
    unserved_notes,
)
from framework.scheduler.continuous import ContinuousScheduler
from framework.trace.files import read_table
from framework.trace.recorded import recorded


def records(folder, *dropped, slots=0, **more):
    engine = {"num_adapter_slots": slots, "num_adapter_bytes": 2_500_000, "num_cache_bytes": 64_000_000} | more
    return {
        folder / str(index): {"trace": {"dropped": one, "refused": {}, "ignored": []}, "engine": engine}
        for index, one in enumerate(dropped)
    }


def test_what_was_left_out_is_counted_over_the_points_by_reason(tmp_path):
    points = records(tmp_path, {"broken": 3}, {"broken": 5})
    for record in points.values():
        record["trace"]["refused"] = {"too long": 2}
    dropped, refused = left_out_notes(points)
    assert dropped.startswith("3 to 5 requests")
    assert dropped.endswith("broken")
    assert refused.startswith("2 requests")
    assert refused.endswith("too long")
    assert list(left_out_notes(records(tmp_path, {}, {}))) == []


def test_blocks_on_the_host_that_no_arm_swaps_to_are_told():
    def arm(num_swap_blocks, preemption):
        engine = partial(TorchEngine, num_swap_blocks=num_swap_blocks)
        return SimpleNamespace(engine=engine, scheduler=partial(ContinuousScheduler, preemption=preemption))

    (note,) = idle_swap_notes([arm(0, "recompute"), arm(7, "recompute")])
    assert "engine.num_swap_blocks=7" in note
    assert list(idle_swap_notes([arm(0, "recompute")])) == []
    assert list(idle_swap_notes([arm(7, "recompute"), arm(7, "swap")])) == []


def test_a_prefix_cache_without_anything_to_find_is_told(tmp_path):
    points = records(tmp_path, {}, {})
    assert list(nothing_shared_notes(points)) == []  # of before, when this was not noted
    first, second = (record["trace"] for record in points.values())
    first["may_share"] = second["may_share"] = False
    assert len(list(nothing_shared_notes(points))) == 1
    second["may_share"] = True
    assert list(nothing_shared_notes(points)) == []


def test_requests_whose_adapter_is_not_served_are_counted(tmp_path):
    points = records(tmp_path, {}, {})
    for folder, names in zip(points, (["a", None], ["b", "b"]), strict=True):
        folder.mkdir()
        pd.DataFrame({"adapter_id": names, "refused": None}).to_parquet(folder / "requests.parquet")
    (note,) = unserved_notes(points, merged=None)
    assert note.startswith("3 of 4 requests")
    (note,) = unserved_notes(points, merged="b")
    assert note.startswith("1 of 4 requests")
    assert list(unserved_notes(records(tmp_path, {}, slots=2), merged=None)) == []


def test_memory_is_told_where_there_are_slots(tmp_path):
    (note,) = memory_notes(records(tmp_path, {}, slots=2))
    assert "2.5 MB" in note
    assert "64.0 MB" in note
    (note,) = memory_notes(records(tmp_path, {}, slots=2, blocks_per_adapter=31, num_blocks=1400))
    assert "2 adapters take 31 each of the 1,400 KV blocks (64.0 MB); 2.5 MB" in note
    assert list(memory_notes(records(tmp_path, {}))) == []


def test_arms_share_a_note_that_is_true_of_both(study, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("arrival_time,num_prompt_tokens,num_output_tokens,adapter_id\n0.0,4,2,a\n0.5,4,2,\n")
    trace = partial(recorded, reader=partial(read_table), path=str(path))
    arms = {"one": {"trace": trace}, "other": {"trace": trace, "scheduler": {"max_num_seqs": 2}}}
    result = study(arms, [None])
    (note,) = service_notes(result, result.table())
    assert note.startswith("one, other: 1 of 2 requests")


def test_a_capacity_above_what_the_arm_served_is_said_to_be_of_a_short_replay():
    columns = ["arm", "rate", "offered_rate", "slo_attainment", "waiting_growth", "sustained_throughput"]
    points = pd.DataFrame(
        [
            ("short", 48.0, 48.0, 0.95, 0.05, 30.0),
            ("short", 96.0, 96.0, 0.5, 1.0, 42.0),
            ("long", 24.0, 24.0, 1.0, 0.0, 24.0),
            ("long", 96.0, 96.0, 0.5, 1.0, 42.0),
        ],
        columns=columns,
    ).assign(num_completed=64)
    short, long = limits(SimpleNamespace(slo={"ttft": 0.5}, capacities={}), points)
    assert "served at most 42 req/s" in short
    assert "48 req/s; above what it served" in short
    assert long.endswith("within TTFT ≤ 500 ms: 24 req/s")
    searched = points.assign(waiting_growth=0.0, sustained_throughput=points["rate"])  # nothing is saturated
    assert limits(SimpleNamespace(slo={}, capacities={"short": None, "long": None}), searched) == []


def test_arrivals_that_are_off_the_rate_asked_for_are_told():
    points = pd.DataFrame(
        [(10.0, 10.1), (20.0, 20.1), (20.0, 18.0), (40.0, 44.0), (math.inf, math.inf)], columns=["rate", "offered_rate"]
    )
    (note,) = offered_notes(points, {})
    assert "18 requests/s to 20.1 requests/s where 20 were" in note
    assert "44 requests/s where 40 were" in note
    assert " 10 " not in note
    assert list(offered_notes(points[points["rate"] != 20][:1], {})) == []
    (note,) = offered_notes(points, {Path("a"): {"trace": {"num_requests": 5, "num_sessions": 2}}})
    assert note.startswith("sessions, whose starts the rates are, make 18 requests/s to 20.1")


def test_servers_that_died_are_counted_over_the_points(tmp_path):
    points = records(tmp_path, {}, {})
    assert list(placement_notes(points)) == []
    for record, died in zip(points.values(), ([], [1]), strict=True):
        record["placement"] = {"clock_round_trips": [40e-6, 60e-6], "died": died, "num_rerouted": 3 * len(died)}
    clocks, deaths = placement_notes(points)
    assert clocks.endswith("their clocks are known to 30 µs")
    assert deaths.startswith("in 1 of 2 points a server died: 3 times a request began anew")
