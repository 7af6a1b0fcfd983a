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
from framework.build import MakeScheduler
from framework.config import suggest, with_keywords
from framework.measure.fairness import DEFINITIONS
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.report.plots import Drawn
from framework.report.tables import rate_title
from framework.study.arms import check_named, parts_of, resolve_arms
from framework.study.sweep import Study, Sweep, run_study
from framework.trace.popularity import Law

Mixed = dict[str, tuple[str, str]]  # name of an arm under a mix → arm, mix


def run(
    *,
    only: list[str] | None,
    mixes: dict[str, Law],
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
    check_named("only", only or [], arms)
    chosen = {arm: arms[arm] for arm in arms if only is None or arm in only}
    variants = resolve_arms(chosen, parts_of(sweep) | {"scheduler": scheduler, "clock": clock})
    names = {f"{arm}-{mix}": (arm, mix) for arm in variants for mix in mixes}
    mixed = {
        name: replace(variants[arm], trace=with_keywords(variants[arm].trace, adapters=mixes[mix]))
        for name, (arm, mix) in names.items()
    }
    study = run_study(mixed, sweep)
    reported = (reported_over_mixes, reported_over_rates)
    finish_sweep(study, "adapter_mixes", partial(find, study, names, mix_over_rates, reported, source))
    study.raise_failures()


def find(
    study: Study, names: Mixed, mix: str, reported: tuple[Reported, Reported], source: str, points: pd.DataFrame
) -> Findings:
    over_mixes, over_rates = measured_beside_reported(points, names, mix, reported)
    adapters = adapter_rows(study, points)
    return Findings(
        figures=mix_figures(over_mixes, over_rates, points["rate"].max(), mix, source, study.device_name),
        tables=mix_tables(over_mixes, over_rates, points["rate"].max(), mix) | {FAIRNESS: fairness_table(adapters)},
        notes=reference_notes(
            {names[name][0]: arm.lora for name, arm in study.arms.items() if not arm.is_modelled}, study.device
        ),
        definitions=DEFINITIONS,
        files={"adapters.csv": adapters},
    )


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
