"""Attainment over the rate per GPU and over the scale of the SLOs, colocated and disaggregated: DistServe (OSDI 2024).

Its Table 2, and the chatbot of its Fig. 8.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from typing_extensions import Unpack

from experiments.disaggregation.figures import over_scales
from experiments.disaggregation.study import check_equal, tightest
from experiments.papers.comparison import read_paper, reported, with_comparison
from experiments.papers.figures import attainment_over_load
from experiments.papers.slowdown import LATENCIES, Alone, replay_alone
from experiments.papers.sustained import base_of
from framework.build import MakeScheduler
from framework.checks import positive
from framework.measure.slo import TARGET_ATTAINMENT, meets_limits
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.report.tables import short
from framework.study.arguments import Sweep
from framework.study.arms import parts_of, resolve_arms
from framework.study.sweep import Study, run_study

PAPER = "distserve"
ARMS = {"vLLM": "colocated", "DistServe": "disaggregated"}  # the paper's → ours
TARGET = TARGET_ATTAINMENT
OVER_LOAD = (
    "Requests within the SLOs over the rate, in multiples of the highest that colocated servers keep, a curve per arm. "
    "Hollow: the paper's Table 2. Horizontal: the target."
)
OVER_SCALES = (
    "Requests within the SLOs, all of whose limits are scaled, at {} requests/s per GPU, a curve per arm. Horizontal: "
    "the target; vertical: each arm's tightest scale that keeps it."
)
BY_LIMIT = "Highest rate per GPU by the limit on TPOT, the other limits as they are"
COLUMNS = ["finish_time", "scheduled_time", "arrival_time", "ttft", "tpot", "e2e", "normalized_latency"]
DEFINITIONS = {
    "SLO scale": "what every limit of the SLOs is multiplied with; the tightest is the smallest whose attainment, and "
    "that of all larger ones, is at least the target",
    "Alone": "the median of the requests in a replay in which none meets another, on one of the colocated servers",
}


@dataclass(frozen=True)
class Slos:
    """The limits (s), what each latency is alone (s), and what else they are looked at with.

    `tpot_limits` (s) take the place of the one on TPOT; all are multiplied with each of `scales` at the rate that is
    the nearest to `scaled_at` times the highest of colocated servers.
    """

    limits: dict[str, float]
    alone: dict[str, float]
    tpot_limits: list[float]
    scales: list[float]
    scaled_at: float


def run(
    *,
    limits: dict[str, float],
    tpot_limits: list[float],
    scales: list[float],
    scaled_at: float,
    scheduler: MakeScheduler,
    clock: Clock,
    **sweep: Unpack[Sweep],
) -> None:
    """Replay both arms at every rate; 90% of the requests have to keep `limits`, in multiples of what they are alone.

    `tpot_limits`, multiples too, are looked at beside the one on TPOT. `scales` multiply all limits, at the rate that
    is the nearest to `scaled_at` times the highest of colocated servers.
    """
    for latency, limit in limits.items():
        if latency not in LATENCIES:
            raise ValueError(f"limits.{latency}: give some of {', '.join(LATENCIES)}")
        positive(f"limits.{latency}", limit)
    if "tpot" not in limits or not scales:
        raise ValueError(f"limits={limits} and scales={scales}: give a limit on TPOT and at least one scale")
    for value in [*tpot_limits, *scales, scaled_at]:
        positive("tpot_limits, scales and scaled_at", value)
    base_of(sweep["rates"], pd.DataFrame({"rate": [1.0]}))
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"scheduler": scheduler, "clock": clock})
    if set(arms) != set(ARMS.values()):
        raise ValueError(f"papers/distserve compares the arms {' and '.join(ARMS.values())}, not {', '.join(arms)}")
    check_equal(arms)
    alone = medians(replay_alone("alone", arms["colocated"], sweep))
    in_seconds = {latency: limit * alone[latency] for latency, limit in limits.items()}
    slos = Slos(in_seconds, alone, [limit * alone["tpot"] for limit in tpot_limits], sorted(scales), scaled_at)
    study = run_study(arms, sweep)
    finish_sweep(study, PAPER, partial(find, study, slos))
    study.raise_failures()


def medians(alone: Alone) -> dict[str, float]:
    """Of each latency (s), over the requests of all seeds."""
    every = pd.concat(alone.values())
    return {latency: float(every[latency].median()) for latency in LATENCIES}


def find(study: Study, slos: Slos, points: pd.DataFrame) -> Findings:
    curves = attained(study, points, slos.limits)
    highest = {str(arm): highest_rate(rows, TARGET) for arm, rows in curves.groupby("arm")}
    curves = curves.assign(load=curves["rate"] / highest["colocated"])
    shares = over_slo_scales(study, points, slos, highest["colocated"])
    scales = tightest(shares, TARGET)
    rates = {"DistServe ÷ vLLM": highest["disaggregated"] / highest["colocated"]}
    measured = {
        "rate": {paper: highest[arm] for paper, arm in ARMS.items()},
        "attainment": at_loads(curves),
        "rate_of_models": rates,
        "scale": {"vLLM ÷ DistServe": scales["colocated"] / scales["disaggregated"]},
    }
    at_rate = short(float(shares["rate"].iloc[0]))
    figures = {
        "attainment": (attainment_over_load(curves, table_2(), ARMS, TARGET), OVER_LOAD),
        "scales": (over_scales(shares, scales, TARGET), OVER_SCALES.format(at_rate)),
    }
    tables = {
        BY_LIMIT: by_limit(study, points, slos),
        f"Tightest SLO scale at {at_rate} requests/s per GPU": pd.DataFrame([scales]),
    }
    files = {"attainment.csv": curves, "scales.csv": shares}
    findings = Findings(figures, tables, [describe(slos)], DEFINITIONS, files)
    return with_comparison(PAPER, measured, findings)


def by_limit(study: Study, points: pd.DataFrame, slos: Slos) -> pd.DataFrame:
    """A row per limit on TPOT, the others as they are: the highest rate per GPU (requests/s) of each arm."""
    rows = []
    for limit in sorted({*slos.tpot_limits, slos.limits["tpot"]}):
        curves = attained(study, points, slos.limits | {"tpot": limit})
        found = {str(arm): highest_rate(lines, TARGET) for arm, lines in curves.groupby("arm")}
        row = {"TPOT ≤ (× alone)": limit / slos.alone["tpot"], "TPOT ≤ (ms)": 1e3 * limit, **found}
        rows.append(row | {"disaggregated ÷ colocated": found["disaggregated"] / found["colocated"]})
    return pd.DataFrame(rows)


def over_slo_scales(study: Study, points: pd.DataFrame, slos: Slos, highest: float) -> pd.DataFrame:
    """A row per arm and scale at one rate per GPU, the nearest to `scaled_at` times `highest`; where that is NaN, the
    highest there is.
    """
    offered = points.groupby("rate")["offered_rate"].mean() / next(iter(study.arms.values())).num_servers
    wanted = slos.scaled_at * highest if highest > 0 else offered.max()
    rate = (offered / wanted).map(np.log).abs().idxmin()
    tables = []
    for scale in slos.scales:
        scaled = {latency: scale * limit for latency, limit in slos.limits.items()}
        tables.append(attained(study, points[points["rate"] == rate], scaled).assign(scale=scale))
    return pd.concat(tables).sort_values(["arm", "scale"], ignore_index=True)


def describe(slos: Slos) -> str:
    """The limits in milliseconds, and what they are multiples of."""
    told = [
        f"{LATENCIES[name]} {1e3 * slos.alone[name]:.3g} ms, within {1e3 * limit:.3g} ms"
        for name, limit in slos.limits.items()
    ]
    return f"a request alone has a median {' and '.join(told)}"


def attained(study: Study, points: pd.DataFrame, limits: dict[str, float]) -> pd.DataFrame:
    """A row per arm and rate: the offered `rate` per GPU, and the share of all seeds' requests within `limits`."""
    rows = []
    for (arm, _), group in points.groupby(["arm", "rate"], sort=False):
        files = [study.folder(point) / "requests.parquet" for point in group["point"]]
        requests = pd.concat([pd.read_parquet(file, columns=COLUMNS) for file in files])
        rate = group["offered_rate"].mean() / study.arms[str(arm)].num_servers
        rows.append({"arm": arm, "rate": rate, "attainment": float(meets_limits(requests, limits).mean())})
    return pd.DataFrame(rows).sort_values(["arm", "rate"], ignore_index=True)


def highest_rate(rows: pd.DataFrame, target: float) -> float:
    """Where the line between rates first falls below the target; NaN if it never does, or is there from the start."""
    rates, shares = rows["rate"].to_numpy(), rows["attainment"].to_numpy()
    below = np.flatnonzero(shares < target)
    if not len(below) or below[0] == 0:
        return float("nan")
    first = below[0]
    return float(np.interp(-target, -shares[first - 1 : first + 1], rates[first - 1 : first + 1]))


def at_loads(curves: pd.DataFrame) -> dict[str, float]:
    """What is measured at the loads of the paper's cases, in percent; NaN outside of the rates there are."""
    found = {}
    for paper, load in cases():
        rows = curves[curves["arm"] == ARMS[paper]]
        share = np.interp(load, rows["load"], rows["attainment"], left=np.nan, right=np.nan)
        found[case_name(paper, load)] = 100 * float(share)
    return found


def cases() -> list[tuple[str, float]]:
    """(system, load) of the paper's values."""
    names = reported(read_paper(PAPER), "attainment")
    return [(system, float(load)) for system, _, load in (name.partition(" at ") for name in names)]


def case_name(system: str, load: float) -> str:
    return f"{system} at {load:.2f}"


def table_2() -> pd.DataFrame:
    """The paper's attainment (a share) by `arm`, ours, and `load`."""
    values = reported(read_paper(PAPER), "attainment")
    rows = [
        {"arm": ARMS[system], "load": load, "attainment": values[case_name(system, load)] / 100}
        for system, load in cases()
    ]
    return pd.DataFrame(rows)
