"""The highest offered rate at which every goal holds: which rate to probe next, what a probe shows, when to stop.

Pure statistics: whoever searches says how a rate is measured. docs/method.md explains it, with sources.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil, inf, isfinite, log, nan, sqrt
from typing import Literal

import numpy as np

from framework.checks import positive, whole
from framework.measure.crossing import Crossing, find_crossing, mean_interval
from framework.measure.intervals import CONFIDENCE, Values
from framework.measure.slo import Goal

MIN_REPLICATIONS = 5
MIN_PROBES = 5  # before the interval may end a search
MIN_GROWTH = 0.025  # s of waiting per s: what a probe has to exceed to be called saturated, for sure more than 0
MAX_GROWTH = 0.05  # what has to be ruled out before a queue is called stationary
NEAR = 0.1  # relative to the capacity: probes whose waiting must not grow
CLIFF = 0.05  # relative: attainment that falls within less is said to fall off a cliff
SPREAD = 0.05  # relative: probes are so far below and above the capacity in turn, which tells the slope there
STEP_UP, STEP_DOWN = 1.3, 1.5  # from the highest rate where all goals hold, or the lowest where they do not
MAX_STEPS_DOWN = 6  # from the proposed rate; then capacity is below every rate

Verdict = Literal["met", "not met", "saturated", "undecided"]
Shape = Literal["smooth", "cliff", "not monotonic"]
SATURATION = "saturation"


@dataclass(frozen=True)
class Search:
    """How a capacity is searched for.

    It ends when the interval is within ± `tolerance` of the capacity, or after `max_probes`. A probe is `num_seeds`
    replays, each with a seed of its own from `seed` on; of a trace that no seed changes, it is one replay in as many
    batches.
    """

    tolerance: float = 0.025
    max_probes: int = 12
    num_seeds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        positive("tolerance", self.tolerance)
        whole("max_probes", self.max_probes, at_least=2)
        whole("num_seeds", self.num_seeds, at_least=MIN_REPLICATIONS)
        whole("seed", self.seed, at_least=0)


@dataclass(frozen=True)
class Replication:
    """One replay at an offered `rate` (1/s), or a batch of one: its share of `num_requests` for each goal.

    Its waiting grew by `growth` seconds per second. Replications of one `cluster` depend on each other.
    """

    rate: float
    cluster: int
    shares: tuple[float, ...]
    num_requests: int
    growth: float


@dataclass(frozen=True)
class Probe:
    """All replications at one rate that was asked for (1/s), and what they show of `goals`."""

    asked: float
    replications: tuple[Replication, ...]
    goals: tuple[Goal, ...]

    @cached_property
    def rate(self) -> float:
        return float(np.mean([one.rate for one in self.replications]))

    @property
    def num_requests(self) -> int:
        return sum(one.num_requests for one in self.replications)

    def shares(self, index: int) -> Values:
        """Of the goal at `index`, (replications,)."""
        return np.array([one.shares[index] for one in self.replications])

    @cached_property
    def growth(self) -> tuple[float, float, float]:
        """Mean and 95% interval."""
        return mean_interval(np.array([one.growth for one in self.replications]))

    @cached_property
    def is_saturated(self) -> bool:
        mean, low, _ = self.growth
        return low > 0 and mean > MIN_GROWTH

    def holds(self, one: Replication) -> bool:
        """Whether one of its replications has enough for every goal, where the probe is not saturated."""
        enough = all(share >= goal.share for share, goal in zip(one.shares, self.goals, strict=True))
        return enough and not self.is_saturated

    @cached_property
    def is_capable(self) -> bool:
        """Whether the mean share of every goal is enough and it is not saturated: by itself no verdict."""
        means = [self.shares(index).mean() for index in range(len(self.goals))]
        return not self.is_saturated and all(mean >= goal.share for mean, goal in zip(means, self.goals, strict=True))

    def num_effective(self, index: int) -> float:
        """Independent requests that would tell the share of a goal as well; at most those that there are."""
        shares = self.shares(index)
        mean, variance = shares.mean(), shares.var(ddof=1)
        if variance == 0:
            return float(self.num_requests)
        return float(min(self.num_requests, len(shares) * mean * (1 - mean) / variance))

    @cached_property
    def verdict(self) -> Verdict:
        """At 95%. "met" needs enough effective requests for every goal, and a queue that is shown not to grow."""
        if self.is_saturated:
            return "saturated"
        bounds = [mean_interval(self.shares(index)) for index in range(len(self.goals))]
        if any(high < goal.share for (_, _, high), goal in zip(bounds, self.goals, strict=True)):
            return "not met"
        is_met = all(
            low >= goal.share and self.num_effective(index) >= least_requests(goal.share)
            for index, ((_, low, _), goal) in enumerate(zip(bounds, self.goals, strict=True))
        )
        return "met" if is_met and self.growth[2] <= MAX_GROWTH else "undecided"


@dataclass(frozen=True)
class Capacity:
    """The highest rate (1/s) with its 95% interval; where `problem` says why, it is no capacity.

    `binds` names the goal that fails first, or saturation. `num_effective` independent requests near the capacity would
    tell as much of that goal.
    """

    rate: float = nan
    low: float = nan
    high: float = nan
    binds: str = ""
    shape: Shape | None = None
    num_effective: float = nan
    problem: str = ""

    def is_within(self, tolerance: float) -> bool:
        is_near = self.low >= self.rate * (1 - tolerance) and self.high <= self.rate * (1 + tolerance)
        return is_near and not self.problem


@dataclass
class Probes:
    """What was probed so far: replications by the rate that was asked for."""

    goals: tuple[Goal, ...]
    by_rate: dict[float, list[Replication]] = field(default_factory=dict)
    num_asked: int = 0

    def add(self, asked: float, replications: Iterable[Replication]) -> None:
        self.by_rate.setdefault(asked, []).extend(replications)
        self.num_asked += 1

    @property
    def in_order(self) -> list[Probe]:
        return [Probe(asked, tuple(self.by_rate[asked]), self.goals) for asked in sorted(self.by_rate)]


def least_requests(share: float) -> int:
    """Independent requests below which no 95% interval of that quantile has an upper end: 299 of P99, 59 of P95."""
    return ceil(log(1 - CONFIDENCE) / log(share))


def search_capacity(
    measure: Callable[[float, int], Iterable[Replication]],
    goals: Sequence[Goal],
    bracket: tuple[float, float],
    search: Search,
) -> tuple[Capacity, list[Probe]]:
    """Probe one rate after the other, first those of `bracket`; the capacity, and the probes by their rate.

    `measure` is given the rate and how many were probed before.
    """
    probes = Probes(tuple(goals))
    while (rate := next_rate(probes.in_order, bracket, search, probes.num_asked)) is not None:
        probes.add(rate, measure(rate, probes.num_asked))
    return estimate(probes.in_order), probes.in_order


def next_rate(probes: list[Probe], bracket: tuple[float, float], search: Search, num_asked: int) -> float | None:
    """Which rate to probe next (1/s), with four digits; None: the search is over."""
    if num_asked >= search.max_probes:
        return None
    capable = [probe.asked for probe in probes if probe.is_capable]
    others = [probe.asked for probe in probes if not probe.is_capable]
    if not probes:
        return rounded(bracket[0])
    if not others:
        return rounded(max(bracket[1], STEP_UP * max(capable) if len(capable) > 1 else 0.0))
    if not capable:
        lowest = min(others)
        return None if lowest < bracket[0] / STEP_DOWN**MAX_STEPS_DOWN else rounded(lowest / STEP_DOWN)
    found = estimate(probes)
    if found.shape == "not monotonic" or (num_asked >= MIN_PROBES and found.is_within(search.tolerance)):
        return None
    if not isfinite(found.rate):
        return rounded(sqrt(max(capable) * min(others)))
    away = 0.0 if is_separated(probes) else SPREAD * (-1) ** num_asked
    asked = found.rate * float(np.mean([probe.asked / probe.rate for probe in probes]))
    return rounded(min(max(asked * (1 + away), 0.9 * min(capable)), STEP_UP * max(others)))


def rounded(rate: float) -> float:
    return float(f"{rate:.4g}")


def estimate(probes: list[Probe]) -> Capacity:
    """The capacity that all probes together show."""
    if not any(probe.is_capable for probe in probes):
        return Capacity(problem="below every rate that was probed")
    if is_not_monotonic(probes):
        return Capacity(shape="not monotonic", problem="the goals hold at a rate above one at which they do not")
    if all(probe.is_capable for probe in probes):
        return Capacity(low=max(probe.rate for probe in probes), problem="above every rate that was probed")
    goals = probes[0].goals
    crossings = [crossing_of(probes, index) for index in range(len(goals))]
    index = min(range(len(goals)), key=lambda index: crossings[index].rate)
    found = bracketed(probes, crossings[index], goals[index].label)
    return replace(found, problem=doubt(probes, found, goals[index]))


def is_not_monotonic(probes: list[Probe]) -> bool:
    """Whether the goals are shown not to hold at a rate below one at which they are shown to hold."""
    met = [probe.rate for probe in probes if probe.verdict == "met"]
    return any(probe.rate < max(met, default=0.0) for probe in probes if probe.verdict in ("not met", "saturated"))


def crossing_of(probes: list[Probe], index: int) -> Crossing:
    """Of the goal at `index`. Where all would hold but for saturation, its share is 0, as that of an endless replay."""
    rows = [
        (one.rate, 0.0 if probe.is_saturated and is_enough(probe) else one.shares[index], one.num_requests, one.cluster)
        for probe in probes
        for one in probe.replications
    ]
    rates, shares, counts, clusters = (np.array(column) for column in zip(*rows, strict=True))
    return find_crossing(rates, shares, counts.astype(float), clusters, probes[0].goals[index].share)


def is_enough(probe: Probe) -> bool:
    return all(probe.shares(index).mean() >= goal.share for index, goal in enumerate(probe.goals))


def bracketed(probes: list[Probe], crossing: Crossing, binds: str) -> Capacity:
    """The crossing or, where nothing is between rates at which all holds and others, a rate between these."""
    above = [probe for probe in probes if not probe.is_capable]
    lowest = min(above, key=lambda probe: probe.rate)
    if not is_separated(probes):
        shape: Shape = "cliff" if crossing.width < CLIFF else "smooth"
        return Capacity(crossing.rate, crossing.low, crossing.high, binds, shape, crossing.num_effective)
    low, high = max(probe.rate for probe in probes if probe.is_capable), lowest.rate
    if lowest.is_saturated:
        served, least, most = served_when_saturated(above)
        rate = min(sqrt(low * high), served)
        return Capacity(rate, min(low, least), min(high, max(most, rate)), SATURATION, "cliff", crossing.num_effective)
    rate = crossing.rate if low < crossing.rate < high else sqrt(low * high)
    shape = "cliff" if crossing.width < CLIFF else "smooth"
    return Capacity(rate, low, high, binds, shape, crossing.num_effective)


def is_separated(probes: list[Probe]) -> bool:
    """Whether every replication at rates up to some one holds all goals, and none at higher rates does."""
    held = [(one.rate, probe.holds(one)) for probe in probes for one in probe.replications]
    lasts = max((rate for rate, holds in held if holds), default=0.0)
    return lasts < min((rate for rate, holds in held if not holds), default=inf)


def served_when_saturated(probes: list[Probe]) -> tuple[float, float, float]:
    """The rate (1/s) at which waiting would not grow, by the growth where it does, and its 95% interval."""
    ones = [one for probe in probes if probe.is_saturated for one in probe.replications]
    return mean_interval(np.array([one.rate / (1 + one.growth) for one in ones]))


def doubt(probes: list[Probe], found: Capacity, goal: Goal) -> str:
    """Why what was found is no capacity; nothing where it is one."""
    if not isfinite(found.rate):
        return "no share falls over the rates"
    if found.low == -inf and found.high == inf:
        return "replications differ so much that the shares may as well not fall (raise trace.num_requests)"
    near = [one for probe in probes for one in probe.replications if abs(one.rate / found.rate - 1) <= NEAR]
    growths = np.array([one.growth for one in near if one.rate <= found.high])
    if found.binds != SATURATION and len(growths) > 1 and mean_interval(growths)[2] > MAX_GROWTH:
        return "replays are too short to rule out that waiting grows there (raise trace.num_requests)"
    least = least_requests(goal.share)
    if found.num_effective < least:
        return f"it rests on {found.num_effective:.0f} independent requests, and {least} are needed"
    return ""
