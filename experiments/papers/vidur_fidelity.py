"""How far modelled replays are from executed ones at 85% and 95% of the capacity: Vidur's fidelity (MLSys 2024).

As the paper profiles a device first, a cost model of the device at hand is fitted first, on other requests.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from typing_extensions import Unpack

from experiments.calibrate.study import FOLDER
from experiments.fidelity.cells import Plan
from experiments.fidelity.errors import AllGoals, relative_error
from experiments.fidelity.study import Compared, replay_sides, requests_in, with_places
from experiments.fidelity.study import find as find_errors
from experiments.papers.comparison import with_comparison
from experiments.papers.figures import bars_beside
from framework.config import with_keywords
from framework.engine.modelled import ModelledEngine
from framework.report.finish import Findings, finish_sweep
from framework.study.sweep import Study

PAPER = "vidur_fidelity"
EXECUTED, MODELLED = "executed", "modelled"
COST_MODEL = "vidur"
QUANTILES = {"median": 0.5, "P95": 0.95}
NEAR_CAPACITY = 0.9  # of the capacity: loads up to here are compared with what is reported at 85%, others with 95%
ERRORS = "Normalized latency, executed and modelled"
BESIDE = (
    "Median and P95 of the normalized latency by workload, executed and modelled, a row for each load; bars: the 95% "
    "interval of the repeats; numbers: the error."
)
DEFINITIONS = {
    "Normalized latency": "end to end / output tokens of a request; median and P95 are over a replay's requests",
    "± of repeats": "half of the 95% interval (Student's t) of the mean over the executed repeats, which have the same "
    "arrivals: an error within it is none",
}


def run(*, calibrate: Callable[..., None] | None, **compared: Unpack[Compared]) -> None:
    """Fit a cost model with `calibrate` (None: take the shipped one), and compare its replays with executed ones.

    The sides are `executed` and `modelled`, the cells the paper's workloads. ValueError for other sides.
    """
    check_sides(compared)
    if calibrate is not None:
        compared = with_fitted(compared, calibrate)
    study, plan, capacities = replay_sides(compared)
    finish_sweep(study, PAPER, partial(find, study, plan, capacities, compared["goals"]))
    study.raise_failures()


def check_sides(compared: Compared) -> None:
    named = [name for name, components in compared["sides"].items() if components is not None]
    if {*named} != {EXECUTED, MODELLED} or compared["reference"] != EXECUTED:
        raise ValueError(f"sides are {', '.join(named)}: {PAPER} compares {MODELLED} with the reference {EXECUTED}")
    if getattr(compared["engine"], "func", compared["engine"]) is ModelledEngine:
        raise ValueError(f"engine=modelled executes nothing, and {PAPER} compares with executed steps: leave it out")


def with_fitted(compared: Compared, calibrate: Callable[..., None]) -> Compared:
    """The same, whose modelled side has a cost model of the engine and device, fitted in a folder of the study's."""
    folder = Path(compared["output_dir"]) / "calibration"
    kept = ("model", "quantization", "lora", "engine", "device", "fresh")
    calibrate(name=COST_MODEL, output_dir=str(folder), **{key: compared[key] for key in kept})  # type: ignore[literal-required]
    sides: dict[str, Any] = {**compared["sides"]}
    engine = with_keywords(sides[MODELLED]["engine"], path=str(folder / FOLDER / f"{COST_MODEL}.json"))
    return Compared(**{**compared, "sides": {**sides, MODELLED: {**sides[MODELLED], "engine": engine}}})


def find(study: Study, plan: Plan, capacities: dict[str, float], goals: AllGoals, points: pd.DataFrame) -> Findings:
    found = find_errors(study, plan, capacities, goals, points)
    rows = normalized_latencies(study, with_places(points, plan, capacities))
    measured, spreads = beside_reported(rows)
    own = Findings(
        figures={"normalized_latency": (bars_beside(rows), BESIDE), **found.figures},
        tables={ERRORS: latency_table(rows), **found.tables},
        notes=found.notes,
        definitions={**DEFINITIONS, **found.definitions},
        files={"normalized_latency.csv": rows, **found.files},
    )
    return with_comparison(PAPER, measured, own, spreads)


def normalized_latencies(study: Study, placed: pd.DataFrame) -> pd.DataFrame:
    """A row per workload, load and quantile: both sides' (s), the error and half the interval of the repeats (%)."""
    rows = []
    for (cell, load), group in placed.groupby(["cell", "load"], sort=False):
        sides = {side: requests_in(study, of_side) for side, of_side in group.groupby("side", sort=False)}
        if len(sides) < 2:
            continue
        for name, quantile in QUANTILES.items():
            values = {
                side: pd.Series([table["normalized_latency"].quantile(quantile) for table in tables]).to_numpy(float)
                for side, tables in sides.items()
            }
            row = relative_error(values[EXECUTED], values[MODELLED])
            rows.append({"workload": cell, "load": load, "quantile": name} | row)
    return pd.DataFrame(rows, columns=["workload", "load", "quantile", "reference", "value", "error", "spread"])


def latency_table(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "workload": rows["workload"],
            "load": [f"{load:.0%}" for load in rows["load"]],
            "of": rows["quantile"],
            "executed (ms)": 1e3 * rows["reference"],
            "modelled (ms)": 1e3 * rows["value"],
            "error (%)": rows["error"],
            "± of repeats (%)": rows["spread"],
            "beyond the repeats": [
                "–" if pd.isna(spread) else "yes" if abs(error) > spread else "no"
                for error, spread in zip(rows["error"], rows["spread"], strict=True)
            ],
        }
    )


def beside_reported(rows: pd.DataFrame) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Modelled ÷ executed by quantity and case as `reported/` has them, and the spreads of the repeats.

    Near the capacity the paper reports its worst case alone: here it is the one furthest from 1.
    """
    measured: dict[str, dict[str, float]] = {"moderate": {}, "near": {}}
    spreads: dict[str, dict[str, float]] = {"moderate": {}, "near": {}}
    moderate = rows[rows["load"] <= NEAR_CAPACITY]
    for row in moderate.to_dict("records"):
        case = f"{row['workload']}, {row['quantile']}"
        measured["moderate"][case], spreads["moderate"][case] = 1 + row["error"] / 100, row["spread"] / 100
    near = rows[(rows["load"] > NEAR_CAPACITY) & rows["error"].notna()]
    if len(near):
        worst = near.loc[near["error"].abs().idxmax()]
        measured["near"]["worst"], spreads["near"]["worst"] = 1 + worst["error"] / 100, worst["spread"] / 100
    return measured, spreads
