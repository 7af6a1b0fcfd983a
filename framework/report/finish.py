"""The end of a study: write, draw, leave what its page shows, and say what was written where.

`report` is for sweeps: it gathers every finished point in the folder, and tracks them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from framework.measure.rates import (
    MIN_REQUESTS,
    TARGET_ATTAINMENT,
    aggregate,
    capacity,
    is_saturated,
    over_rates,
    saturation,
)
from framework.report.notes import service_notes
from framework.report.pages import write_record
from framework.report.plots import Figure, save
from framework.report.tables import overview, print_frame, print_overview
from framework.study.files import locked, write_atomically, write_json
from framework.study.points import write_table
from framework.study.sweep import Study

Draw = Callable[[Study, pd.DataFrame], dict[str, Figure]]

TOO_SHORT = "above what it served, as in so short a replay waiting does not show (raise trace.num_requests)"
SATURATED = "saturated, served at most {:.3g} req/s (middle 80% of completions)"

CAPTIONS = {
    "latency_rate": "Mean normalized latency, TTFT and TPOT over the arrival rate, one curve per arm. Dotted: the most "
    "that the arm served.",
    "throughput_latency": "Mean normalized latency over output throughput, one curve per arm, one marker per rate. "
    "A ring: the last rate below saturation.",
    "attainment_rate": "Requests within the SLOs over the arrival rate. Horizontal: the target; vertical: the capacity "
    "of each arm. A ring: the last rate below saturation; beyond it no rate is a capacity.",
    "timeline": "The first requests of each arm, one bar per request: waiting, prefill, decode.",
    "batch_and_cache": "Sequences per step that decodes, and KV blocks in use, over time, one curve per arm.",
    "latency_cdf": "Distribution over requests of TTFT and TPOT, one curve per arm.",
}


def report(
    study: Study,
    name: str,
    draw: Draw,
    tracking: Callable[..., None] | None,
    *,
    captions: Mapping[str, str] | None = None,
    tables: Callable[[pd.DataFrame], dict[str, pd.DataFrame]] | None = None,
    notes: Callable[[pd.DataFrame], list[str]] | None = None,
    definitions: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Write `points.csv`, `figures/` and what the page shows, log, print tables and notes; the points.

    `draw(study, points)` names the figures, `captions` says what is on those that are the study's own; `tables(points)`
    and `notes(points)` are what the study adds to every sweep's, `definitions` of its own terms. `tracking` logs the
    points (None: nothing does). Jobs that share a folder take turns, so the last one draws every point.
    """
    with locked(study.output_dir):
        points = study.table()
        csv = write_table(study.output_dir, points)
    say = partial(study.console.print, markup=False, highlight=False, soft_wrap=True)
    title = f"{name} on {study.environment['device']}"
    print_overview(study.console, aggregate(points), title)
    with locked(study.output_dir):
        points = study.table()
        drawn = draw(study, points)
        figures = save(drawn, study.output_dir / "figures")
        added = tables(points) if tables else {}
        sentences = (notes(points) if notes else []) + service_notes(study, points) + limits(study, points)
        known = CAPTIONS | dict(captions or {})
        write_record(
            study.output_dir,
            title=title,
            environment=study.environment,
            figures={figure: known.get(figure, figure.replace("_", " ")) for figure in drawn},
            tables={"Every arm at every rate": overview(points)} | added,
            notes=[*sentences, *(f"Failed: {message}" for message in study.failures)],
            definitions=definitions,
        )
        if tracking is not None:  # may fail: the page is on disk
            configs = {name: arm.config for name, arm in study.arms.items()}
            tracking(points, configs, figures, study=name, output_dir=study.output_dir)
    for caption, table in added.items():
        print_frame(study.console, table, caption)
    for line in [*sentences, *(f"wrote {path}" for path in (csv, study.output_dir / "points", *figures))]:
        say(line)
    return points


def conclude(
    console: Console,
    folder: Path,
    *,
    title: str,
    environment: Mapping[str, Any],
    files: Mapping[str, Any],
    figures: Mapping[str, tuple[Figure, str]],
    tables: Mapping[str, pd.DataFrame],
    notes: Sequence[str] = (),
    definitions: Mapping[str, str] | None = None,
) -> None:
    """Write everything of a study that is no sweep; print its tables and notes.

    `files` are those of write_files; `figures` maps names to a figure and its caption.
    """
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    write_files(folder, files)
    paths = save({name: figure for name, (figure, _) in figures.items()}, folder / "figures")
    write_record(
        folder,
        title=title,
        environment=environment,
        figures={name: caption for name, (_, caption) in figures.items()},
        tables=tables,
        notes=notes,
        definitions=definitions,
    )
    for caption, table in tables.items():
        print_frame(console, table, caption)
    for line in [*notes, *(f"wrote {path}" for path in (*(folder / name for name in files), *paths))]:
        say(line)


def write_files(folder: Path, files: Mapping[str, Any]) -> None:
    """`files` maps names to tables, written as CSV, and other data, written as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, pd.DataFrame):
            write_atomically(folder / name, content.to_csv(index=False))
        else:
            write_json(folder / name, content)


def limits(study: Study, points: pd.DataFrame) -> list[str]:
    """Per arm, the most it served, and its capacity: the highest rate at which enough requests meet the SLOs."""
    slos = " and ".join(f"{metric.upper()} ≤ {1e3 * limit:g} ms" for metric, limit in study.slo.items())
    capacities, most = capacity(points), saturation(points)
    rates = over_rates(points)
    without_verdict = set(rates["arm"][is_saturated(rates).isna()])
    lines = []
    for arm in most:
        if arm in without_verdict:
            lines.append(f"{arm}: saturated –, capacity – (fewer than {MIN_REQUESTS} requests in a replay)")
            continue
        is_known = most[arm] == most[arm]
        parts = [SATURATED.format(most[arm]) if is_known else "not saturated at any rate"]
        if study.slo and points["rate"].max() < inf:
            rate = f"{capacities[arm]:g} req/s" if capacities[arm] == capacities[arm] else "below every rate here"
            parts.append(f"capacity with {TARGET_ATTAINMENT:.0%} of requests within {slos}: {rate}")
            if capacities[arm] > most[arm]:
                parts.append(TOO_SHORT)
        lines.append(f"{arm}: {'; '.join(parts)}")
    return lines
