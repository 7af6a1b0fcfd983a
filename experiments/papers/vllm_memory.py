"""What KV memory holds by allocation policy, and how many requests run in it: Fig. 2 and 13a of vLLM (SOSP 2023)."""

from functools import partial

import pandas as pd
from typing_extensions import Unpack

from experiments.allocation.figures import memory_shares, running_requests
from experiments.allocation.tables import cost_table, describe, memory_rows, memory_table
from experiments.papers.comparison import read_paper, reported, with_comparison
from experiments.papers.workloads import Cases, Workloads, over_workloads, split_cases
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.report.plots import Drawn
from framework.study.arguments import Sweep
from framework.study.arms import parts_of, resolve_arms
from framework.study.sweep import Study, run_study

PAPER = "vllm_memory"
SHARES = "What the slots of the KV cache hold by arm with {}'s lengths, mean over the time until the last request is "
RUNNING = "Running requests by arm with {}'s lengths, mean over the same time. Hollow: reported."


def run(*, workloads: Workloads, clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay every arm with the lengths of every workload and look into its KV cache.

    Ratios are to the first arm.
    """
    arms, cases = over_workloads(resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": clock}), workloads)
    study = run_study(arms, sweep)
    finish_sweep(study, PAPER, partial(find, study, cases))
    study.raise_failures()


def find(study: Study, cases: Cases, points: pd.DataFrame) -> Findings:
    rows = split_cases(memory_rows(study, points), cases)
    figures: dict[str, Drawn] = {}
    tables, notes, measured = {}, [], {}
    for workload, of_workload in rows.groupby("workload", sort=False):
        own = of_workload.reset_index(drop=True)
        figures |= memory_figures(own, str(workload))
        tables[f"What KV memory holds, {workload}"] = memory_table(own)
        tables[f"Preemptions and what they cost, {workload}"] = cost_table(own, str(own["arm"].iloc[0]))
        notes += [f"{workload}, {line}" for line in describe(own)]
        by_arm = own.set_index("arm")
        measured[f"tokens_{workload}"] = dict(100 * by_arm["tokens"])
        measured[f"running_{workload}"] = dict(by_arm["running"])
    quantities = read_paper(PAPER)["quantities"]
    measured = {name: values for name, values in measured.items() if name in quantities}
    return with_comparison(PAPER, measured, Findings(figures, tables, notes, files={"memory.csv": rows}))


def memory_figures(rows: pd.DataFrame, workload: str) -> dict[str, Drawn]:
    """The two of one workload, with what is reported of it."""
    paper = read_paper(PAPER)
    beside: dict[str, dict[str, float]] = {}
    for quantity in ("tokens", "running"):
        name = f"{quantity}_{workload}"
        for arm, value in (reported(paper, name) if name in paper["quantities"] else {}).items():
            beside.setdefault(arm, {})[quantity] = value
    has_tokens = any("tokens" in values for values in beside.values())
    dotted = "admitted. Dotted: the share of tokens that is reported." if has_tokens else "admitted."
    return {
        f"memory_shares_{workload}": (memory_shares(rows, beside), SHARES.format(workload) + dotted),
        f"running_requests_{workload}": (running_requests(rows, beside), RUNNING.format(workload)),
    }
