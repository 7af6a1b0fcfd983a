"""The search for every arm's capacity: where it begins, and how a rate is probed by points on disk.

The first rates come of a cost model where one is of the arm, else of what the arm serves when it is overloaded. They
are kept in the folder; all later ones follow from the points, so that an interrupted search goes on where it was.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from framework.build import MakeEngine
from framework.config import describe
from framework.engine.modelled import ModelledEngine
from framework.errors import NoRateError
from framework.measure.capacity import Capacity, Probe, Replication, Search, search_capacity
from framework.measure.metrics import waiting_growth
from framework.measure.rates import MIN_REQUESTS
from framework.measure.slo import Goal, share_within
from framework.study.arms import Arm
from framework.study.auto_rates import measure_arm
from framework.study.engine_cache import EngineCache
from framework.study.files import digest_of, locked, write_json
from framework.study.load import Load
from framework.study.modelled import with_times
from framework.study.points import Point
from framework.study.progress import SweepProgress
from framework.study.records import read_known
from framework.study.replay_point import mean_rate, replay_point

WARM_UP = 0.2  # of the arrivals' span, whose requests do not count
OF_SERVED = (0.6, 1.0)  # the first two rates, of what an overloaded arm serves
OF_MODELLED = (0.75, 1.1)  # of the capacity by the cost model
ROUGH_TOLERANCE, ROUGH_PROBES = 0.1, 6  # of a search on the cost model
FILE, LOCK = "brackets.json", ".brackets.lock"


class Bracket(TypedDict):
    """The first two rates to probe (1/s), and what they come of."""

    low: float
    high: float
    source: str


BRACKETS = TypeAdapter(dict[str, Bracket])


@dataclass(frozen=True)
class ArmSearch:
    """An arm whose capacity is searched for, and the folder that keeps what is found on the way."""

    name: str
    arm: Arm
    digest: str
    device_name: str
    goals: tuple[Goal, ...]
    search: Search
    folder: Path


@dataclass(frozen=True)
class ArmCapacity:
    """What a search found, all that was probed, and where its first rates come from."""

    capacity: Capacity
    probes: list[Probe]
    source: str
    is_seeded: bool


def search_of(option: bool | Search, seed: int) -> Search | None:
    """Of the key `capacity` of a sweep: false is none, true the default one, from `seed` on."""
    if isinstance(option, Search):
        return option
    return Search(seed=seed) if option else None


def search_arm(
    wanted: ArmSearch, compute: Callable[[Point], Path], engines: EngineCache, progress: SweepProgress
) -> ArmCapacity:
    """Probe one rate after the other; `compute` replays a point, unless it is on disk, and says where it is."""
    name, search, goals = wanted.name, wanted.search, wanted.goals
    bracket = find_bracket(wanted, engines, progress)
    is_seeded = depends_on_seed(wanted.arm, bracket["low"], search.seed)

    def measure(rate: float, num_before: int) -> Iterator[Replication]:
        progress.say(f"{name}: probe {num_before + 1} of at most {search.max_probes}, {rate:g} req/s")
        for seed in seeds_of(search, num_before if is_seeded else None):
            folder = compute(Point(name, Load(rate), seed, wanted.digest))
            found = replications(read_requests(folder, goals), goals, seed, 1 if is_seeded else search.num_seeds, rate)
            check_length(found)
            yield from found

    found, probes = search_capacity(measure, goals, (bracket["low"], bracket["high"]), search)
    return ArmCapacity(found, probes, bracket["source"], is_seeded)


def seeds_of(search: Search, num_before: int | None) -> range:
    """Every probe has seeds of its own, the same for every arm; None: the trace is the same with every seed."""
    if num_before is None:
        return range(search.seed, search.seed + 1)
    first = search.seed + num_before * search.num_seeds
    return range(first, first + search.num_seeds)


def depends_on_seed(arm: Arm, rate: float, seed: int) -> bool:
    """Whether another seed makes other requests of the arm's trace."""
    return arm.trace(seed=seed, rate=rate).requests != arm.trace(seed=seed + 1, rate=rate).requests


def read_requests(folder: Path, goals: tuple[Goal, ...]) -> pd.DataFrame:
    """The columns of `requests.parquet` that tell whether the goals hold."""
    metrics = {metric for goal in goals for metric, _ in goal.limits}
    columns = ["arrival_time", "scheduled_time", "finish_time", "refused", "think_time"]
    columns += sorted(metrics & {"ttft", "tpot", "e2e", "normalized_latency"}) + ["token_times"] * ("itl" in metrics)
    return pd.read_parquet(folder / "requests.parquet", columns=columns)


def replications(
    requests: pd.DataFrame, goals: tuple[Goal, ...], seed: int, num_batches: int, rate: float
) -> list[Replication]:
    """One replay as one replication, or its requests in so many batches, in the order of arrival, as one each.

    The first fifth of the arrivals' span is left out.
    """
    arrival = requests["arrival_time"]
    start = arrival.min() + WARM_UP * (arrival.max() - arrival.min())
    counted = requests[arrival >= start].sort_values("arrival_time", kind="stable")
    own = arrival[requests["think_time"].isna() | requests["refused"].isna()].sort_values()
    offered = mean_rate(own.tolist(), rate)
    batches = np.array_split(np.arange(len(counted)), num_batches)
    found = []
    for index, batch in enumerate(counted.iloc[rows] for rows in batches):
        served = batch[batch["refused"].isna()] if num_batches > 1 else requests[requests["refused"].isna()]
        shares = tuple(share_within(batch, goal) for goal in goals)
        cluster = index if num_batches > 1 else seed
        found.append(Replication(offered, cluster, shares, len(batch), waiting_growth(served)))
    return found


class ShortReplayError(ValueError):
    """In a replay so short chance alone makes waiting grow."""


def check_length(found: list[Replication]) -> None:
    """ShortReplayError for too few requests."""
    shortest = min(one.num_requests for one in found)
    if shortest < MIN_REQUESTS:
        raise ShortReplayError(
            f"capacity needs {MIN_REQUESTS} requests of a replay after its first fifth, and as many of each batch, not "
            f"{shortest}: raise trace.num_requests"
        )


def find_bracket(wanted: ArmSearch, engines: EngineCache, progress: SweepProgress) -> Bracket:
    """The folder's for this arm and these goals; found if it has none. Jobs that share it wait for the first one."""
    folder, limits = wanted.folder, [[*goal.limits, goal.share] for goal in wanted.goals]
    key = digest_of([wanted.name, wanted.digest, limits, wanted.search.seed])
    with locked(folder, LOCK):
        known = read_known(folder / FILE, BRACKETS, "the first rates are found again")
        if key not in known:
            known[key] = propose(wanted, engines, progress)
            with locked(folder):
                write_json(folder / FILE, known)
    return known[key]


def propose(wanted: ArmSearch, engines: EngineCache, progress: SweepProgress) -> Bracket:
    """From a rough search on the arm's cost model where there is one, else from what it serves when overloaded."""
    name, search, goals = wanted.name, wanted.search, wanted.goals
    twin = modelled_twin(name, wanted.arm, wanted.device_name)
    try:
        served = measure_arm(name, twin or wanted.arm, search.seed, engines, progress)
    except NoRateError as error:
        raise ValueError(f"arms.{name}: a capacity is a rate, and its trace has none to choose: {error}") from error
    low, high = (factor * served for factor in OF_SERVED)
    if twin is None:
        return {"low": low, "high": high, "source": f"overloaded, it serves {served:.3g} req/s"}

    def measure(rate: float, num_before: int) -> list[Replication]:
        replayed = replay_point(Point(name, Load(rate), search.seed + num_before, ""), twin, engines, progress)
        return replications(replayed.requests, goals, search.seed + num_before, search.num_seeds, rate)

    rough, _ = search_capacity(
        measure, goals, (low, high), replace(search, tolerance=ROUGH_TOLERANCE, max_probes=ROUGH_PROBES)
    )
    model = Path(describe(twin.engine)["path"]).stem
    if not math.isfinite(rough.rate):
        source = f"overloaded, it serves {served:.3g} req/s by the cost model {model}"
        return {"low": low, "high": high, "source": source}
    low, high = (factor * rough.rate for factor in OF_MODELLED)
    return {"low": low, "high": high, "source": f"by the cost model {model} it is about {rough.rate:.3g} req/s"}


def modelled_twin(name: str, arm: Arm, device_name: str) -> Arm | None:
    """The arm with a shipped cost model, measured on such a device, in place of its engine; None: there is no such."""
    engine = describe(arm.engine)
    if arm.is_modelled or isinstance(arm.servers, dict) or arm.clock == "wall" or engine.get("use_cache") is False:
        return None
    kept = ("num_blocks", "block_size", "num_swap_blocks", "kv_dtype", "overlap")
    keywords = {"device": device_name} | {key: engine[key] for key in kept if engine.get(key) is not None}
    try:
        return with_times(name, replace(arm, engine=cast(MakeEngine, partial(ModelledEngine, **keywords))))
    except ValueError:
        return None
