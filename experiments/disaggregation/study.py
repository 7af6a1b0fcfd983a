"""Prefill and decode on servers of their own, beside servers that do both: attainment over rates and SLO scales."""

from functools import partial

import numpy as np
import pandas as pd
from typing_extensions import Unpack

from experiments.disaggregation.figures import over_scales
from framework.checks import positive
from framework.measure.rates import aggregate, highest_within
from framework.measure.slo import describe_limits, meets_limits, request_limits, target_of
from framework.report.finish import Findings, finish_sweep
from framework.report.rate_plots import rate_figures
from framework.report.tables import short
from framework.study.arguments import Sweep
from framework.study.arms import Arm, parts_of, resolve_arms
from framework.study.sweep import Study, run_study

SCALES = (
    "Requests within the SLOs, all of whose limits are scaled, at {} requests/s per GPU, a curve per arm. Horizontal: "
    "the target; vertical: each arm's tightest scale that keeps it."
)
COLUMNS = ["finish_time", "scheduled_time", "arrival_time", "ttft", "tpot", "e2e", "normalized_latency"]
MOVED = ["transfer_wait", "transfer_time", "e2e"]
DEFINITIONS = {
    "SLO scale": "what every limit of the SLOs is multiplied with; the tightest is the smallest whose attainment, and "
    "that of all larger ones, is at least the target",
    "Moving": "transfer wait and time of all requests / their E2E latency",
}


def run(*, scales: list[float], **sweep: Unpack[Sweep]) -> None:
    """Replay every arm, all with as many servers, and scale the limits of `slo`.

    They are scaled at the highest rate at which some arm keeps them. The others are compared with the first arm.
    """
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": "virtual"})
    check_equal(arms)
    for scale in scales:
        positive("scales", scale)
    if not scales or not request_limits(sweep["slo"]):
        raise ValueError(
            "disaggregation needs scales, and limits to scale that each request keeps, such as slo.ttft=0.5"
        )
    study = run_study(arms, sweep)
    finish_sweep(study, "disaggregation", partial(find, study, sorted(scales)))
    study.raise_failures()


def check_equal(arms: dict[str, Arm]) -> None:
    """ValueError where one arm has more servers than another: each is a GPU."""
    numbers = {name: arm.num_servers for name, arm in arms.items()}
    if len(set(numbers.values())) > 1:
        told = ", ".join(f"{name} has {number}" for name, number in numbers.items())
        raise ValueError(f"arms are compared at an equal number of servers, and {told}")


def find(study: Study, scales: list[float], points: pd.DataFrame) -> Findings:
    num_servers = next(iter(study.arms.values())).num_servers
    target, limits = target_of(study.slo), request_limits(study.slo)
    within = highest_within(points, target)
    rate = rate_of_scales(points, within)
    shares = attainment(study, points[points["rate"] == rate], scales)
    offered = points.loc[points["rate"] == rate, "offered_rate"].mean() / num_servers
    found = summary(shares, within, moving(study, points), target, num_servers)
    figure = over_scales(shares, tightest(shares, target), target)
    title = f"At {num_servers} servers each, {100 * target:g}% of requests within {describe_limits(limits)}"
    return Findings(
        {"attainment_scales": (figure, SCALES.format(short(offered))), **rate_figures(study, points)},
        {title: found},
        definitions=DEFINITIONS,
        files={"scales.csv": shares, "rates.csv": aggregate(points)[["arm", "rate", "offered_rate", "slo_attainment"]]},
    )


def rate_of_scales(points: pd.DataFrame, within: dict[str, float]) -> float:
    """The highest rate that was asked for at which some arm keeps the SLOs; the lowest where none does."""
    highest = max((value for value in within.values() if not np.isnan(value)), default=np.nan)
    kept = points.loc[points.groupby(["arm", "rate"])["offered_rate"].transform("mean") == highest, "rate"]
    return float(kept.max() if len(kept) else points["rate"].min())


def attainment(study: Study, points: pd.DataFrame, scales: list[float]) -> pd.DataFrame:
    """A row per arm and scale, of the requests of all seeds: the share that keeps all limits times the scale."""
    limits, rows = request_limits(study.slo), []
    for arm, group in points.groupby("arm", sort=False):
        files = [study.folder(point) / "requests.parquet" for point in group["point"]]
        requests = pd.concat([pd.read_parquet(file, columns=COLUMNS) for file in files])
        for scale in scales:
            scaled = {name: scale * limit for name, limit in limits.items()}
            rows.append({"arm": arm, "scale": scale, "attainment": float(meets_limits(requests, scaled).mean())})
    return pd.DataFrame(rows).assign(rate=points["rate"].iloc[0])


def tightest(shares: pd.DataFrame, target: float) -> dict[str, float]:
    """Per arm, the smallest scale from which on every one keeps the target; NaN if the largest does not."""
    found = {}
    for arm, rows in shares.groupby("arm", sort=False):
        rows = rows.sort_values("scale", ascending=False)
        kept = rows["scale"][(rows["attainment"] >= target).cumprod().astype(bool)]
        found[str(arm)] = float(kept.min()) if len(kept) else float("nan")
    return found


def moving(study: Study, points: pd.DataFrame) -> dict[str, float]:
    """Per arm, the share of the requests' E2E latency for which they stood still between two servers."""
    shares = {}
    for arm, group in points.groupby("arm", sort=False):
        files = [study.folder(point) / "requests.parquet" for point in group["point"]]
        times = pd.concat([pd.read_parquet(file, columns=MOVED) for file in files]).sum()
        shares[str(arm)] = float((times["transfer_wait"] + times["transfer_time"]) / times["e2e"])
    return shares


def summary(
    shares: pd.DataFrame, within: dict[str, float], moved: dict[str, float], target: float, num_servers: int
) -> pd.DataFrame:
    """Per arm: its highest rate per GPU and its tightest scale that keep the target, both over the first arm's."""
    arms = list(within)
    rates = pd.Series([within[arm] / num_servers for arm in arms])
    scales = pd.Series([tightest(shares, target)[arm] for arm in arms])
    return pd.DataFrame(
        {
            "arm": arms,
            "highest rate (req/s per GPU)": rates,
            f"rate ÷ {arms[0]}": rates / rates[0],
            "tightest SLO scale": scales,
            f"{arms[0]} ÷ scale": scales[0] / scales,
            "moving (% of E2E)": [100 * moved[arm] for arm in arms],
        }
    )
