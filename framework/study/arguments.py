"""What a study is asked for: the keywords that all studies take, and what their values have to be."""

import inspect
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NotRequired

from typing_extensions import TypedDict

from framework.build import ChangeModel, MakeEngine, MakeModel, MakeRouter, MakeScheduler, MakeTrace
from framework.checks import whole
from framework.config import describe, suggest
from framework.errors import describe_error
from framework.measure.capacity import Search
from framework.measure.slo import check_slo, goals_of
from framework.study.arms import Arm, Arms, MakeLink
from framework.study.auto_rates import Rates, rates_to_try
from framework.study.load import Load
from framework.study.parts import Placement
from framework.study.roles import MakeRebalance

MAX_RATE = 1e6  # requests/s; above it, differences of arrival times drown in rounding

Tracker = Callable[..., None]  # called with the points, every arm's config and the figures' files


class Setup(TypedDict):
    """What every study takes that runs an engine."""

    model: MakeModel
    engine: MakeEngine
    device: str  # auto, cpu or cuda
    output_dir: str


class Serving(Setup):
    """What a study takes that serves requests with one engine."""

    quantization: ChangeModel
    lora: ChangeModel
    scheduler: MakeScheduler


class Traffic(Setup):
    """What every study takes that replays a trace, whoever makes its arms."""

    trace: MakeTrace
    slo: dict[str, float]  # metric, or a percentile of one → seconds; attainment → share
    servers: NotRequired[int | dict[str, dict[str, Any]]]  # of each arm, alike or by name; 1 unless given
    router: NotRequired[MakeRouter]  # which of them takes a sequence; round robin unless given
    decode_router: NotRequired[MakeRouter]  # which decode server a prefill server hands it to; the least busy one
    migrate: NotRequired[MakeRebalance]  # which running sequences leave for another server; none unless given
    link: NotRequired[MakeLink]  # over which sequences move
    view_delay: NotRequired[float]  # s: how old what the router sees of them is; 0 unless given
    placement: NotRequired[Placement]  # what the servers run on; the study's device unless given
    tracking: NotRequired[Tracker | None]
    fresh: bool  # redo the points that are on disk
    price_per_gpu_hour: NotRequired[float | None]  # in any currency; None: there is no cost


class Replays(Traffic):
    """What every sweep takes: the rates at which its trace is replayed with every seed."""

    rates: Rates
    users: NotRequired[list[int] | None]  # closed loops of so many users, instead of `rates`
    seeds: list[int]
    capacity: NotRequired[bool | Search]  # search for the capacity of every arm, too


class Varied(TypedDict):
    """Arms from the config; each says what it changes of the parts given here."""

    arms: Arms
    quantization: ChangeModel
    lora: ChangeModel


class Sweep(Replays, Varied):
    """What a sweep takes whose arms come from the config."""


def check_points(arms: Mapping[str, object], rates: Rates, seeds: list[int]) -> None:
    for name, values in (("arms", arms), ("rates", rates), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name} is empty: a study needs at least one")
    if isinstance(rates, dict):
        if rates["of"] not in arms:
            raise ValueError(f"rates.of={rates['of']!r} is no arm{suggest(rates['of'], arms)}")
        if not rates["multiples"] or not all(0 < multiple < math.inf for multiple in rates["multiples"]):
            raise ValueError(f"rates.multiples={rates['multiples']}: give at least one, each a finite number above 0")
    for rate in rates if isinstance(rates, list) else []:
        if rate == math.inf:
            raise ValueError(
                "rates=[inf]: requests that arrive all at once have no arrival rate; set rates=[null] and "
                "trace=all_at_once or, of a recorded trace, trace.rescale=all_at_once"
            )
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"rates must be positive finite numbers of requests/s (or null: as recorded), not {rate}")
        if rate is not None and rate > MAX_RATE:
            raise ValueError(f"rates must be at most {MAX_RATE:,.0f} requests/s, not {rate:g}")
    for seed in seeds:
        if seed < 0:
            raise ValueError(f"seeds must be at least 0, not {seed}")


def check_users(arms: Mapping[str, Arm], users: list[int] | None) -> None:
    """ValueError for a number of users that is none, and for a trace that cannot be a closed loop."""
    if users is None:
        return
    if not users:
        raise ValueError("users is empty: a study needs at least one number of them, or null and rates")
    for number in users:
        whole("users", number)
    for name, arm in arms.items():
        if "max_concurrency" not in inspect.signature(arm.trace).parameters:
            raise ValueError(f"users={users}: the trace of arms.{name} takes no max_concurrency, so it makes no loop")
        limit = describe(arm.trace).get("max_concurrency")
        if limit is not None:
            raise ValueError(f"users={users} and trace.max_concurrency={limit} both say how many: set one of them")


def check_traces(arms: Mapping[str, Arm], rates: Rates, users: list[int] | None, seed: int) -> None:
    """ValueError, before anything is replayed, where not a single arm has requests: why, each cause once."""
    causes = []
    for arm in arms.values():
        try:
            load = Load(rates_to_try(rates, arm.trace, seed)[0]) if users is None else Load(users=users[0])
            arm.trace(seed=seed, **load.trace_keywords)
        except Exception as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            causes.append(describe_error(error))
        else:
            return
    raise ValueError("; ".join(dict.fromkeys(causes)))


def check_search(slo: dict[str, float], search: Search | None, users: list[int] | None) -> None:
    check_slo(slo)
    if search is not None and users is not None:
        raise ValueError(f"capacity is a rate of arrivals, and users={users} makes closed loops: set capacity=false")
    if search is not None and not goals_of(slo):
        raise ValueError("capacity needs limits that have to hold, such as slo.ttft=0.5")
