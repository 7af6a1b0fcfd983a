"""What a page shows of a search for capacity: the arms' capacities, every probe, and shares over the rate."""

from collections.abc import Collection
from math import isfinite, nan
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from framework.measure.capacity import Capacity, Probe
from framework.measure.crossing import mean_interval
from framework.measure.slo import goals_of
from framework.report.plots import COLUMN_WIDTH, GREY, LINES, Drawn, arm_colour, arm_style, styled
from framework.report.tables import short
from framework.study.capacity import ArmCapacity
from framework.study.sweep import Study

MARGIN = 0.15  # of the rates' range, on both sides of the axis
CAPTION, PROBES = "Capacity: the highest offered rate at which every goal holds", "Every probe of the search"
FIGURE = (
    "Share of what is within the limits of each goal over the offered rate, one marker per probe with its 95% interval "
    "over replications; hollow: saturated. Horizontal: the target; vertical: the capacity with its interval, an arrow "
    "where that goes on beyond the axis."
)
DEFINITIONS = {
    "Effective": "independent requests that would tell the share as well: requests that queue together depend on each "
    "other. A percentile needs at least 299 for P99, 59 for P95",
    "Goal": "what has to hold at a rate: a share of requests, or of gaps between tokens, within limits",
    "Growth": "by how many seconds waiting grows per second, with its 95% interval over replications. Met needs less "
    "than 0.05 at the interval's upper end; saturated is above 0 at its lower end and above 0.025",
    "Smooth": "attainment falls from odds of 3 : 1 to 1 : 3 over more than 5% of the rate; off a cliff: over less",
}


def capacity_figures(study: Study) -> dict[str, Drawn]:
    return {"capacity": (shares_over_rates(study), FIGURE)}


def capacity_tables(study: Study) -> dict[str, pd.DataFrame]:
    return {CAPTION: capacity_table(study), PROBES: probe_table(study)}


def capacity_table(study: Study) -> pd.DataFrame:
    """One row per arm that was searched; no number where there is no single one."""
    rows = []
    for arm, found in study.capacities.items():
        capacity, is_known = found.capacity, not found.capacity.problem
        rows.append(
            {
                "arm": arm,
                "capacity (req/s)": capacity.rate if is_known else nan,
                "capacity (req/s)_low": capacity.low if is_known else nan,
                "capacity (req/s)_high": capacity.high if is_known else nan,
                "binds": capacity.binds,
                "attainment falls": {"cliff": "off a cliff", "not monotonic": "not monotonically"}.get(
                    capacity.shape or "", capacity.shape or "–"
                ),
                "effective": float(round(capacity.num_effective)) if isfinite(capacity.num_effective) else nan,
                "rates": len(found.probes),
                "why not": capacity.problem or "–",
            }
        )
    return pd.DataFrame(rows)


def probe_table(study: Study) -> pd.DataFrame:
    """One row per arm and rate: shares and growth with their 95% intervals, and the verdict."""
    rows = []
    for arm, found in study.capacities.items():
        for probe in found.probes:
            row: dict[str, object] = {
                "arm": arm,
                "rate (req/s)": probe.rate,
                "replications": len(probe.replications),
                "requests": probe.num_requests,
                "effective": round(min(probe.num_effective(index) for index in range(len(probe.goals)))),
            }
            for index, goal in enumerate(probe.goals):
                row |= with_ends(
                    f"{limits_of(goal.label)} (%)", 100 * np.array(mean_interval(probe.shares(index))), 100
                )
            row |= with_ends("growth", np.array(probe.growth), None)
            rows.append(row | {"verdict": probe.verdict})
    return pd.DataFrame(rows)


def with_ends(name: str, values: np.ndarray, most: float | None) -> dict[str, object]:
    """A value and its interval, of a share between 0 and `most`."""
    low, high = values[1:] if most is None else np.clip(values[1:], 0, most)
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def limits_of(label: str) -> str:
    """What a share is of, for the head of a column: "TTFT ≤ 200 ms" of a goal of 90%, P99 or another."""
    return label.partition(" within ")[2] or label


def probe_rows(study: Study) -> pd.DataFrame:
    """`probes.csv`: one row per replication."""
    rows = []
    for arm, found in study.capacities.items():
        for probe in found.probes:
            for one in probe.replications:
                shares = {goal.label: share for goal, share in zip(probe.goals, one.shares, strict=True)}
                row = {"arm": arm, "rate": probe.asked, "offered_rate": one.rate, "cluster": one.cluster}
                row |= {"num_requests": one.num_requests, "growth": one.growth}
                rows.append(row | shares | {"verdict": probe.verdict})
    return pd.DataFrame(rows)


def capacity_notes(study: Study) -> list[str]:
    """One sentence per arm: its capacity, or why it has none."""
    return [f"{arm}: {describe(found)}" for arm, found in study.capacities.items()]


def describe(found: ArmCapacity) -> str:
    capacity, rates = found.capacity, [probe.rate for probe in found.probes]
    num = sum(len(probe.replications) for probe in found.probes)
    way = "replications" if found.is_seeded else "batches, since no seed changes the trace"
    probed = f"{len(rates)} rates from {short(min(rates))} to {short(max(rates))} req/s in {num} {way}"
    if capacity.problem:
        return f"no capacity, {capacity.problem} ({probed}; {found.source})"
    interval = f"{short(capacity.rate)} req/s [{short(max(capacity.low, 0.0))}, {short(capacity.high)}]"
    falls = "falls off a cliff" if capacity.shape == "cliff" else "falls smoothly"
    return f"capacity {interval}; {capacity.binds} binds, attainment {falls} ({probed}; {found.source})"


@styled
def shares_over_rates(study: Study) -> Figure:
    """One panel per goal: the share (%) over the offered rate, one colour per arm."""
    goals = goals_of(study.slo)
    figure = Figure(figsize=(COLUMN_WIDTH, 2.2 * len(goals) + 0.4))
    panels = figure.subplots(len(goals), 1, sharex=True, squeeze=False)[:, 0]
    ends = axis_ends(study.capacities.values())
    for index, (axes, goal) in enumerate(zip(panels, goals, strict=True)):
        for position, (arm, found) in enumerate(study.capacities.items()):
            draw_probes(axes, found.probes, index, position, arm)
            if not found.capacity.problem:
                draw_interval(axes, found.capacity, ends, position)
        axes.axhline(100 * goal.share, color=GREY, linestyle=LINES[2], linewidth=0.8)
        axes.set(title=fill(goal.label, 50), ylabel="within the limits (%)", xlim=ends, ylim=(0, 105))
    panels[-1].set_xlabel("arrival rate (requests/s)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def axis_ends(searches: Collection[ArmCapacity]) -> tuple[float, float]:
    """Of an axis (requests/s) that all probes and capacities are on; intervals may be wider."""
    rates = [probe.rate for found in searches for probe in found.probes]
    rates += [found.capacity.rate for found in searches if not found.capacity.problem]
    margin = MARGIN * (max(rates) - min(rates)) if len(set(rates)) > 1 else MARGIN * rates[0]
    return max(min(rates) - margin, 0.0), max(rates) + margin


def draw_interval(axes: Axes, capacity: Capacity, ends: tuple[float, float], position: int) -> None:
    """The capacity and its interval, as far as the axis goes; an arm's arrows are above those of the arm before."""
    colour, left, right = arm_colour(position), *ends
    axes.axvline(capacity.rate, color=colour, linestyle=LINES[1], linewidth=1)
    axes.axvspan(max(capacity.low, left), min(capacity.high, right), color=colour, alpha=0.12, linewidth=0)
    for is_beyond, end, arrow in ((capacity.low < left, left, "<"), (capacity.high > right, right, ">")):
        if is_beyond:
            axes.plot(end, 6 * (position + 1), arrow, color=colour, markersize=6, clip_on=False, zorder=3)


def draw_probes(axes: Axes, probes: list[Probe], goal: int, position: int, arm: str) -> None:
    colour = arm_colour(position)
    for is_saturated in (False, True):
        shown = [probe for probe in probes if probe.is_saturated == is_saturated]
        shares = 100 * np.array([mean_interval(probe.shares(goal)) for probe in shown]).reshape(-1, 3)
        means = shares[:, 0]
        ends = np.stack([means - shares[:, 1].clip(0), shares[:, 2].clip(max=100) - means])
        style = arm_style(position) | {"markerfacecolor": "none" if is_saturated else colour, "linestyle": "none"}
        rates = [probe.rate for probe in shown]
        label = None if is_saturated else arm
        axes.errorbar(rates, means, yerr=ends, elinewidth=0.7, label=label, **style)
