"""Arms times workloads: every arm on several traces, each pair an arm of the sweep; several sweeps in one folder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from framework.config import check_keywords, with_keywords
from framework.study.arms import Arm
from framework.study.sweep import Study

Workloads = dict[str, dict[str, Any]]  # name → keywords of the trace that it changes
Cases = dict[str, tuple[str, str]]  # name of an arm under a workload → arm, workload


def over_workloads(arms: Mapping[str, Arm], workloads: Workloads) -> tuple[dict[str, Arm], Cases]:
    """Every arm with every workload, and what each of these is made of; ValueError for what a trace does not take."""
    cases = {f"{arm}-{workload}": (arm, workload) for arm in arms for workload in workloads}
    made = {}
    for name, (arm, workload) in cases.items():
        check_keywords(arms[arm].trace.func, workloads[workload], f"workloads.{workload}")
        made[name] = replace(arms[arm], trace=with_keywords(arms[arm].trace, **workloads[workload]))
    return made, cases


def split_cases(rows: pd.DataFrame, cases: Cases) -> pd.DataFrame:
    """The same rows, with `arm` as it was and the column `workload` behind it."""
    named = [cases[name] for name in rows["arm"]]
    split = rows.assign(arm=[arm for arm, _ in named])
    split.insert(list(split).index("arm") + 1, "workload", [workload for _, workload in named])
    return split


def united(studies: Sequence[Study]) -> Study:
    """Several studies in one folder, no two with an arm of the same name, as one."""
    first, *others = studies
    for other in others:
        first = replace(
            first,
            arms=first.arms | other.arms,
            arm_digests=first.arm_digests | other.arm_digests,
            environments=first.environments | other.environments,
            failures=first.failures | other.failures,
        )
    return first
