"""Who asks for which adapter, and for how many: every arm on the same requests under several laws of popularity.

S-LoRA's Fig. 5 and 6 (MLSys 2024) over the number of adapters, Punica's Fig. 11 (MLSys 2024) over their popularity.
"""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
from typing_extensions import Unpack

from experiments.lora.figures import lines_by_arm
from experiments.lora.tables import FAIRNESS, fairness_table, reference_notes, write_adapters
from framework.build import MakeScheduler
from framework.config import suggest, with_keywords
from framework.measure.fairness import DEFINITIONS
from framework.replay import Clock
from framework.report.finish import report
from framework.report.plots import Figure
from framework.report.tables import rate_title
from framework.study.arms import parts_of, resolve_arms
from framework.study.sweep import Sweep, run_study

LABELS = {  # metrics that a source reports, as axes and captions name them
    "request_throughput": "throughput (requests/s)",
    "output_throughput": "output throughput (tokens/s)",
    "ttft_mean": "mean TTFT (s)",
    "slo_attainment": "share of requests within the SLO",
}
Reported = dict[str, dict[str, dict[str, float]]]  # metric → whose → mix or rate → value


def run(
    *,
    only: list[str] | None,
    mixes: dict[str, Any],
    mix_over_rates: str | int,
    scheduler: MakeScheduler,
    clock: Clock,
    source: str,
    reported_over_mixes: Reported,
    reported_over_rates: Reported,
    **sweep: Unpack[Sweep],
) -> None:
    """Replay the arms in `only` (None: all) under every law of `mixes` (framework.trace.popularity) at every rate.

    The first figure is over the mixes at the highest rate; the second, if there are several, over the rates with
    `mix_over_rates`. Their metrics are those that `source` reports, whose values stand beside the measured ones.
    """
    mix_over_rates = str(mix_over_rates)  # a number on the command line
    if mix_over_rates not in mixes:
        raise ValueError(f"mix_over_rates is {mix_over_rates!r}{suggest(mix_over_rates, mixes)}")
    for metric in [*reported_over_mixes, *reported_over_rates]:
        if metric not in LABELS:
            raise ValueError(f"a reported metric is {metric!r}{suggest(metric, LABELS)}")
    arms = sweep["arms"]
    for arm in only or []:
        if arm not in arms:
            raise ValueError(f"only has {arm!r}, which is no arm{suggest(arm, arms)}")
    chosen = {arm: arms[arm] for arm in arms if only is None or arm in only}
    variants = resolve_arms(chosen, parts_of(sweep) | {"scheduler": scheduler, "clock": clock})
    names = {f"{arm}-{mix}": (arm, mix) for arm in variants for mix in mixes}
    mixed = {
        name: replace(variants[arm], trace=with_keywords(variants[arm].trace, adapters=mixes[mix]))
        for name, (arm, mix) in names.items()
    }
    study = run_study(mixed, sweep)
    shown = partial(compare, names=names, mix=mix_over_rates, over=(reported_over_mixes, reported_over_rates))
    beside = f"one line per arm. Dotted: as reported by {source}."
    report(
        study,
        "adapter_mixes",
        lambda study, points: draw(shown(points), points["rate"].max(), mix_over_rates, study.environment["device"]),
        sweep.get("tracking"),
        captions={
            "mixes": f"Over the number or the popularity of the adapters, at the highest rate, {beside}",
            "rates": f"Over the arrival rate, {beside}",
        },
        tables=lambda points: (
            tables(shown(points), points["rate"].max(), mix_over_rates)
            | {FAIRNESS: fairness_table(write_adapters(study, points))}
        ),
        notes=lambda points: reference_notes({name: arm.lora for name, arm in variants.items()}, study.device),
        definitions=DEFINITIONS,
    )
    study.raise_failures()


def compare(
    points: pd.DataFrame, *, names: dict[str, tuple[str, str]], mix: str, over: tuple[Reported, Reported]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measured values, means over seeds, beside reported ones: over the mixes at the highest rate, over rates of `mix`.

    Both have the columns `arm`, `x`, `metric`, `value` and `is_reported`.
    """
    named = pd.DataFrame([names[arm] for arm in points["arm"]], columns=["arm", "mix"], index=points.index)
    keyed = pd.concat([named, points.drop(columns="arm")], axis=1)
    means = keyed.groupby(["arm", "mix", "rate"], sort=False, as_index=False).mean(numeric_only=True)
    at_highest, of_mix = means[means["rate"] == means["rate"].max()], means[means["mix"] == mix]
    return beside(at_highest, "mix", over[0]), beside(of_mix, "rate", over[1])


def beside(measured: pd.DataFrame, x: str, reported: Reported) -> pd.DataFrame:
    """Measured rows first; mixes that are named by numbers are numbers."""
    own = measured.rename(columns={x: "x"}).melt(["arm", "x"], list(reported), "metric").assign(is_reported=False)
    theirs = [
        {"arm": f"{whose} (reported)", "x": at, "metric": metric, "value": value, "is_reported": True}
        for metric, values in reported.items()
        for whose, points in values.items()
        for at, value in points.items()
    ]
    table = pd.concat([own, pd.DataFrame(theirs, columns=own.columns)], ignore_index=True)
    are_numbers = all(re.fullmatch(r"[\d.]+", str(at)) for at in table["x"])
    return table.astype({"x": float}) if are_numbers else table


def draw(shown: tuple[pd.DataFrame, pd.DataFrame], rate: float, mix: str, device: str) -> dict[str, Figure]:
    over_mixes, over_rates = shown
    figures = {"mixes": lines_by_arm(over_mixes, "adapters", LABELS, f"{rate_title(rate)}, {device}")}
    if not over_rates.empty:
        figures["rates"] = lines_by_arm(over_rates, "arrival rate (requests/s)", LABELS, f"adapters: {mix}, {device}")
    return figures


def tables(shown: tuple[pd.DataFrame, pd.DataFrame], rate: float, mix: str) -> dict[str, pd.DataFrame]:
    """One table per metric over the mixes, with the last ÷ the first, and one over the rates."""
    over_mixes, over_rates = shown
    captions = {}
    for metric, rows in over_mixes.groupby("metric", sort=False):
        table = rows.pivot_table(index="arm", columns="x", values="value", sort=False)
        if pd.api.types.is_numeric_dtype(table.columns):
            table = table.sort_index(axis=1).rename(columns="{:g}".format)
        first, last = table.columns[0], table.columns[-1]
        ratio = {f"{last} ÷ {first}": table[last] / table[first]}
        captions[f"By adapters, {rate_title(rate)}: {LABELS[str(metric)]}"] = table.assign(**ratio).reset_index()
    if not over_rates.empty:
        table = over_rates.pivot_table(index=["arm", "x"], columns="metric", values="value", sort=False).reset_index()
        captions[f"By arrival rate, adapters: {mix}"] = table.rename(columns=LABELS | {"x": "rate (1/s)"})
    return captions
