"""Who asks for which adapter, and for how many: every arm on the same requests under several laws of popularity.

S-LoRA's Fig. 5 and 6 (MLSys 2024) over the number of adapters, Punica's Fig. 11 (MLSys 2024) over their popularity.
"""

from dataclasses import replace
from functools import partial

import pandas as pd
from typing_extensions import Unpack

from experiments.lora.figures import lines_by_arm
from experiments.lora.tables import (
    FAIRNESS,
    LABELS,
    Reported,
    adapter_rows,
    beside_reported,
    fairness_table,
    mix_tables,
    reference_notes,
)
from experiments.papers.comparison import Paper, Values, read_paper, with_comparison
from framework.build import MakeScheduler
from framework.config import suggest, with_keywords
from framework.measure.fairness import DEFINITIONS
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.report.plots import Drawn
from framework.report.tables import rate_title
from framework.study.arguments import Sweep
from framework.study.arms import check_named, parts_of, resolve_arms
from framework.study.sweep import Study, run_study
from framework.trace.popularity import Law

OVER_RATES = "over_rates_"  # before the names of quantities over the rate
Mixed = dict[str, tuple[str, str]]  # name of an arm under a mix → arm, mix


def run(
    *,
    only: list[str] | None,
    mixes: dict[str, Law],
    mix_over_rates: str | int,
    scheduler: MakeScheduler,
    clock: Clock,
    paper: str,
    **sweep: Unpack[Sweep],
) -> None:
    """Replay the arms in `only` (None: all) under every law of `mixes` (framework.trace.popularity) at every rate.

    The first figure is over the mixes at the highest rate; the second, if there are several, over the rates with
    `mix_over_rates`. Their metrics are those that the paper `paper` reports, whose values stand beside the measured
    ones (experiments/papers/reported).
    """
    mix_over_rates = str(mix_over_rates)  # a number on the command line
    if mix_over_rates not in mixes:
        raise ValueError(f"mix_over_rates is {mix_over_rates!r}{suggest(mix_over_rates, mixes)}")
    arms = sweep["arms"]
    check_named("only", only or [], arms)
    chosen = {arm: arms[arm] for arm in arms if only is None or arm in only}
    variants = resolve_arms(chosen, parts_of(sweep) | {"scheduler": scheduler, "clock": clock})
    names = {f"{arm}-{mix}": (arm, mix) for arm in variants for mix in mixes}
    mixed = {
        name: replace(variants[arm], trace=with_keywords(variants[arm].trace, adapters=mixes[mix]))
        for name, (arm, mix) in names.items()
    }
    study = run_study(mixed, sweep)
    finish_sweep(study, "adapter_mixes", partial(find, study, names, mix_over_rates, paper))
    study.raise_failures()


def find(study: Study, names: Mixed, mix: str, paper: str, points: pd.DataFrame) -> Findings:
    source = read_paper(paper)
    reported = (reported_by_arm(source), reported_by_arm(source, OVER_RATES))
    over_mixes, over_rates = measured_beside_reported(points, names, mix, reported)
    adapters = adapter_rows(study, points)
    findings = Findings(
        figures=mix_figures(over_mixes, over_rates, points["rate"].max(), mix, source["source"], study.device_name),
        tables=mix_tables(over_mixes, over_rates, points["rate"].max(), mix) | {FAIRNESS: fairness_table(adapters)},
        notes=reference_notes(
            {names[name][0]: arm.lora for name, arm in study.arms.items() if not arm.is_modelled}, study.device
        ),
        definitions=DEFINITIONS,
        files={"adapters.csv": adapters},
    )
    measured = {**measured_by_case(over_mixes), **measured_by_case(over_rates, OVER_RATES)}
    return with_comparison(paper, measured, findings)


def reported_by_arm(paper: Paper, prefix: str = "") -> Reported:
    """What the paper reports of each metric, by arm and mix (or rate), of quantities named `prefix` and the metric."""
    reported: Reported = {}
    for metric in LABELS:
        quantity = paper["quantities"].get(f"{prefix}{metric}")
        for case, value in quantity["values"].items() if quantity is not None else ():
            assert not isinstance(value, list)
            arm, _, at = case.partition(", ")
            reported.setdefault(metric, {}).setdefault(arm, {})[at] = value
    return reported


def measured_by_case(values: pd.DataFrame, prefix: str = "") -> Values:
    """The measured ones of what `beside_reported` makes, named as the papers' files name them."""
    measured: dict[str, dict[str, float]] = {}
    for row in values[~values["is_reported"].astype(bool)].to_dict("records"):
        at = f"{row['x']:g}" if isinstance(row["x"], float) else str(row["x"])
        measured.setdefault(f"{prefix}{row['metric']}", {})[f"{row['arm']}, {at}"] = row["value"]
    return measured


def measured_beside_reported(
    points: pd.DataFrame, names: Mixed, mix: str, reported: tuple[Reported, Reported]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measured values, means over seeds, beside reported ones: over the mixes at the highest rate, over rates of `mix`.

    Both have the columns `arm`, `x`, `metric`, `value` and `is_reported`.
    """
    named = pd.DataFrame([names[arm] for arm in points["arm"]], columns=["arm", "mix"], index=points.index)
    keyed = pd.concat([named, points.drop(columns="arm")], axis=1)
    means = keyed.groupby(["arm", "mix", "rate"], sort=False, as_index=False).mean(numeric_only=True)
    at_highest, of_mix = means[means["rate"] == means["rate"].max()], means[means["mix"] == mix]
    return beside_reported(at_highest, "mix", reported[0]), beside_reported(of_mix, "rate", reported[1])


def mix_figures(
    over_mixes: pd.DataFrame, over_rates: pd.DataFrame, rate: float, mix: str, source: str, device: str
) -> dict[str, Drawn]:
    """One over the mixes at `rate` (requests/s), and, if there are several rates, one over them with `mix`."""
    beside = f"one line per arm. Dotted: as reported by {source}."
    drawn = lines_by_arm(over_mixes, "adapters", LABELS, f"{rate_title(rate)}, {device}")
    caption = f"Over the number or the popularity of the adapters, at the highest rate, {beside}"
    figures = {"mixes": (drawn, caption)}
    if not over_rates.empty:
        drawn = lines_by_arm(over_rates, "arrival rate (requests/s)", LABELS, f"adapters: {mix}, {device}")
        figures["rates"] = (drawn, f"Over the arrival rate, {beside}")
    return figures
