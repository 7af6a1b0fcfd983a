"""A replay's tables → its numbers. All are in METRICS: columns, pages, console, definitions and docs follow from it.

Times are in seconds, rates per second. A point's row has every metric of the whole run, the 95% intervals of those that
have one, and as `steady_…` those of the steady window.
"""

import numpy as np
import pandas as pd

from framework.measure.clients import jain_over_time, service_over_time
from framework.measure.intervals import (
    STATISTICS,
    Bounds,
    Values,
    bootstrap_pooled,
    bootstrap_statistics,
    gap_statistics,
    statistics,
)
from framework.measure.metric import (
    COUNT,
    HOURS,
    MILLISECONDS,
    REQUESTS_PER_SECOND,
    SECONDS,
    SHARE,
    TOKENS_PER_SECOND,
    Metric,
)
from framework.measure.servers import imbalance, imbalance_of_load
from framework.measure.slo import check_slo, values_of
from framework.measure.window import Window

STEP_COLUMNS = ("start_time", "elapsed", "num_seqs", "server")  # that metrics read
# Of a run in MLPerf's server scenario; the requests are those of an early stop at P99
MLPERF_SECONDS, MLPERF_REQUESTS = 600, 662


def latency(
    name: str, label: str, definition: str, *, short: str = "", num_statistics: int = len(STATISTICS)
) -> Metric:
    """A latency that each request has once."""

    def sample(window: Window) -> Values:
        return values_of(window.offered, name).dropna().to_numpy(dtype=float)

    return Metric(
        name, label, MILLISECONDS, definition,
        lambda window: statistics(sample(window)), lambda window: bootstrap_statistics(sample(window)),
        statistics=STATISTICS[:num_statistics], short=short,
    )  # fmt: skip


def token_gaps(window: Window) -> Values:
    return gap_statistics(list(window.offered["token_times"]))


def gap_bounds(window: Window) -> Bounds:
    """The gaps of a request depend on each other: whole requests are drawn, not gaps."""
    return bootstrap_pooled(list(window.offered["token_times"]))


def user_speeds(window: Window) -> Values:
    """Output tokens per second of each request, from its first token on."""
    return 1 / window.offered["tpot"].replace(0.0, float("nan")).dropna().to_numpy(dtype=float)


def gpu_hours(window: Window) -> float:
    num_tokens = window.num_output_tokens
    return window.num_servers * window.duration / 3600 / num_tokens * 1e6 if num_tokens else float("nan")


def client_fairness(window: Window) -> float:
    index = jain_over_time(service_over_time(window.requests, window.start, window.end))
    return float(index.mean()) if index.notna().any() else float("nan")


def is_long_enough(window: Window) -> int:
    return int(window.duration >= MLPERF_SECONDS and window.num_completed >= MLPERF_REQUESTS)


def mean_batch_size(window: Window) -> float:
    steps = window.started_steps
    is_measured = steps["elapsed"].sum() > 0
    return float(np.average(steps["num_seqs"], weights=steps["elapsed"])) if is_measured else float("nan")


def prefix_hits(window: Window) -> float:
    served = window.offered[window.offered["scheduled_time"].notna()]
    num_tokens = served["num_prompt_tokens"].sum()
    return float(served["num_cached_tokens"].sum() / num_tokens) if num_tokens else float("nan")


def waiting_growth(requests: pd.DataFrame) -> float:
    """A rate x times what a server can do makes it x − 1, a lower one 0; infinite where all arrive at once."""
    ordered = requests.sort_values("arrival_time")
    arrival_time = ordered["arrival_time"].to_numpy()
    waiting = ordered["scheduled_time"].to_numpy() - arrival_time
    third = max(len(ordered) // 3, 1)
    elapsed = arrival_time[-third:].mean() - arrival_time[:third].mean()
    return float((waiting[-third:].mean() - waiting[:third].mean()) / elapsed) if elapsed > 0 else float("inf")


def sustained_throughput(requests: pd.DataFrame) -> float:
    """Neither warm-up nor drain touches it."""
    start, end = requests["finish_time"].quantile([0.1, 0.9])
    return float(0.8 * (len(requests) - 1) / (end - start)) if end > start else float("inf")


METRICS = (
    Metric(
        "num_requests", "requests offered", COUNT, "requests of the trace, those included that the arm refuses",
        lambda window: len(window.requests), is_of_run=True,
    ),
    Metric(
        "num_completed", "requests completed", COUNT, "requests whose last token came",
        lambda window: int(window.requests["finish_time"].notna().sum()), is_of_run=True,
    ),
    Metric(
        "num_refused", "requests refused", COUNT,
        "requests that the arm can never serve: offered, and their SLOs not met; they have no latency",
        lambda window: int(window.requests["refused"].notna().sum()), is_of_run=True,
    ),
    Metric(
        "duration_s", "duration of the run", SECONDS,
        "first arrival → last completion, or last refusal if that is later",
        lambda window: window.duration,
    ),
    Metric(
        "request_throughput", "request throughput", REQUESTS_PER_SECOND, "requests completed / duration of the run",
        lambda window: window.num_completed / window.duration, short="done",
    ),
    Metric(
        "output_throughput", "output throughput", TOKENS_PER_SECOND, "output tokens / duration of the run",
        lambda window: window.num_output_tokens / window.duration, short="output",
    ),
    Metric(
        "total_throughput", "total throughput", TOKENS_PER_SECOND,
        "output tokens, and those of the prompts whose first token appeared, / duration of the run",
        lambda window: (window.num_output_tokens + window.num_prompt_tokens) / window.duration,
    ),
    Metric(
        "output_throughput_per_gpu", "output throughput per GPU", TOKENS_PER_SECOND,
        "output throughput / servers, each of which has a device of its own",
        lambda window: window.num_output_tokens / window.duration / window.num_servers,
    ),
    Metric(
        "user_speed", "speed per user", TOKENS_PER_SECOND,
        "1 / TPOT: output tokens per second that a request sees from its first token on",
        lambda window: statistics(user_speeds(window)), lambda window: bootstrap_statistics(user_speeds(window)),
        statistics=STATISTICS[:2],
    ),
    Metric(
        "gpu_hours_per_million_tokens", "GPU hours per million tokens", HOURS,
        "duration of the run × servers / output tokens × 10⁶; price_per_gpu_hour makes a cost of it",
        gpu_hours,
    ),
    latency("ttft", "TTFT", "time to first token: arrival → first token, queueing included"),
    latency(
        "tpot", "TPOT",
        "time per output token: (E2E − TTFT) / (output tokens − 1), per request; undefined for one-token outputs",
    ),
    Metric(
        "itl", "ITL", MILLISECONDS, "inter-token latency: every gap between consecutive tokens of a request, pooled",
        token_gaps, gap_bounds, statistics=STATISTICS,
    ),
    latency("scheduling_delay", "scheduling delay", "arrival → first step that it is part of"),
    latency("e2e", "E2E", "end to end: arrival → last token"),
    latency(
        "normalized_latency", "normalized latency", "E2E / output tokens", short="norm.\nlatency", num_statistics=2,
    ),
    Metric(
        "slo_attainment", "SLO met", SHARE,
        "requests that keep every SLO (service-level objective: a limit on a latency) / requests offered",
        lambda window: window.num_met / len(window.offered) if len(window.offered) else float("nan"),
        lambda window: bootstrap_statistics(window.is_met.to_numpy(dtype=float)),
    ),
    Metric(
        "goodput", "goodput", REQUESTS_PER_SECOND, "requests that meet every SLO, per second",
        lambda window: window.num_met / window.duration,
    ),
    Metric(
        "good_throughput", "good tokens", TOKENS_PER_SECOND,
        "output tokens of the requests that meet every SLO, per second",
        lambda window: window.num_good_tokens / window.duration,
    ),
    Metric(
        "mean_batch_size", "mean batch", COUNT, "sequences per step, weighted by the steps' time", mean_batch_size,
    ),
    Metric(
        "num_preemptions", "preemptions", COUNT, "how often running sequences gave their KV blocks back",
        lambda window: int(window.offered["num_preemptions"].sum()),
    ),
    Metric(
        "num_swaps", "swaps", COUNT,
        "preemptions whose KV blocks were copied to the host; after the others all tokens are computed again",
        lambda window: int(window.offered["num_swaps"].sum()),
    ),
    Metric(
        "prefix_hits", "prefix hits", SHARE,
        "prompt tokens that the prefix cache had when their request was first admitted / prompt tokens of all requests "
        "that were; 0 without a cache",
        prefix_hits,
    ),
    Metric(
        "waiting_growth", "growth of waiting", COUNT,
        "by how many seconds waiting (arrival → first step) grows per second, from the first third of the arrivals to "
        "the last; infinite where all come at once",
        lambda window: waiting_growth(window.served), is_of_run=True,
    ),
    Metric(
        "sustained_throughput", "sustained throughput", REQUESTS_PER_SECOND,
        "requests per second of the middle 80% of completions",
        lambda window: sustained_throughput(window.served), is_of_run=True,
    ),
    Metric(
        "client_fairness", "fairness of clients", COUNT,
        "Jain's index of the clients' service (prompt tokens, and twice the output tokens) in 20 equal parts of the "
        "run, mean over the parts; over those that had something to serve, where there are two",
        client_fairness, is_of_run=True,
    ),
    Metric(
        "is_long_enough", "long enough", COUNT,
        f"1 where a run lasts at least {MLPERF_SECONDS} s and at least {MLPERF_REQUESTS} requests complete, as "
        "MLPerf's server scenario asks of a valid one; else 0",
        is_long_enough, is_of_run=True,
    ),
    Metric(
        "num_servers", "servers", COUNT, "servers, each of which has a device of its own",
        lambda window: window.num_servers, is_of_run=True,
    ),
    Metric(
        "imbalance_requests", "imbalance of requests", COUNT,
        "requests that the server with the most took / their mean over the servers; none of one server",
        lambda window: imbalance(window.servers["num_requests"]),
    ),
    Metric(
        "imbalance_tokens", "imbalance of tokens", COUNT,
        "the same of their tokens: those of prompts that were not in a prefix cache, and of outputs",
        lambda window: imbalance(window.servers["num_computed_tokens"]),
    ),
    Metric(
        "imbalance_busy", "imbalance of busy time", COUNT, "the same of the time of each server's steps",
        lambda window: imbalance(window.servers["busy"]),
    ),
    Metric(
        "imbalance_load", "imbalance of load", COUNT,
        "the most unfinished requests (arrival → last token) of a server at a time, mean over time, / their mean over "
        "time and servers",
        lambda window: imbalance_of_load(window.served, window.num_servers, window.start, window.end),
    ),
)  # fmt: skip
METRIC_OF = {column: metric for metric in METRICS for column in metric.columns}


def metric_names() -> list[str]:
    """The columns of one window, in the order of `points.csv`."""
    return [column for metric in METRICS if not metric.is_of_run for column in metric.columns]


def summarize(
    requests: pd.DataFrame,
    steps: pd.DataFrame,
    slo: dict[str, float],
    warmup_fraction: float = 0.1,
    num_servers: int = 1,
) -> dict[str, float]:
    """All numbers of one point of so many servers, by column: the whole run, its intervals, and the steady window."""
    check_slo(slo)
    steps = steps[steps.columns.intersection(STEP_COLUMNS)]  # each window copies its own
    requests = requests.drop(columns="token_ids", errors="ignore")
    first_arrival, last_arrival = requests["arrival_time"].min(), requests["arrival_time"].max()
    end_time = requests["finish_time"].fillna(requests["arrival_time"].where(requests["refused"].notna()))
    run = Window(requests, steps, slo, first_arrival, end_time.max(), num_servers)
    steady_start = first_arrival + warmup_fraction * (last_arrival - first_arrival)
    steady = Window(requests, steps, slo, steady_start, last_arrival, num_servers)
    numbers: dict[str, float] = {}
    for metric in METRICS:
        numbers |= metric.values(run)
    for metric in METRICS:
        numbers |= metric.interval(run)
    for metric in METRICS:
        if not metric.is_of_run:
            numbers |= {f"steady_{column}": value for column, value in metric.values(steady).items()}
    return numbers
