"""`rates: auto`: six arrival rates from idle to more than the fastest arm can serve, whatever the machine.

Every arm first serves a few requests that are all there at once. What comes of it is kept in the folder. A trace
whose requests arrive all at once has no rate to choose: it is replayed as it is.
`rates: {of: ARM, multiples: [0.5, 2]}` are multiples of what one arm serves so.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from framework.build import MakeTrace
from framework.core import Trace
from framework.errors import NoRateError, StudyError, describe_error
from framework.measure.metrics import summarize
from framework.measure.serving import max_num_seqs_of
from framework.study.arms import Arm
from framework.study.engine_cache import EngineCache
from framework.study.files import digest_of, locked, write_json
from framework.study.load import Load
from framework.study.placed import replay_where_placed
from framework.study.points import Point
from framework.study.progress import SweepProgress
from framework.study.recorded import recorded_rates
from framework.study.records import read_known


class Multiples(TypedDict):
    """Rates as multiples of what the arm `of` serves at most."""

    of: str
    multiples: list[float]


# requests/s; None: as recorded; auto: whatever shows every arm's knee
Rates = list[float | None] | Literal["auto"] | Multiples

NUM_RATES = 6
IDLE, OVERLOAD = 0.25, 2.0  # the lowest rate is so much of what the slowest arm serves, the highest of the fastest's
NUM_ROUNDS = 4  # requests per seat in the overloaded replays
FILE, LOCK = "rates.json", ".rates.lock"


class RatesRecord(TypedDict):
    """Rates (requests/s), and what each arm served at most; they hold for the arms with these digests."""

    rates: list[float]
    served_at_most: dict[str, float]
    arm_digests: dict[str, str]


RECORDS = TypeAdapter(dict[str, RatesRecord])  # by the digest of the arms


def find_rates(
    folder: Path,
    arms: dict[str, Arm],
    digests: dict[str, str],
    seed: int,
    engines: EngineCache,
    progress: SweepProgress,
    multiples: Multiples | None = None,
) -> list[float] | list[None]:
    """The folder's rates for these arms; measured if it has none. Jobs that share it wait for the first one's.

    With `multiples` only the arm that they are of is measured.

    [None] if no trace of theirs has a rate to choose.

    Arms that all repeat recorded runs have the rates of these, unless there are `multiples`.

    Raises StudyError if no arm could be measured.
    """
    recorded = recorded_rates(arms) if multiples is None else None
    if recorded is not None:
        progress.tell_line(f"rates: {', '.join(f'{rate:g}' for rate in recorded)} per second, as recorded")
        return recorded
    if multiples is not None:
        name = multiples["of"]
        arms, digests = {name: arms[name]}, {name: digests[name]}
    key = digest_of(digests)
    with locked(folder, LOCK):
        known = read_known(folder / FILE, RECORDS, "the rates are measured again")
        if key not in known:
            served = dict(measure_arms(arms, seed, engines, progress))
            if not served:
                progress.tell_line("rates: null, since another rate would not change when the requests arrive")
                return [None]
            known[key] = {"rates": spread(served), "served_at_most": served, "arm_digests": digests}
            with locked(folder):
                write_json(folder / FILE, known)
    rates, served = known[key]["rates"], known[key]["served_at_most"]
    if multiples is not None:
        rates = [float(f"{multiple * served[multiples['of']]:.3g}") for multiple in multiples["multiples"]]
    each = ", ".join(f"{arm} {rate:.3g}" for arm, rate in served.items())
    progress.tell_line(f"rates: {', '.join(f'{rate:g}' for rate in rates)} per second (served at most: {each})")
    return rates


def measure_arms(
    arms: dict[str, Arm], seed: int, engines: EngineCache, progress: SweepProgress
) -> Iterator[tuple[str, float]]:
    """What each arm serves at most (requests/s); one that fails is left out, since its points will tell why.

    So is one whose trace has no rate to choose.
    """
    failures = {}
    for name, arm in reversed(arms.items()):  # the first one's engine is then at hand
        try:
            yield name, measure_arm(name, arm, seed, engines, progress)
        except NoRateError:
            continue
        except Exception as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            failures[name] = describe_error(error)
    if len(failures) == len(arms):
        raise StudyError("no rate can be chosen, since no arm serves: " + "; ".join(dict.fromkeys(failures.values())))


def measure_arm(name: str, arm: Arm, seed: int, engines: EngineCache, progress: SweepProgress) -> float:
    num_requests = NUM_ROUNDS * max_num_seqs_of(arm.scheduler) * arm.num_servers
    trace = partial(all_at_once, trace=arm.trace, num_requests=num_requests)
    overloaded = replace(arm, trace=trace, clock=arm.clock if arm.has_own_devices else "virtual")
    replayed = replay_where_placed(Point(name, Load(math.inf), seed, ""), overloaded, engines, progress)
    metrics = summarize(replayed.requests, replayed.steps, {})
    sustained = metrics["sustained_throughput"]
    served = sustained if math.isfinite(sustained) else metrics["request_throughput"]
    return served * float(replayed.requests["think_time"].isna().mean())  # a rate is of the sessions' starts


def rates_to_try(rates: Rates, trace: MakeTrace, seed: int) -> list[float | None]:
    """Rates with which `trace` can be tried before a sweep begins."""
    if isinstance(rates, list):
        return rates
    try:
        trace(rate=1.0, seed=seed)
    except NoRateError:
        return [None]
    return [1.0]


def all_at_once(*, trace: MakeTrace, num_requests: int, rate: float, seed: int) -> Trace:
    """The first requests of the trace at 0 s, whatever the rate; nobody thinks between two turns."""
    given = trace(rate=1.0, seed=seed)
    requests = [
        replace(one, arrival_time=0.0, think_time=None if one.think_time is None else 0.0)
        for one in given.requests[:num_requests]
    ]
    return replace(given, requests=requests)


def spread(served: dict[str, float]) -> list[float]:
    """From idle for the slowest arm to overload for the fastest, by equal factors, to two digits."""
    low, high = IDLE * min(served.values()), OVERLOAD * max(served.values())
    factor = (high / low) ** (1 / (NUM_RATES - 1))
    return [float(f"{low * factor**index:.2g}") for index in range(NUM_RATES)]
