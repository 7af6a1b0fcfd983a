"""Fairness between clients by order of service: Fig. 3a and Table 2 of VTC (OSDI 2024)."""

from dataclasses import replace
from functools import partial

import pandas as pd
from typing_extensions import TypedDict, Unpack

from experiments.papers.comparison import read_paper, reported, with_comparison
from experiments.papers.figures import bars_by_case, differences_over_time
from experiments.papers.service import OUTPUT, PROMPT, apart, differences, unfairness
from experiments.papers.workloads import united
from framework.build import MakeTrace
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.study.arguments import Sweep
from framework.study.arms import check_named, parts_of, resolve_arms
from framework.study.auto_rates import Multiples
from framework.study.points import read_record
from framework.study.sweep import Study, run_study

PAPER = "vtc"
OVERLOAD = "-two_clients"  # behind the names of arms in Fig. 3a
SHARES = {"difference_360": 0.6, "difference_600": 1.0}  # of the arrivals' time: of 600 s
BOUND = "bound"
OVER_TIME = (
    "By how much the services of two overloaded clients differ, over the time in which requests come, an arm a line. "
    "Dashed: VTC's bound. Hollow: reported."
)
UNEVEN = "How unevenly the clients are served: the largest and the mean of 19 windows, by arm."
TABLE = "How unevenly the clients are served, by arm"
HELD = "Two overloaded clients: how far their services come apart while both have requests waiting"
DEFINITIONS = {
    "Service": "of a client: its tokens of prompts, and twice its tokens of outputs; a request's is even over the time "
    "from its first token to its last, as the authors' scripts have it",
    "Uneven": "in a window of a tenth of the arrivals' time, for each client the smaller of two gaps, to the client "
    "that is served most and between what it asked for and what it got, in tokens of service per second; summed over "
    "the clients. Of 19 windows",
    "Apart": "largest less smallest difference of the two clients' service, counted with every token and admission, in "
    "the longest time in which both wait",
    "Bound": "2 · max(w_p · L, w_q · M), with w_p = 1 and w_q = 2 what a token of a prompt and of an output counts, L "
    "the longest prompt and M the tokens that the KV cache holds. VTC's proof needs room for all that run to their "
    "ends, as `reservation` max, pow2 or oracle promises it: without one, as in the arm vtc_paged, nothing holds it",
}


class Overload(TypedDict):
    """Fig. 3a: the arms in `only` serve `trace`, of two clients, at multiples of what one of them serves of it."""

    only: list[str]
    trace: MakeTrace
    rates: Multiples


def run(*, only: list[str], overload: Overload, clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay the arms in `only` with the sweep's trace, of many clients, for Table 2, and those of `overload`."""
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": clock})
    check_named("only", only, arms)
    check_named("overload.only", overload["only"], arms)
    check_named("overload.rates.of", [overload["rates"]["of"]], overload["only"])
    two = {name + OVERLOAD: replace(arms[name], trace=overload["trace"]) for name in overload["only"]}
    rates: Multiples = {**overload["rates"], "of": overload["rates"]["of"] + OVERLOAD}
    again: Sweep = {**sweep, "rates": rates}
    study = united([run_study({name: arms[name] for name in only}, sweep), run_study(two, again)])
    finish_sweep(study, PAPER, partial(find, study))
    study.raise_failures()


def find(study: Study, points: pd.DataFrame) -> Findings:
    is_overload = points["arm"].str.endswith(OVERLOAD)
    uneven, lines, held = uneven_rows(study, points[~is_overload]), [], []
    for row in points[is_overload].to_dict("records"):
        requests, name = read(study, row["point"]), row["arm"].removesuffix(OVERLOAD)
        bound = bound_of(study, row["point"], requests)
        over_time = differences(requests, float(requests["arrival_time"].max()))
        lines.append(over_time.assign(arm=name, seed=row["seed"], bound=bound))
        held.append({"arm": name, "seed": row["seed"], "apart": apart(requests, clients_of(requests)), "bound": bound})
    every, table = pd.concat(lines, ignore_index=True), pd.DataFrame(held)
    by_arm = uneven.groupby("arm", sort=False).mean(numeric_only=True)
    figures = {
        "service_difference": (differences_over_time(every, beside_lines()), OVER_TIME),
        "uneven": (bars_by_case(by_arm[["largest", "mean"]].T, "", "uneven service (tokens/s)"), UNEVEN),
    }
    names = {"largest": "uneven, largest (tok/s)", "mean": "uneven, mean (tok/s)", "throughput": "tokens (tok/s)"}
    tables = {TABLE: by_arm.drop(columns="seed").reset_index().rename(columns=names), HELD: held_table(table)}
    files = {"uneven.csv": uneven, "differences.csv": every, "apart.csv": table}
    measured = {**of_overload(every), **{f"uneven_{name}": dict(by_arm[name]) for name in ("largest", "mean")}}
    measured["throughput"] = dict(by_arm["throughput"])
    notes = [f"{arm}: {apart_note(rows)}" for arm, rows in table.groupby("arm", sort=False)]
    return with_comparison(PAPER, measured, Findings(figures, tables, notes, DEFINITIONS, files))


def read(study: Study, point: str) -> pd.DataFrame:
    return pd.read_parquet(study.folder(point) / "requests.parquet")


def clients_of(requests: pd.DataFrame) -> list[str]:
    return sorted(requests["client_id"].unique())


def uneven_rows(study: Study, points: pd.DataFrame) -> pd.DataFrame:
    """One row per point of Table 2; throughput is of tokens of prompts and outputs, to the last of them."""
    rows = []
    for point in points.to_dict("records"):
        requests = read(study, point["point"])
        values = unfairness(requests, float(requests["arrival_time"].max()))
        numbers = {"largest": values.max(), "mean": values.mean(), "throughput": point["total_throughput"]}
        rows.append({"arm": point["arm"], "seed": point["seed"], **numbers})
    return pd.DataFrame(rows)


def bound_of(study: Study, point: str, requests: pd.DataFrame) -> float:
    """VTC's bound on the difference of two clients' services while both wait."""
    record = read_record(study.folder(point))
    assert record is not None  # its tables have been read
    num_tokens = record["engine"]["num_blocks"] * record["engine"]["block_size"]
    return 2 * max(PROMPT * requests["num_prompt_tokens"].max(), OUTPUT * num_tokens)


def of_overload(lines: pd.DataFrame) -> dict[str, dict[str, float]]:
    """What is compared of Fig. 3a: by arm, the largest difference so far, and the bound."""
    measured = {}
    for quantity, share in SHARES.items():
        until = lines[lines["time"] <= share + 1e-9]
        largest = until.groupby(["arm", "seed"], sort=False)["difference"].max().groupby("arm", sort=False).mean()
        measured[quantity] = {**largest, BOUND: lines["bound"].mean()}
    return measured


def beside_lines() -> pd.DataFrame:
    """The reported differences, in bounds: columns `arm`, `time` and `value`."""
    rows = []
    for quantity, share in SHARES.items():
        values = reported(read_paper(PAPER), quantity)
        rows += [{"arm": arm, "time": share, "value": value / values[BOUND]} for arm, value in values.items()]
    table = pd.DataFrame(rows)
    return table[table["arm"] != BOUND]


def held_table(rows: pd.DataFrame) -> pd.DataFrame:
    means = rows.groupby("arm", sort=False)[["apart", "bound"]].mean()
    return means.assign(share=means["apart"] / means["bound"]).rename(columns={"share": "apart ÷ bound"}).reset_index()


def apart_note(rows: pd.DataFrame) -> str:
    share = (rows["apart"] / rows["bound"]).max()
    return f"while both clients wait their services come apart by up to {share:.2g} of the bound"
