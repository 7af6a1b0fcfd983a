"""Arms as every combination of a few axes, and what each technique is worth: alone, in turn and last.

An arm is called after its options in the axes' order, such as `continuous+int8+segmented`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from math import isnan

import pandas as pd

from experiments.lorax.figures import FACTORS
from framework.config import suggest
from framework.measure.intervals import estimate
from framework.measure.rates import highest_within, saturation
from framework.report.tables import in_units
from framework.study.arms import Arms

Axes = dict[str, dict[str, dict[str, object]]]  # axis → option → the components that it sets
COMBINATIONS = "Every combination: the most output at any rate, and what it is worth over the naive corner"
CONTRIBUTIONS = "What each technique contributes, as a factor of the most output"
COLUMNS = {"output": ("output (tok/s)", 1), **{name: (f"{text} (×)", 1) for name, text in FACTORS.items()}}


@dataclass(frozen=True, slots=True)
class Corners:
    """Three arms, each as its options: where the path begins, where it ends, and the end without adapters."""

    naive: list[str]
    full: list[str]
    ceiling: list[str]


def combine(axes: Axes) -> Arms:
    """Every combination of one option per axis; ValueError where two axes set the same component."""
    arms: Arms = {}
    for options in product(*axes.values()):
        arm: dict[str, object] = {}
        for axis, option in zip(axes, options, strict=True):
            repeated = arm.keys() & axes[axis][option].keys()
            if repeated:
                raise ValueError(f"axes.{axis}.{option} sets {', '.join(repeated)}, as an axis before it does")
            arm |= axes[axis][option]
        arms[name_of(options)] = arm
    return arms


def name_of(options: tuple[str, ...] | list[str]) -> str:
    return "+".join(options)


def check_corners(corners: Corners, axes: Axes) -> None:
    """ValueError for a corner that is no combination, or a path on which nothing changes."""
    for name, options in (("naive", corners.naive), ("full", corners.full), ("ceiling", corners.ceiling)):
        if len(options) != len(axes):
            raise ValueError(f"{name} is {options}: give one option for each of {', '.join(axes)}")
        for axis, option in zip(axes, options, strict=True):
            if option not in axes[axis]:
                raise ValueError(f"{name} has {option!r}, which is no option of {axis}{suggest(option, axes[axis])}")
    if corners.naive == corners.full:
        raise ValueError(f"naive and full are both {corners.full}: nothing changes from one to the other")


def most_output(points: pd.DataFrame, arms: Iterable[str]) -> pd.DataFrame:
    """Per arm (rows) and seed (columns), the highest output throughput (tok/s) over the rates; NaN without a point."""
    highest = points.pivot_table(index="arm", columns="seed", values="output_throughput", aggfunc="max")
    return highest.reindex(list(dict.fromkeys(arms)))


def mean_output(points: pd.DataFrame, arms: Iterable[str]) -> "pd.Series[float]":
    """Per arm, the geometric mean over seeds of its most output: quotients of these are the factors' means."""
    return most_output(points, arms).apply(lambda outputs: estimate(outputs.dropna().to_numpy())[0], axis=1)


def contributions(points: pd.DataFrame, corners: Corners) -> pd.DataFrame:
    """One row per technique from the naive corner to the full stack.

    `output` is the throughput (tok/s) with it and all before it, `before` that without it. As factors: `alone` over the
    naive corner with nothing else changed, `in_turn` over `before`, `last` of the full stack over the same without it.
    All are geometric means over seeds; a factor is computed per seed, and has an interval over them. NaN where an arm
    has no point.
    """
    rows, current = [], corners.naive
    for index, (before, after) in enumerate(zip(corners.naive, corners.full, strict=True)):
        if before == after:
            continue
        previous, current = current, changed(current, index, after)
        pairs = {
            "alone": (changed(corners.naive, index, after), corners.naive),
            "in_turn": (current, previous),
            "last": (corners.full, changed(corners.full, index, before)),
        }
        row: dict[str, object] = {"technique": f"{before} → {after}"}
        row["output"], row["before"] = mean_output(points, map(name_of, pairs["in_turn"]))
        for name, (with_it, without_it) in pairs.items():
            row |= factor(points, with_it, without_it, name)
        rows.append(row)
    return pd.DataFrame(rows)


def factor(points: pd.DataFrame, with_it: list[str], without_it: list[str], name: str) -> dict[str, float]:
    """The geometric mean over seeds of one arm's most output / another's, as `name`, and its 95% interval."""
    arms = [name_of(with_it), name_of(without_it)]
    output = most_output(points, arms)
    mean, low, high = estimate((output.loc[arms[0]] / output.loc[arms[1]]).dropna().to_numpy())
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def changed(options: list[str], index: int, option: str) -> list[str]:
    return [*options[:index], option, *options[index + 1 :]]


def ablation_tables(points: pd.DataFrame, axes: Axes, corners: Corners) -> dict[str, pd.DataFrame]:
    """Every combination with the most it served, and its highest rate within SLOs; every technique with its factors."""
    served, within = saturation(points), highest_within(points)
    arms = list(served)
    options = [arm.split("+") for arm in arms]
    over_naive = pd.DataFrame([factor(points, each, corners.naive, "× naive") for each in options])
    combinations = pd.DataFrame(options, columns=list(axes)).assign(
        **{
            "output (tok/s)": mean_output(points, arms).to_numpy(),
            **over_naive,
            "served at most (req/s)": [served[arm] for arm in arms],
            "rate within the SLOs (req/s)": [within[arm] for arm in arms],
        }
    )
    techniques = contributions(points, corners)
    return {
        CONTRIBUTIONS: techniques[["technique"]].join(in_units(techniques, COLUMNS)),
        COMBINATIONS: combinations,
    }


def describe_ablation(points: pd.DataFrame, corners: Corners) -> list[str]:
    """What all techniques are worth together, what serving adapters costs with all of them, and what is noise."""
    naive, full, ceiling = map(name_of, (corners.naive, corners.full, corners.ceiling))
    names = list(dict.fromkeys([naive, full, ceiling]))
    output = mean_output(points, names)
    techniques = contributions(points, corners)
    together = shown(factor(points, corners.full, corners.naive, "together"))
    without = shown(factor(points, corners.ceiling, corners.full, "without"))
    served = saturation(points)
    unsaturated = [name for name in names if name in served and isnan(served[name])]
    return [
        f"{naive} → {full}: {output[naive]:,.0f} → {output[full]:,.0f} output tok/s, {together} together; the factors "
        f"of each alone multiply to {techniques['alone'].prod(skipna=False):.2f}×",
        f"without adapters ({ceiling}): {output[ceiling]:,.0f} output tok/s, {without} that with them",
        *describe_noise(techniques),
        *(
            f"{name}: no rate is known to saturate it, so that its output may be a lower bound; add higher rates"
            for name in unsaturated
        ),
    ]


def shown(factors: dict[str, float]) -> str:
    """A factor with its interval, if it has one."""
    value, low, high = factors.values()
    return f"{value:.2f}×" + ("" if isnan(low) else f" [{low:.2f}, {high:.2f}]")


def describe_noise(techniques: pd.DataFrame) -> list[str]:
    """The factors that these seeds cannot tell from 1; with one seed there is no telling."""
    if techniques["alone_low"].isna().all():
        return ["factors of one seed have no interval: what is within some per cent is noise"]
    noise = {
        row["technique"]: [FACTORS[name] for name in FACTORS if row[f"{name}_low"] <= 1 <= row[f"{name}_high"]]
        for row in techniques.to_dict("records")
    }
    told = "; ".join(f"{technique} {', '.join(names)}" for technique, names in noise.items() if names)
    return [f"factors that these seeds cannot tell from 1: {told or 'none'}"]
