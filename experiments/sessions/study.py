"""Conversations of several turns: the time to the first token turn by turn, with and without a prefix cache."""

from functools import partial
from math import inf

import pandas as pd
from typing_extensions import Unpack

from experiments.sessions.figures import over_turns
from framework.measure.intervals import STATISTICS, bootstrap_statistics, statistics
from framework.replay import Clock
from framework.report.finish import Findings, finish_sweep
from framework.report.rate_plots import rate_figures
from framework.report.tables import short, shown_rates
from framework.study.arguments import Sweep
from framework.study.arms import parts_of, resolve_arms
from framework.study.sweep import Study, run_study

MIN_TURNS = 5  # requests of a turn; with fewer it is in turns.csv, and not in tables and figures
COLUMNS = ["refused", "turn", "num_prompt_tokens", "num_cached_tokens", "ttft", "e2e"]
OVER_TURNS = (
    "Left: time to the first token by turn of the session, P50 and P90, a curve per arm, at {}. Right: mean "
    "prompt tokens, and those of them that were computed. Turns with fewer than {} requests are left out."
)
BY_TURN = "By turn of the session, at {}"
DEFINITIONS = {
    "Turn": "the number of a request in its session, from 1; its prompt is the whole conversation so far and new text",
    "Computed": "prompt tokens that were not in the prefix cache when the request was first admitted",
}


def run(*, clock: Clock, **sweep: Unpack[Sweep]) -> None:
    """Replay sessions at every rate of their starts (1/s), or by so many `users`, and look at each turn by itself.

    The first arm is the one that the others are compared with.
    """
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": clock})
    study = run_study(arms, sweep)
    finish_sweep(study, "sessions", partial(find, study))
    study.raise_failures()


def find(study: Study, points: pd.DataFrame) -> Findings:
    turns = by_turn(study, points)
    highest = turns[turns["load"] == turns["load"].max()]
    shown = often_enough(highest)
    title = load_title(points)
    figures, files = rate_figures(study, points), {"turns.csv": turns}
    if shown.empty:
        return Findings(figures, notes=[f"no turn has {MIN_TURNS} requests of every arm at {title}"], files=files)
    figures = {"over_turns": (over_turns(shown), OVER_TURNS.format(title, MIN_TURNS)), **figures}
    tables = {BY_TURN.format(title): turn_table(shown)}
    return Findings(figures, tables, describe_turns(shown), DEFINITIONS, files)


def load_title(points: pd.DataFrame) -> str:
    """The highest load, as it was asked for."""
    load = points["rate"].max()
    if "users" in points:
        return f"users={load:g}"
    return "all at once" if load == inf else f"{short(load)} session starts/s"


def by_turn(study: Study, points: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, load and turn, of the requests of all seeds: how many, their prompts, and latencies (s).

    `load` is the rate or the number of users that was asked for; a turn that was refused is none.
    """
    rows = []
    for (arm, load), group in points.groupby(["arm", "rate"], sort=False):
        files = [study.folder(point) / "requests.parquet" for point in group["point"]]
        requests = pd.concat([pd.read_parquet(file, columns=COLUMNS) for file in files])
        for turn, served in requests[requests["refused"].isna()].groupby("turn"):
            row = {"arm": arm, "load": load, "offered_rate": group["offered_rate"].mean(), "turn": turn}
            means = served[["num_prompt_tokens", "num_cached_tokens"]].mean()
            rows.append(row | {"num_requests": len(served)} | means.to_dict() | latencies(served["ttft"]))
    return pd.DataFrame(rows)


def latencies(seconds: "pd.Series[float]") -> dict[str, float]:
    """TTFT's statistics with their intervals, by column."""
    values = seconds.to_numpy(dtype=float)
    columns: dict[str, float] = {}
    for name, value, low, high in zip(STATISTICS, statistics(values), *bootstrap_statistics(values), strict=True):
        columns |= {f"ttft_{name}": value, f"ttft_{name}_low": low, f"ttft_{name}_high": high}
    return columns


def often_enough(turns: pd.DataFrame) -> pd.DataFrame:
    """The turns of which every arm has at least MIN_TURNS requests."""
    return turns[turns.groupby("turn")["num_requests"].transform("min") >= MIN_TURNS]


def turn_table(turns: pd.DataFrame) -> pd.DataFrame:
    """What `by_turn` made of one load, in milliseconds, and over the first arm."""
    first = turns[turns["arm"] == turns["arm"].iloc[0]].set_index("turn")
    base = first["ttft_p50"].reindex(turns["turn"]).to_numpy()
    return pd.DataFrame(
        {
            "arm": turns["arm"],
            "turn": turns["turn"],
            "requests": turns["num_requests"],
            "rate (req/s)": shown_rates(turns["offered_rate"]).to_numpy(),
            "prompt (tokens)": turns["num_prompt_tokens"],
            "computed (tokens)": turns["num_prompt_tokens"] - turns["num_cached_tokens"],
            "TTFT P50 (ms)": 1e3 * turns["ttft_p50"],
            "TTFT P50 (ms)_low": 1e3 * turns["ttft_p50_low"],
            "TTFT P50 (ms)_high": 1e3 * turns["ttft_p50_high"],
            "TTFT P90 (ms)": 1e3 * turns["ttft_p90"],
            f"P50 ÷ {first['arm'].iloc[0]}": turns["ttft_p50"] / base,
        }
    )


def describe_turns(turns: pd.DataFrame) -> list[str]:
    """Per arm: the median TTFT of the first turn and of the last one that is shown."""
    lines = []
    for arm, rows in turns.groupby("arm", sort=False):
        first, last = rows.iloc[0], rows.iloc[-1]
        if len(rows) > 1:
            times = [f"{short(1e3 * row['ttft_p50'])} ms in turn {row['turn']}" for row in (first, last)]
            num_computed = last["num_prompt_tokens"] - last["num_cached_tokens"]
            lines.append(
                f"{arm}: TTFT P50 {', '.join(times)}, of whose {short(last['num_prompt_tokens'])} prompt tokens "
                f"{short(num_computed)} are computed"
            )
    return lines
