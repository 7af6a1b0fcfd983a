"""Capacity: the highest arrival rate of every arm at which its SLOs hold, with an interval, from a search."""

import pandas as pd
from typing_extensions import Unpack

from framework.measure.capacity import Search
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.report.rate_plots import rate_figures
from framework.study.arguments import Traffic, Varied
from framework.study.arms import parts_of, resolve_arms
from framework.study.sweep import run_search


class Searched(Traffic, Varied):
    """What the study takes beside its own keys."""


def run(*, clock: Clock, search: Search, **traffic: Unpack[Searched]) -> None:
    """Search for the capacity of every arm under the `slo`: a search probes one rate after the other."""
    arms = resolve_arms(traffic["arms"], parts_of(traffic) | {"clock": clock})
    study = run_search(arms, traffic, search)

    def find(points: pd.DataFrame) -> Findings:
        return Findings(rate_figures(study, points))

    finish_sweep(study, "capacity", find)
    study.raise_failures()
