"""Ray actors as workers: what Ray lacks is told first; on a cluster of two nodes they serve as processes do."""

import sys
from functools import partial
from importlib.util import find_spec
from types import ModuleType

import pytest

from framework.placement.ray_workers import start_actors, start_ray
from tests.fake_engine import requests_at
from tests.placement.engines import Sleeper, driver_of, not_buildable

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install -e '.[ray]'")


class RayOfTwoCores(ModuleType):
    """A cluster that is there, with two CPUs and one GPU."""

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0, "GPU": 1.0}


def test_ray_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"placement=ray needs Ray: pip install -e '\.\[ray\]'"):
        start_ray(2, "cpu")


def test_a_cluster_with_too_little_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ray := RayOfTwoCores("ray"))
    assert start_ray(2, "cpu") is ray
    assert start_ray(1, "cuda") is ray
    with pytest.raises(ValueError, match="each need 2 GPUs, and the Ray cluster has 1; device=cpu"):
        start_ray(2, "cuda")
    with pytest.raises(ValueError, match="3 servers need a CPU each, and the Ray cluster has 2"):
        start_ray(3, "cpu")


@needs_ray
@pytest.mark.nightly
def test_actors_on_two_nodes_serve_and_one_that_dies_costs_a_restart(monkeypatch, tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")  # a busy machine takes long
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        with pytest.raises(ValueError, match=r"model\.path is no model"):
            start_actors(not_buildable, 2, "cpu")
        workers = start_actors(partial(Sleeper, dies_with=3, died=tmp_path / "died"), 2, "cpu")
        requests = requests_at(*[(0.02 * index, 4, 8) for index in range(8)])
        served = driver_of(requests, workers).serve()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert served.died == [1]
    assert served.num_rerouted >= 1
    assert [sequence.request for sequence in served.sequences] == requests
    assert all(sequence.output_token_ids == [*range(8)] for sequence in served.sequences)
