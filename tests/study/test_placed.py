"""Servers with a device each, as a study has them: the same tokens as one server, and a line for what cannot be."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from framework.placement.workers import when_ready
from framework.scheduler.continuous import ContinuousScheduler
from framework.study import placed
from framework.study.placed import check_placements, make_share_scheduler, share_of
from framework.study.points import load_record
from framework.study.records import PointRecord
from tests.fake_engine import FakeEngine
from tests.placement.engines import in_threads
from tests.placement.test_ray_workers import needs_ray
from tests.test_run import spawn

ARMS = [
    "experiment=continuous_batching",
    "~arms.static",
    "+arms.two={scheduler: ${arms.continuous.scheduler}, clock: wall, servers: 2}",
    "rates=[200]",
]


def check_two(folder: Path) -> PointRecord:
    """Both arms served all requests with the same tokens, one of them on two servers; its record."""
    points = pd.read_csv(folder / "points.csv").set_index("arm")["point"]
    one, two = (folder / "points" / points[arm] for arm in ("continuous", "two"))
    requests, others = (pd.read_parquet(point / "requests.parquet") for point in (one, two))
    assert len(others) == 6
    assert others["request_id"].equals(requests["request_id"])
    assert [[*tokens] for tokens in others["token_ids"]] == [[*tokens] for tokens in requests["token_ids"]]
    assert others["server"].tolist() == [0, 1] * 3
    steps = pd.read_parquet(two / "steps.parquet")
    for server in (0, 1):
        delivered = steps.loc[steps["server"] == server, "num_output_tokens"].sum()
        assert delivered == others.loc[others["server"] == server, "num_output_tokens"].sum()
    record, single = (load_record(point) for point in (two, one))
    assert record["engine"]["num_servers"] == 2
    assert record["engine"]["num_blocks"] == single["engine"]["num_blocks"] // 2
    assert record["placement"]["died"] == []
    assert len(record["placement"]["clock_offsets"]) == 2
    return record


def in_these_threads(make_engine, num_servers, device):
    return when_ready(in_threads(make_engine, num_servers))


def test_two_servers_give_the_tokens_of_one(cli, smallest, tmp_path, monkeypatch):
    monkeypatch.setattr(placed, "spawn_workers", in_these_threads)
    code, output = cli(*ARMS, *smallest, "+arms.two.placement=gpus", "device=cpu")
    assert code == 0, output
    check_two(tmp_path / "outputs/continuous_batching")
    assert "two: each server has a device of its own, in real time; their clocks are known to" in output


@pytest.mark.nightly
@pytest.mark.parametrize("placement", ["gpus", pytest.param("ray", marks=needs_ray)])
def test_processes_and_actors_give_the_tokens_of_one(smallest, tmp_path, placement):
    process = spawn(*ARMS, *smallest, f"+arms.two.placement={placement}", "device=cpu", cwd=tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    record = check_two(tmp_path / "outputs/continuous_batching")
    assert record["placement"]["placement"] == placement


def test_more_servers_than_gpus_end_the_run_before_anything_is_measured(cli, smallest, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    code, output = cli(*ARMS, *smallest, "+arms.two.placement=gpus")  # device=auto is no device=cpu
    assert code == 1
    assert "error: 2 servers with a GPU each need 2 GPUs, and this machine has 1; device=cpu gives each" in output
    assert not list(tmp_path.rglob("point.json"))


def test_the_virtual_clock_is_refused(cli, smallest):
    code, output = cli(*ARMS, *smallest, "+arms.two.placement=gpus", "arms.two.clock=virtual", "device=cpu")
    assert code == 1
    assert "error: arms.two: placement=gpus serves in real time: set clock=wall" in output


def test_ray_is_asked_for_what_the_device_says(monkeypatch):
    asked = []
    monkeypatch.setattr(placed, "start_ray", lambda num_servers, device: asked.append((num_servers, device)))
    arm = SimpleNamespace(placement="ray", num_servers=3)
    check_placements([arm], torch.device("cpu"), "cpu")
    check_placements([arm], torch.device("cpu"), "auto")
    assert asked == [(3, "cpu"), (3, "cuda")]


def test_each_server_has_a_share_of_the_engine():
    engine = FakeEngine(num_blocks=11, num_swap_blocks=5)
    share = share_of(engine, 2)
    assert (share.num_blocks, share.num_swap_blocks, share.num_adapter_slots) == (5, 2, 0)
    scheduler = make_share_scheduler(engine, make=partial(ContinuousScheduler), num_servers=2)
    assert scheduler.slot_use.num_free == 5 * engine.block_size
    with pytest.raises(ValueError, match=r"servers=12 share 11 KV blocks \(engine\.num_blocks\), and each needs"):
        share_of(engine, 12)
    engine.blocks_per_adapter = 2
    with pytest.raises(ValueError, match=r"set lora\.memory=split"):
        share_of(engine, 2)
