"""What a page shows of arms with several servers: a table with one row per server and the sum, and load over time."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from framework.measure.rates import aggregate, first_too_much
from framework.measure.servers import NUM_TIMES, OF_REQUESTS, OF_STEPS, load_over_time, server_table
from framework.report.plots import GREY, TEXT_WIDTH, Drawn, arm_colour, styled
from framework.report.tables import rate_title
from framework.study.sweep import Study

MAX_SHOWN = 8  # servers of an arm, each with a row and a curve; of more the busiest and the idlest
PANELS_BESIDE = 3
NUM_MEANS = 50  # over as many parts of the run
FIGURE = (
    "Unfinished requests of each server over time, means over fiftieths of the run, at {}, a panel per arm. Of more "
    "than {} servers: the median, and all between the least and the most. What waits at the router counts at the "
    "server that takes it later."
)
TABLE = "Each server, at {}"


def several(points: pd.DataFrame) -> pd.DataFrame:
    """The points of the arms with several servers."""
    return points[points["num_servers"] > 1]


def server_findings(study: Study, points: pd.DataFrame) -> tuple[dict[str, Drawn], dict[str, pd.DataFrame]]:
    """A figure and a table, at the first rate that is too much for some arm, else the highest; none of single servers.

    They are of each arm's first seed, at that rate or the nearest to it that the arm has a point of.
    """
    clusters = several(points)
    if clusters.empty:
        return {}, {}
    rate = first_too_much(aggregate(clusters))
    tables, loads, offered = {}, {}, []
    for arm, rows in clusters.groupby("arm", sort=False):
        nearest = rows.loc[[(rows["rate"] - rate).abs().fillna(0.0).idxmin()]].iloc[0]
        folder, num_servers = study.folder(nearest["point"]), int(nearest["num_servers"])
        requests = pd.read_parquet(folder / "requests.parquet", columns=[*OF_REQUESTS])
        steps = pd.read_parquet(folder / "steps.parquet", columns=[*OF_STEPS])
        tables[str(arm)] = server_table(requests, steps, num_servers)
        times = np.linspace(requests["arrival_time"].min(), requests["finish_time"].max(), NUM_TIMES)
        loads[str(arm)] = in_parts(load_over_time(requests, num_servers, times))
        offered.append(nearest["offered_rate"])
    title = f"users={rate:g}" if "users" in points else range_title(offered)
    figures = {"servers": (loads_over_time(loads), FIGURE.format(title, MAX_SHOWN))}
    return figures, {TABLE.format(title): shown_servers(tables)}


def in_parts(loads: pd.DataFrame) -> pd.DataFrame:
    """Means over NUM_MEANS parts, each at its first time."""
    length = len(loads) // NUM_MEANS
    means = loads.groupby(np.arange(len(loads)) // length).mean()
    return means.set_index(loads.index[::length])


def range_title(rates: list[float]) -> str:
    """What was offered (1/s), from the lowest to the highest of the arms'."""
    low, high = rate_title(min(rates)), rate_title(max(rates))
    return low if low == high else f"{low} to {high}"


def shown_servers(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Per arm, the rows of `server_table` and their sum; of more than MAX_SHOWN servers the busiest and the idlest."""
    has_hits = any(table["num_cached_tokens"].any() for table in tables.values())
    return pd.concat([rows_of(arm, table, has_hits) for arm, table in tables.items()], ignore_index=True)


def rows_of(arm: str, table: pd.DataFrame, has_hits: bool) -> pd.DataFrame:
    names = [str(server) for server in table.index]
    rows = table.assign(of_mean=table["busy"] / table["busy"].mean())
    if len(table) > MAX_SHOWN:
        rows = rows.sort_values("busy", ascending=False, kind="stable").iloc[[0, -1]]
        names = [f"{server} ({which})" for server, which in zip(rows.index, ("busiest", "idlest"), strict=True)]
    sums = table.sum().drop(["ttft_p50", "ttft_p99"])
    rows = pd.concat([rows, sums.to_frame().T])
    tokens = {"prompt tokens": "num_prompt_tokens", "output tokens": "num_output_tokens"}
    shown = {"arm": arm, "server": [*names, f"all {len(table)}"], "requests": whole(rows["num_requests"])}
    shown |= {header: whole(rows[column]) for header, column in tokens.items()}
    if has_hits:
        shown["prefix hits (%)"] = (100 * rows["num_cached_tokens"] / rows["num_prompt_tokens"]).to_numpy()
    shown |= {"busy (s)": rows["busy"].to_numpy(), "busy ÷ mean": rows["of_mean"].to_numpy()}
    latencies = {"TTFT P50 (ms)": "ttft_p50", "TTFT P99 (ms)": "ttft_p99"}
    return pd.DataFrame(shown | {header: 1e3 * rows[column].to_numpy() for header, column in latencies.items()})


def whole(values: "pd.Series[float]") -> list[int]:
    return [int(value) for value in values]


@styled
def loads_over_time(loads: dict[str, pd.DataFrame]) -> Figure:
    """Of tables as `load_over_time` makes them, by arm: a small panel each, on one scale."""
    num_columns = 2 if len(loads) == 4 else min(len(loads), PANELS_BESIDE)
    num_rows = -(-len(loads) // num_columns)
    figure = Figure(figsize=(TEXT_WIDTH * num_columns / PANELS_BESIDE, 1.5 * num_rows + 0.4))
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
    for axes, (arm, table) in zip(panels.flat, loads.items(), strict=False):
        draw_loads(axes, table)
        axes.set(title=arm)
    for axes in list(panels.flat)[len(loads) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("unfinished")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True, nbins=4))
    for index in range(num_columns):
        below = list(panels.flat)[len(loads) - num_columns + index]
        below.set_xlabel("time (s)")
        below.tick_params(labelbottom=True)
    return figure


def draw_loads(axes: Axes, table: pd.DataFrame) -> None:
    if len(table.columns) > MAX_SHOWN:
        axes.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=arm_colour(0), alpha=0.3, lw=0)
        axes.step(table.index, table.median(axis=1), where="post", color=GREY, linewidth=0.8)
        return
    for index, server in enumerate(table):
        axes.step(table.index, table[server], where="post", color=arm_colour(index), linewidth=0.7)
