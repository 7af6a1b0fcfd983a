"""Tables and sentences of the fidelity study."""

from math import isnan

import pandas as pd

from experiments.fidelity.cells import Plan
from experiments.fidelity.errors import PER_REQUEST, SATURATED, AllGoals
from framework.measure.metrics import METRIC_OF

DEFINITIONS = {
    "Capacity": "requests/s of the middle 80% of completions where all requests are there at once: the highest rate at "
    "which waiting does not grow",
    "Load": "offered rate / capacity",
    "Error": "of the mean over a side's repeats / the reference's - 1; of SLO attainment the difference in points",
    "±": "half of the 95% interval of the means (Student's t over the repeats, which have the same arrivals)",
    "Met": "✓: the error is within the goal or, where that is larger, within ±; ✗: it is not; neither: no goal is set",
    "Shift": "another offered rate / this one - 1 at which the reference would have the side's value, by its "
    "neighbouring loads",
    "MAPE, r, bias": "of single requests, the reference's averaged over its repeats: mean absolute relative error, "
    "Pearson's correlation, and the sums' ratio - 1",
}
MARKS = {True: " ✓", False: " ✗"}
NUM_TOLD = 6  # errors beyond their goals, in a sentence


def error_tables(errors: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Per cell: metrics × (load, side), each error beside its spread, marked where there is a goal."""
    tables = {}
    for cell, rows in errors.groupby("cell", sort=False) if len(errors) else ():
        columns: dict[str, list[str]] = {}
        for (load, side), of_load in rows.groupby(["load", "side"], sort=False):
            columns[f"{side} at {load:.0%}"] = [cell_of(row) for row in of_load.to_dict("records")]
            if load >= SATURATED:
                shifts = [percent(row["shift"]) for row in of_load.to_dict("records")]
                columns[f"{side}: shift"] = [text or "–" for text in shifts]
        metrics = [header(metric) for metric in rows["metric"].drop_duplicates()]
        tables[f"Error (%) ± spread of the repeats, {cell}"] = pd.DataFrame({"metric": metrics} | columns)
    return tables


def header(metric: str) -> str:
    """Without the unit: errors have none, but for points."""
    title = METRIC_OF[metric].header(metric).partition(" (")[0]
    return f"{title} (points)" if metric == "slo_attainment" else title


def cell_of(row: dict[str, object]) -> str:
    error, spread = float(str(row["error"])), float(str(row["spread"]))
    if isnan(error):
        return "–"
    beside = "" if isnan(spread) else f" ± {spread:.2f}"
    verdict = row["is_met"]
    return f"{error:+.2f}{beside}" + ("" if pd.isna(verdict) else MARKS[bool(verdict)])


def percent(value: float) -> str:
    return "" if isnan(value) else f"{value:+.2f}"


def request_table(requests: pd.DataFrame) -> dict[str, pd.DataFrame]:
    if requests.empty:
        return {}
    shown = {"cell": requests["cell"], "load": [f"{load:.0%}" for load in requests["load"]], "side": requests["side"]}
    for name in PER_REQUEST:
        for column, unit in (("mape", " (%)"), ("r", ""), ("bias", " (%)")):
            title = {"mape": "MAPE", "r": "r", "bias": "bias"}[column]
            shown[f"{name.upper()} {title}{unit}"] = requests[f"{name}_{column}"]
    return {"Request by request": pd.DataFrame(shown)}


def notes_of(
    placed: pd.DataFrame, errors: pd.DataFrame, plan: Plan, capacities: dict[str, float], goals: AllGoals
) -> list[str]:
    """What each cell can serve, which goals each side has met, and what is missing."""
    notes = [f"{cell}: capacity {capacity:.3g} requests/s" for cell, capacity in capacities.items()]
    for cell, rows in placed[placed["side"] == plan.reference].groupby("cell", sort=False):
        preempted = rows.groupby("load")["num_preemptions"].mean()
        if preempted.any():
            each = ", ".join(f"{num:.0f} at {load:.0%}" for load, num in preempted.items())
            notes.append(f"{cell}: preemptions by {plan.reference}: {each}")
    for side in plan.others:
        of_side = errors[errors["side"] == side] if len(errors) else errors
        notes.append(verdict(side, of_side, goals.shift) if len(of_side) else f"{side}: nothing to compare yet")
    return notes


def verdict(side: str, errors: pd.DataFrame, shift_goal: float) -> str:
    judged = errors[errors["is_met"].notna()]
    missed = judged[~judged["is_met"].astype(bool)]
    text = f"{side}: {len(judged) - len(missed)} of {len(judged)} goals met"
    if missed.empty:
        return text
    order = (missed["error"].abs() / missed["goal"]).sort_values(ascending=False).index
    told = [missed_goal(row, shift_goal) for row in missed.loc[order[:NUM_TOLD]].to_dict("records")]
    more = f"; and {len(missed) - NUM_TOLD} more" if len(missed) > NUM_TOLD else ""
    return f"{text}; missed: {'; '.join(told)}{more}"


def missed_goal(row: dict[str, object], shift_goal: float) -> str:
    spread, shift = float(str(row["spread"])), float(str(row["shift"]))
    beside = "" if isnan(spread) else f" ± {spread:.2f}"
    unit = " points" if row["metric"] == "slo_attainment" else "%"
    place = f"{row['cell']} at {float(str(row['load'])):.0%}, {header(str(row['metric']))}"
    text = f"{place} {row['error']:+.2f}{beside}{unit}"
    text += f" (goal {row['goal']:g})"
    if abs(shift) <= shift_goal:
        text += f", which a shift of the rate by {shift:+.2f}% explains"
    return text
