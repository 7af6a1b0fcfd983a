"""Servers that are emulated on one device against servers with a device each, in real time, on the same requests.

Beside the errors of the fidelity study: how many requests both sides sent to the same server, and how evenly.
"""

from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
from typing_extensions import Unpack

from experiments.fidelity.cells import Plan
from experiments.fidelity.errors import AllGoals, half_width
from experiments.fidelity.study import Compared, find, replay_sides, requests_in, with_places
from framework.config import suggest
from framework.report.finish import Findings, finish_sweep
from framework.study.sweep import Study

IMBALANCE = "imbalance_load"
DEFINITIONS = {
    "Same server": "requests that both sides sent to the same server, of all; the mean over every pair of repeats. "
    "Between repeats: of the reference with itself",
    "Stateless": "a router that names a server whatever the servers do: both sides have to name the same",
}
ON_CPU = (
    "device=cpu: the servers with a device each are processes of this machine. They share its cores with their driver, "
    "its caches and its memory, as GPUs do not. This shows that the study works, not how good the emulation is"
)


def run(*, stateless: list[str], **compared: Unpack[Compared]) -> None:
    """As the fidelity study; in the cells that are `stateless` every request has to go to the same server."""
    for name in stateless:
        if name not in compared["cells"]:
            raise ValueError(f"stateless has {name!r}, which is no cell{suggest(name, compared['cells'])}")
    study, plan, capacities = replay_sides(compared)
    find_here = partial(find_in_cluster, stateless, study, plan, capacities, compared["goals"])
    finish_sweep(study, "cluster fidelity", find_here)
    study.raise_failures()


def find_in_cluster(
    stateless: list[str],
    study: Study,
    plan: Plan,
    capacities: dict[str, float],
    goals: AllGoals,
    points: pd.DataFrame,
) -> Findings:
    own = find(study, plan, capacities, goals, points)
    decisions = decisions_of(study, with_places(points, plan, capacities), plan, stateless)
    notes = [ON_CPU] if study.device.type == "cpu" else []
    return replace(
        own,
        tables={**decision_table(decisions), **own.tables},
        notes=[*notes, *decision_notes(decisions), *own.notes],
        definitions={**DEFINITIONS, **own.definitions},
        files={**own.files, "decisions.csv": decisions},
    )


def decisions_of(study: Study, placed: pd.DataFrame, plan: Plan, stateless: list[str]) -> pd.DataFrame:
    """One row per cell, load and other side, where both have points.

    `same_server` and `between_repeats` are shares; `imbalance` is that of load, of the reference and of the side, and
    `spread` half of the 95% interval of their difference. `is_met`: all go to the same server where the cell is
    stateless, else the imbalance differs by no more than the spread.
    """
    rows = []
    for (cell, load), group in placed.groupby(["cell", "load"], sort=False):
        of_side = dict(list(group.groupby("side", sort=False)))
        for side in [side for side in plan.others if side in of_side and plan.reference in of_side]:
            ours, theirs = of_side[plan.reference], of_side[side]
            real, other = (servers_of(requests_in(study, points)) for points in (ours, theirs))
            same = float(np.mean([share_equal(*pair) for pair in product(real, other)]))
            first, second = (points[IMBALANCE].to_numpy(float) for points in (ours, theirs))
            spread = float(np.hypot(*np.nan_to_num([half_width(first), half_width(second)])))
            row = {
                "cell": cell,
                "load": load,
                "side": side,
                "is_stateless": cell in stateless,
                "same_server": same,
                "between_repeats": between(real),
                "imbalance_reference": first.mean(),
                "imbalance": second.mean(),
                "spread": spread,
            }
            differs = bool(abs(second.mean() - first.mean()) > spread)  # a single server has no imbalance
            rows.append(row | {"is_met": same == 1.0 if cell in stateless else not differs})
    return pd.DataFrame(rows)


def servers_of(tables: list[pd.DataFrame]) -> list["pd.Series[int]"]:
    """Of each repeat, by request id."""
    return [table.set_index("request_id")["server"] for table in tables]


def share_equal(one: "pd.Series[int]", other: "pd.Series[int]") -> float:
    return float((one == other.reindex(one.index)).mean())


def between(repeats: list["pd.Series[int]"]) -> float:
    """Over all pairs of different repeats; NaN of a single one."""
    pairs = [share_equal(one, other) for index, one in enumerate(repeats) for other in repeats[:index]]
    return float(np.mean(pairs)) if pairs else float("nan")


def decision_table(decisions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    if decisions.empty:
        return {}
    marks = decisions["is_met"].map({True: "✓", False: "✗"})
    columns = {
        "cell": decisions["cell"],
        "load": [f"{load:.0%}" for load in decisions["load"]],
        "side": decisions["side"],
        "router": decisions["is_stateless"].map({True: "stateless", False: "looks at load"}),
        "same server (%)": 100 * decisions["same_server"],
        "between repeats (%)": 100 * decisions["between_repeats"],
        "imbalance, reference": decisions["imbalance_reference"],
        "imbalance": decisions["imbalance"],
        "± of the difference": decisions["spread"],
        "met": marks,
    }
    return {"Routing decisions and imbalance of load": pd.DataFrame(columns)}


def decision_notes(decisions: pd.DataFrame) -> list[str]:
    """Which decisions are not the same though they have to be, and which imbalance is another."""
    notes = []
    for row in decisions[~decisions["is_met"].astype(bool)].to_dict("records") if len(decisions) else []:
        place = f"{row['cell']} at {float(str(row['load'])):.0%}, {row['side']}"
        if row["is_stateless"]:
            notes.append(
                f"{place}: {100 * float(str(row['same_server'])):.3g}% of the requests went to the same server"
            )
        else:
            first, second, spread = (float(str(row[name])) for name in ("imbalance_reference", "imbalance", "spread"))
            notes.append(f"{place}: imbalance of load {second:.3f} where the reference has {first:.3f} (±{spread:.3f})")
    return notes
