"""A page tells how steps were computed on a GPU, and which points were throttled."""

from types import SimpleNamespace

import pandas as pd
import pytest

from framework.report import gpu
from framework.report.gpu import CAPTION, gpu_notes, gpu_table

POINTS = pd.DataFrame({"arm": "a", "rate": [1.0, 2.0, 4.0], "seed": 0, "point": ["cool", "hot", "unwatched"]})
STUDY = SimpleNamespace(device=SimpleNamespace(type="cuda"), folder=lambda point: point)
SWITCHES = {"fused": True, "compile": False, "cuda_graphs": True, "overlap": True}


def record_of(point):
    spread = {"min": 1.0, "median": 2.0, "max": 3.0}
    state = dict.fromkeys(("sm_clock", "power", "temperature"), spread)
    reasons = ["power cap"] if point == "hot" else []
    watched = {"gpu": {"num_samples": 4, **state, "throttle_reasons": reasons}}
    return {"engine": {"switches": SWITCHES}} | ({} if point == "unwatched" else watched)


@pytest.fixture(autouse=True)
def records(monkeypatch):
    monkeypatch.setattr(gpu, "load_record", record_of)


def test_what_was_on_and_where_the_gpu_was_throttled():
    computed, throttled = gpu_notes(STUDY, POINTS)
    with_them, without = computed.split("without")
    assert "overlap" in with_them
    assert "torch.compile" in without
    assert "power cap" in throttled
    assert "2 requests/s" in throttled
    assert "1 requests/s" not in throttled


def test_a_throttled_point_is_marked_in_the_table():
    table = gpu_table(STUDY, POINTS)[CAPTION]
    assert table["throttled"].tolist() == ["no", "power cap"]
    assert table[["power (W)_low", "power (W)", "power (W)_high"]].to_numpy().tolist() == [[1.0, 2.0, 3.0]] * 2
    assert gpu_table(STUDY, POINTS[2:]) == {}
