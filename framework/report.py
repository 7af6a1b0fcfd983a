"""The end of a study: gather every finished point in the folder, draw, track, and say what was written where."""

from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd

from framework.config import describe
from framework.console import print_table
from framework.metrics import TARGET_ATTAINMENT, aggregate, capacity, saturation
from framework.plots import Figure, save
from framework.points import locked, write_table
from framework.study import Study

Draw = Callable[[Study, pd.DataFrame], dict[str, Figure]]


def report(study: Study, name: str, draw: Draw, tracking: Callable[..., None]) -> pd.DataFrame:
    """Write `points.csv` and `figures/`, log to the tracker, print the summary table; the table of points.

    `draw(study, points)` names the figures. Jobs that share a folder take turns, so the last one draws every point.
    """
    with locked(study.output_dir):
        points = study.table()
        csv = write_table(study.output_dir, points)
    print_table(study.console, aggregate(points), title=f"{name} on {study.environment['device']}")
    print_limits(study, points)
    with locked(study.output_dir):
        points = study.table()
        figures = save(draw(study, points), study.output_dir / "figures")
        configs = {arm: describe(components) for arm, components in study.arms.items()}
        tracking(points, configs, figures, study=name, output_dir=study.output_dir)
    print_paths(study, [csv, study.output_dir / "points", *figures])
    return points


def print_limits(study: Study, points: pd.DataFrame) -> None:
    """Per arm, the most it served, and its capacity: the highest rate at which enough requests meet the SLOs."""
    limits = " and ".join(f"{metric.upper()} ≤ {1e3 * limit:g} ms" for metric, limit in study.slo.items())
    capacities, most = capacity(points), saturation(points)
    for arm in most:
        parts = [f"served at most {most[arm]:.3g} req/s" if most[arm] == most[arm] else "not saturated at any rate"]
        if study.slo and points["rate"].max() < inf:
            rate = f"{capacities[arm]:g} req/s" if capacities[arm] == capacities[arm] else "below every rate here"
            parts.append(f"capacity with {TARGET_ATTAINMENT:.0%} of requests within {limits}: {rate}")
        study.console.print(f"{arm}: {'; '.join(parts)}", highlight=False)


def print_paths(study: Study, paths: list[Path]) -> None:
    for path in paths:
        study.console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def representative_points(study: Study, points: pd.DataFrame, rate: float) -> dict[str, Path]:
    """Per arm, the folder of its first seed at `rate`, where it has that point."""
    at_rate = points[points["rate"] == rate]
    return {str(arm): study.folder(rows["point"].iloc[0]) for arm, rows in at_rate.groupby("arm", sort=False)}


def read_tables(folders: dict[str, Path], file: str, **options: Any) -> dict[str, pd.DataFrame]:
    return {arm: pd.read_parquet(folder / file, **options) for arm, folder in folders.items()}
