"""Arms as every combination of a few axes, and what each technique is worth: alone, in turn and last.

An arm is called after its options in the axes' order, such as `continuous+int8+segmented`.
"""

from dataclasses import dataclass
from itertools import product
from math import isnan, nan
from typing import Any

import pandas as pd

from framework.arms import Arms
from framework.config import suggest
from framework.metrics import capacity, saturation

Axes = dict[str, dict[str, dict[str, Any]]]  # axis → option → the components that it sets
COMBINATIONS = "Every combination: the most output at any rate, and what it is worth over the naive corner"
CONTRIBUTIONS = "What each technique contributes, as a factor of the most output"


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
        arm: dict[str, Any] = {}
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


def most_output(points: pd.DataFrame) -> "pd.Series[float]":
    """Per arm, the highest output throughput (tok/s) over its rates, as means over seeds."""
    return points.groupby(["arm", "rate"])["output_throughput"].mean().groupby(level="arm").max()


def contributions(points: pd.DataFrame, corners: Corners) -> pd.DataFrame:
    """One row per technique from the naive corner to the full stack.

    `output` is the throughput (tok/s) with it and all before it, `before` that without it. As factors: `alone` over the
    naive corner with nothing else changed, `in_turn` over `before`, `last` of the full stack over the same without it.
    NaN where an arm has no point.
    """
    output = most_output(points).to_dict()
    rows, current = [], corners.naive
    for index, (before, after) in enumerate(zip(corners.naive, corners.full, strict=True)):
        if before == after:
            continue
        previous, current = current, changed(current, index, after)
        arms = [
            (current, previous),
            (changed(corners.naive, index, after), corners.naive),
            (corners.full, changed(corners.full, index, before)),
        ]
        pairs = [[output.get(name_of(one), nan) for one in pair] for pair in arms]
        in_turn, alone, last = (with_it / without_it for with_it, without_it in pairs)
        factors = {"alone": alone, "in_turn": in_turn, "last": last}
        rows.append({"technique": f"{before} → {after}", "before": pairs[0][1], "output": pairs[0][0], **factors})
    return pd.DataFrame(rows)


def changed(options: list[str], index: int, option: str) -> list[str]:
    return [*options[:index], option, *options[index + 1 :]]


def ablation_tables(points: pd.DataFrame, axes: Axes, corners: Corners) -> dict[str, pd.DataFrame]:
    """Every combination with the most it served and its capacity; and every technique with its factors."""
    output, served, capacities = most_output(points), saturation(points), capacity(points)
    arms = list(served)
    combinations = pd.DataFrame([arm.split("+") for arm in arms], columns=list(axes)).assign(
        **{
            "output (tok/s)": [float(output[arm]) for arm in arms],
            "× naive": [float(output[arm]) / output.get(name_of(corners.naive), nan) for arm in arms],
            "served at most (req/s)": [served[arm] for arm in arms],
            "capacity (req/s)": [capacities[arm] for arm in arms],
        }
    )
    headers = {"output": "output (tok/s)", "alone": "alone (×)", "in_turn": "in turn (×)", "last": "last (×)"}
    techniques = contributions(points, corners).drop(columns="before").rename(columns=headers)
    return {CONTRIBUTIONS: techniques, COMBINATIONS: combinations}


def describe_ablation(points: pd.DataFrame, corners: Corners) -> list[str]:
    """What all techniques are worth together, and what serving adapters costs with all of them."""
    output = most_output(points).to_dict()
    naive, full, ceiling = (output.get(name_of(one), nan) for one in (corners.naive, corners.full, corners.ceiling))
    product_alone = contributions(points, corners)["alone"].prod(skipna=False)
    served = saturation(points)
    names = dict.fromkeys(map(name_of, (corners.naive, corners.full, corners.ceiling)))
    unsaturated = [name for name in names if name in served and isnan(served[name])]
    return [
        f"{name_of(corners.naive)} → {name_of(corners.full)}: {naive:,.0f} → {full:,.0f} output tok/s, "
        f"{full / naive:.2f}× together; the factors of each alone multiply to {product_alone:.2f}×",
        f"without adapters ({name_of(corners.ceiling)}): {ceiling:,.0f} output tok/s, so that adapters cost "
        f"{1 - full / ceiling:.0%}",
        *(
            f"{name}: no rate was too much, so that its output is a lower bound; add higher rates"
            for name in unsaturated
        ),
    ]
