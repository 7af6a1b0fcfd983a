"""Workers as Ray actors, on this machine or on a cluster's; the only importer of ray.

Ray finds each a GPU and starts it there. What driver and workers say to each other goes over a socket of their own.
"""

import importlib
import os
import socket
from multiprocessing.connection import Client, Connection, Listener
from queue import Empty, Queue
from threading import Thread
from types import ModuleType
from typing import Any

from framework.placement.worker import MakeEngine, work
from framework.placement.workers import Workers, check_gpus, when_ready

PATIENCE = 120.0  # seconds for all actors to call back; a cluster may have to start their processes first


def import_ray() -> ModuleType:
    """ValueError where it is not installed. It sends no usage statistics, unless the environment says so."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ValueError("placement=ray needs Ray: pip install -e '.[ray]'") from None


def start_ray(num_servers: int, device: str) -> ModuleType:
    """Ray, connected to the cluster that RAY_ADDRESS names, or to one on this machine that begins now.

    Raises ValueError where Ray is not installed, or the cluster has too few GPUs, or CPUs, for the servers.
    """
    ray = import_ray()
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level="warning")
    resources: dict[str, float] = ray.cluster_resources()
    if device == "cuda":
        check_gpus(num_servers, int(resources.get("GPU", 0)), "the Ray cluster")
    elif num_servers > resources.get("CPU", 0):
        raise ValueError(f"{num_servers} servers need a CPU each, and the Ray cluster has {resources.get('CPU', 0):g}")
    return ray


def start_actors(make_engine: MakeEngine, num_servers: int, device: str) -> Workers:
    """Actors with a GPU each, or with device="cpu" a CPU. Raises as `start_ray`, and what `make_engine` raises."""
    ray = start_ray(num_servers, device)
    actor_class = ray.remote(num_cpus=1, num_gpus=1 if device == "cuda" else 0)(Actor)
    address = ray.util.get_node_ip_address()
    key = os.urandom(32)
    with Listener((address, 0), authkey=key) as listener:
        actors = [actor_class.remote() for _ in range(num_servers)]
        runs = [actor.work.remote(listener.address, key, make_engine, index) for index, actor in enumerate(actors)]
        connections = accept(ray, listener, runs)
    return when_ready(Workers(connections, device, keep=actors))  # an actor ends when nobody refers to it


class Actor:
    """What Ray starts: a worker, which calls its driver back."""

    def work(self, address: tuple[str, int], key: bytes, make_engine: MakeEngine, index: int) -> None:
        with Client(address, authkey=key) as connection:
            without_delay(connection)
            connection.send(index)
            work(connection, make_engine, index)


def accept(ray: ModuleType, listener: Listener, runs: list[Any]) -> list[Connection]:
    """A connection from each of the actors, in their order; what one of them raised before, or RuntimeError."""
    calls: Queue[Connection] = Queue()
    Thread(target=answer_calls, args=(listener, calls, len(runs)), daemon=True).start()
    by_index: dict[int, Connection] = {}
    for _ in range(int(PATIENCE)):
        ended, _ = ray.wait(runs, timeout=0)
        ray.get(ended)
        try:
            connection = calls.get(timeout=1.0)
        except Empty:
            continue
        by_index[connection.recv()] = connection
        if len(by_index) == len(runs):
            return [by_index[index] for index in range(len(runs))]
    raise RuntimeError(f"{len(by_index)} of {len(runs)} Ray actors called back within {PATIENCE:.0f} s")


def answer_calls(listener: Listener, calls: "Queue[Connection]", num_calls: int) -> None:
    for _ in range(num_calls):
        connection = listener.accept()
        without_delay(connection)
        calls.put(connection)


def without_delay(connection: Any) -> None:
    """Every message is sent at once, not gathered with the next one (TCP_NODELAY)."""
    with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as its_socket:
        its_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
