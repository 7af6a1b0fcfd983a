"""What KV memory holds by allocation policy, and how many requests run in it (vLLM, SOSP 2023; Orca, OSDI 2022)."""

from functools import partial

import pandas as pd
from typing_extensions import Unpack

from experiments.allocation.figures import memory_over_time, memory_shares, running_requests
from experiments.allocation.tables import MEMORY, cost_table, describe, memory_rows, memory_table
from framework.measure.rates import offered_at
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.report.rate_plots import rate_figures
from framework.report.tables import rate_title
from framework.study.arguments import Sweep
from framework.study.arms import parts_of, resolve_arms
from framework.study.sweep import Study, read_tables, representative_points, run_study

SHARES = "What the slots of the KV cache hold by arm, mean over the time until the last request is admitted, {}."
RUNNING = "Running requests by arm, mean over the same time."
OVER_TIME = "What the slots of the KV cache hold over time, {}, a panel per arm."
DEFINITIONS = {
    "Tokens": "slots whose keys and values are there; shared ones count once",
    "Reserved": "slots in a request's blocks for tokens that come later",
    "Lost": "slots in a request's blocks that no token will ever take",
    "Cached": "slots in free blocks whose contents a prefix cache keeps",
    "Free": "slots in blocks that hold nothing",
    "Running": "requests in a step, mean weighted by the steps' time, until the last request is admitted",
}


def run(*, clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay the trace with every arm and look into its KV cache; the others are compared with the first arm."""
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": clock})
    study = run_study(arms, sweep)
    finish_sweep(study, "allocation", partial(find, study))
    study.raise_failures()


def find(study: Study, points: pd.DataFrame) -> Findings:
    rows = memory_rows(study, points)
    rate = points["rate"].max()
    at_rate, title = rows[rows["rate"] == rate].reset_index(drop=True), rate_title(offered_at(points, rate))
    steps = read_tables(representative_points(study, points, rate), "steps.parquet", columns=MEMORY)
    figures = {
        "memory_shares": (memory_shares(at_rate, {}), SHARES.format(title)),
        "running_requests": (running_requests(at_rate, {}), RUNNING),
        "memory_over_time": (memory_over_time(one_server(steps), title), OVER_TIME.format(title)),
    }
    first = str(rows["arm"].iloc[0])
    tables = {"What KV memory holds": memory_table(rows), "Preemptions and what they cost": cost_table(rows, first)}
    return Findings(figures | rate_figures(study, points), tables, describe(rows), DEFINITIONS, {"memory.csv": rows})


def one_server(steps: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Of an arm with several servers, the first."""
    return {arm: table[table["server"] == 0] for arm, table in steps.items()}
