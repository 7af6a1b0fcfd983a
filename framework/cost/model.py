"""A cost model: the seconds that a step takes, from its features, as they were measured somewhere; kept as JSON.

Steps that decode and steps with prompts have costs of their own. The seconds on the device are a table over the rows,
linear between its entries, such tables of rates per context token and of what the longest sequence takes, and a rate
for each other term; the host's are linear too. What a step really took over that is drawn from the measured ratios.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from operator import gt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from framework.cost.features import Features
from framework.cost.subject import Subject

VERSION = 3
READABLE = (2, 3)  # versions; what is new in the last one is a term that older files do not have
MAX_BYTES = 200_000  # of a file
WITHIN = 1.0  # the distance of a step that is no further out than those fitted

Terms = dict[str, float]
Table = list[tuple[int, float]]  # by rows, in order
Values = npt.NDArray[np.float64]


class Seconds(NamedTuple):
    """What a typical step takes; `host` are those of the host's work until it is launched."""

    device: float
    beside: float
    host: float

    def elapsed(self, launching: float) -> float:
        """From the tokens of the step before to its own, if the host takes `launching` to launch the next one first."""
        return max(self.device + self.beside, launching)


@dataclass(frozen=True, kw_only=True)
class KindCost:
    """What steps of one kind cost, in seconds.

    `rows` are [rows, seconds on the device], `context` [rows, seconds there per context token], `longest` [rows,
    seconds there for a longest sequence of `long_tokens` or more, in proportion for a shorter one]; `device` are
    seconds per unit of each other term. `host` are of the host's work until the step is launched: for it waits the step
    before, whose tokens come no earlier, or the step itself if there is none in flight. `beside` are of all else; both
    have a `constant`. `ranges` has of each feature the least and the most that was fitted. `ratios` are quantiles, at
    equal steps from 0 to 1, of what a step took over what the terms say; every step counts by its seconds.
    """

    rows: Table
    context: Table
    device: Terms
    beside: Terms
    host: Terms
    ranges: dict[str, tuple[float, float]]
    ratios: list[float]
    num_steps: int  # fitted
    longest: Table = field(default_factory=list)
    long_tokens: int = 1

    @cached_property
    def mean_ratio(self) -> float:
        return mean_of_quantiles(self.ratios)

    @cached_property
    def _limits(self) -> tuple[float, ...]:
        """The most that was fitted of each feature."""
        return tuple(self.ranges[name][1] if name in self.ranges else inf for name in Features._fields)

    @cached_property
    def _rates(self) -> tuple[list[tuple[int, float]], ...]:
        return tuple(rates_by_place(terms) for terms in (self.device, self.beside, self.host))

    @cached_property
    def _of_rows(self) -> dict[int, tuple[float, float, float]]:
        """What was looked up, by the rows."""
        return {}

    def _look_up(self, num_rows: int) -> tuple[float, float, float]:
        """What each table says: `rows`, `context` and `longest`."""
        found = self._of_rows.get(num_rows)
        if found is None:
            longest = look_up(self.longest, num_rows) if self.longest else 0.0
            found = self._of_rows[num_rows] = look_up(self.rows, num_rows), look_up(self.context, num_rows), longest
        return found

    def seconds_of_rows(self, num_rows: int) -> float:
        return self._look_up(num_rows)[0]

    def seconds_of_longest(self, num_rows: int, num_tokens: Any) -> Any:
        """What the longest sequence takes, or one of each of several lengths."""
        least = np.minimum if isinstance(num_tokens, np.ndarray) else min
        return self._look_up(num_rows)[2] * (least(num_tokens, self.long_tokens) / self.long_tokens)

    def seconds(self, features: Features) -> Seconds:
        """As a typical step takes them. `num_rows` is what the device computes."""
        of_rows, of_context, _ = self._look_up(features.num_rows)
        device = of_rows + of_context * features.num_context_tokens
        if self.longest:
            device += self.seconds_of_longest(features.num_rows, features.max_context_tokens)
        beside, host = self.beside["constant"], self.host["constant"]
        of_device, of_beside, of_host = self._rates
        for place, rate in of_device:
            device += rate * features[place]
        for place, rate in of_beside:
            beside += rate * features[place]
        for place, rate in of_host:
            host += rate * features[place]
        return Seconds(device, beside + host * features.is_first, host)

    def seconds_for(self, name: str, features: Features, covered: float) -> float:
        """What a typical step waits for the units of one of the host's terms that it has."""
        num = getattr(features, name)
        return float(self.beside[name] * num + max(0.0, self.host[name] * num - covered))

    def ratio_at(self, quantile: float) -> float:
        """What a step takes over what the terms say, at a `quantile` from 0 to 1."""
        place = quantile * (len(self.ratios) - 1)
        index = min(int(place), len(self.ratios) - 2)
        low = self.ratios[index]
        return low + (self.ratios[index + 1] - low) * (place - index)

    def ratios_at(self, quantiles: Values) -> Values:
        """`ratio_at` of each, to the last bit."""
        ratios, places = np.array(self.ratios), quantiles * (len(self.ratios) - 1)
        indices = np.minimum(places.astype(np.int64), len(self.ratios) - 2)
        low = ratios[indices]
        return low + (ratios[indices + 1] - low) * (places - indices)

    def distance(self, features: Features) -> tuple[float, str]:
        """How far a step is from those fitted, as a factor (1: not at all), and by which feature.

        Every feature may be too large. Only the rows may be too few: the others then cost next to nothing.
        """
        furthest, by = WITHIN, ""
        if features.num_rows >= self.rows[0][0] and not any(map(gt, features, self._limits)):
            return furthest, by
        for name, (low, high) in self.ranges.items():
            value = getattr(features, name)
            if value > high:
                factor = value / high if high else inf
            else:
                factor = low / value if name == "num_rows" and value < low else WITHIN
            if factor > furthest:
                furthest, by = factor, name
        return furthest, by


def look_up(table: Table, num_rows: int) -> float:
    """The entry, linear between two; beyond the last it goes on as from half as many rows to these, at least 0."""
    index = bisect_left(table, (num_rows,))
    if index < len(table) and (index == 0 or table[index][0] == num_rows):
        return table[index][1]
    if len(table) == 1:
        return table[0][1]
    if index < len(table):
        (low, before), (high, after) = table[index - 1 : index + 1]
    else:
        high, after = table[-1]
        low = max(high // 2, table[0][0])
        before = look_up(table, low)
    return max(0.0, before + (after - before) * (num_rows - low) / (high - low))


def mean_of_quantiles(ratios: Sequence[float]) -> float:
    """Of a distribution that is uniform between its quantiles, at equal steps from 0 to 1."""
    return (sum(ratios) - (ratios[0] + ratios[-1]) / 2) / (len(ratios) - 1)


def rates_by_place(terms: Terms) -> list[tuple[int, float]]:
    """The terms that cost anything, with their places in Features."""
    return [(place, terms[name]) for place, name in enumerate(Features._fields) if terms.get(name)]


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The engine that was measured: its KV cache, the bytes of an adapter's slot, and how many steps it runs ahead.

    Where `are_loads_beside`, adapters that only later steps need come beside a step, and it does not wait for them.
    """

    num_blocks: int
    block_size: int
    num_cache_bytes: int
    slot_bytes: int
    kv_dtype: str
    num_steps_ahead: int
    are_loads_beside: bool
    switches: dict[str, bool]


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """`sizes` are the numbers of rows that graphs hold, of each kind: fewer rows take as long as the next size.

    `error` is of steps that were not fitted; `environment` has device, commit and packages, `compute_version` is a hash
    of the source that computed the steps.
    """

    version: int
    name: str
    device: str
    subject: Subject
    engine: Calibrated
    kinds: dict[str, KindCost]
    sizes: dict[str, list[int]]
    error: dict[str, dict[str, float | None]]
    environment: dict[str, Any]
    compute_version: str
    notes: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> KindCost:
        if kind not in self.kinds:
            raise ValueError(
                f"the cost model {self.name} was fitted on no {kind} steps, of which this replay has some: "
                f"it knows {', '.join(self.kinds)}"
            )
        return self.kinds[kind]

    def computed(self, kind: str, features: Features) -> Features:
        """The same step with the rows that the device computes: those of the next graph."""
        sizes = self.sizes.get(kind)
        if not sizes:
            return features
        index = bisect_left(sizes, features.num_rows)
        if index == len(sizes) or sizes[index] == features.num_rows:
            return features
        return Features(sizes[index], *features[1:])


@dataclass
class Outside:
    """The steps of a replay that are further than any fitted one: how many, and the furthest by each feature."""

    num_steps: int = 0
    num_outside: int = 0
    furthest: dict[str, float] = field(default_factory=dict)  # feature → factor beyond what was fitted
    counts: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, distance: float, by: str) -> None:
        if distance > WITHIN:
            name = f"{by} of {kind} steps"
            self.num_outside += 1
            self.counts[name] += 1
            self.furthest[name] = max(self.furthest.get(name, WITHIN), distance)


ADAPTER = TypeAdapter(CostModel)


def write_cost_model(path: Path, model: CostModel) -> None:
    """ValueError for one that is too large to be shipped."""
    text = ADAPTER.dump_json(model, indent=1)
    if len(text) > MAX_BYTES:
        raise ValueError(f"{path} would have {len(text):,} bytes; a cost model has at most {MAX_BYTES:,}")
    path.write_bytes(text + b"\n")


def read_cost_model(path: Path) -> CostModel:
    """ValueError, in one line, for a file that is none, or of an older version."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"engine.path={path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"engine.path={path} is no cost model: {' '.join(str(error).split())}") from None
    version = found.get("version") if isinstance(found, dict) else None
    if version not in READABLE:
        raise ValueError(
            f"engine.path={path} has version {version!r} of cost models, and this is version {VERSION}: calibrate again"
        )
    try:
        return ADAPTER.validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"engine.path={path} is no cost model: {where}: {first['msg'].lower()}") from None
