"""Jobs of a sweep on other machines: a Ray cluster of two nodes, and Slurm with one, both on this machine.

A job whose worker dies costs what it had not computed yet, and no other job; the next run computes that.
"""

import os
import shutil
import subprocess
import sys
import time
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from framework.core import Trace
from framework.trace.synthetic import synthetic
from tests.report.html_page import Page
from tests.test_run import spawn

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install -e '.[ray]'")


@wraps(synthetic)
def deadly(**keywords) -> Trace:
    """Its process dies on the way to a point at 60 requests/s, once."""
    if keywords["rate"] == 60 and not Path("died").exists():
        Path("died").touch()
        os._exit(9)
    return synthetic(**keywords)


@pytest.fixture
def slurm() -> None:
    """Asked here and not when tests are collected: without a controller, `sinfo` takes seconds to say so."""
    if not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True).returncode != 0:
        pytest.skip("needs Slurm with a node: apt-get install slurm-wlm")


@pytest.fixture
def ray_cluster(monkeypatch):
    """Its address; both of its nodes run one job at a time, and began in another folder than the sweep."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")  # a busy machine takes long
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def sweep(smallest: list[str]) -> list[str]:
    """Two jobs, one of which dies in a folder's first sweep."""
    study = ["-m", "experiment=continuous_batching", f"trace._target_={__name__}.deadly"]
    return [*study, *smallest, "rates=[50],[60]"]


def points_of(folder: Path) -> dict[str, int]:
    """When each was written."""
    records = folder.glob("outputs/continuous_batching/points/*/point.json")
    return {record.parent.name: record.stat().st_mtime_ns for record in records}


def has_page(folder: Path) -> bool:
    """The job that did not die has ended."""
    return (folder / "outputs/continuous_batching/report.html").exists()


def check_recovery(smallest: list[str], folder: Path, *launcher: str) -> None:
    """The points of one job are there; the same command computes those of the other, and no more."""
    before = points_of(folder)
    assert [name.partition("-seed")[0] for name in sorted(before)] == ["continuous-rate50", "static-rate50"]
    process = spawn(*sweep(smallest), *launcher, cwd=folder)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    after = points_of(folder)
    assert len(after) == 4
    assert before.items() <= after.items()
    assert not list(folder.rglob(".unfinished-*"))
    assert len(Page(folder / "outputs/continuous_batching/report.html").rows) == 1 + 2 * 2


@needs_ray
@pytest.mark.nightly
def test_a_ray_worker_that_dies_costs_its_own_job(smallest, tmp_path, ray_cluster):
    launcher = ["hydra/launcher=ray", f"hydra.launcher.address={ray_cluster}"]
    process = spawn(*sweep(smallest), *launcher, cwd=tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    [error] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "worker died" in error
    assert "rates=[60]; the same command computes what is missing" in error
    assert "Traceback" not in output
    check_recovery(smallest, tmp_path, *launcher)


@pytest.mark.nightly
def test_a_slurm_job_that_dies_costs_its_own_points(smallest, tmp_path, slurm):
    """Without Slurm's accounting submitit cannot see that it died: then the sweep waits, until it is ended."""
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"]
    process = spawn(*sweep(smallest), *launcher, cwd=tmp_path)
    deadline = time.monotonic() + 240
    while not (has_page(tmp_path) and (tmp_path / "died").exists()) and time.monotonic() < deadline:
        time.sleep(0.5)
    process.terminate()
    process.communicate(timeout=60)
    check_recovery(smallest, tmp_path, *launcher)


class RayOfOneProcess(ModuleType):
    """Runs each task at once in this process; the workers of those at 60 and 70 requests/s are said to have died."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.exceptions = SimpleNamespace(RayError=RuntimeError)
        self.calls: list[tuple] = []

    def init(self, address, **options):
        self.calls.append(("init", address))

    def shutdown(self):
        self.calls.append(("shutdown",))

    def remote(self, **options):
        self.calls.append(("remote", options))
        return lambda task: SimpleNamespace(remote=lambda *arguments: (task, arguments))

    def get(self, pair):
        task, arguments = pair
        if arguments[2].rates in ([60], [70]):
            raise RuntimeError("The worker died.\nDetails")
        return task(*arguments)


def test_every_ray_job_that_died_is_told_when_all_have_ended(cli, smallest, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ray := RayOfOneProcess())
    jobs = ["rates=[60],[70],[50]", "hydra/launcher=ray", "hydra.launcher.num_gpus=0.5", "hydra.launcher.address=here"]
    code, output = cli("-m", "experiment=continuous_batching", *smallest, *jobs)
    assert code == 1
    errors = [line for line in output.splitlines() if line.startswith("error: The worker died. (")]
    assert ["rates=[70]; the same" in errors[0], "rates=[60]; the same" in errors[1], len(errors)] == [True, True, 2]
    assert len(list(tmp_path.glob("outputs/continuous_batching/points/*"))) == 2
    options = {"num_cpus": 1.0, "num_gpus": 0.5, "max_retries": 0}
    assert ray.calls == [("init", "here"), *[("remote", options)] * 3, ("shutdown",)]


def test_ray_that_is_not_installed_is_one_line(cli, smallest, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, output = cli("-m", *smallest, "rates=[50]", "hydra/launcher=ray")
    assert code == 1
    assert output.startswith("error: hydra/launcher=ray needs Ray: pip install -e '.[ray]'\n")
    assert not (tmp_path / "outputs" / "continuous_batching").exists()
