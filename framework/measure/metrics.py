"""Records → tables → numbers, as pure functions. Times in seconds, rates per second.

TTFT: arrival → first token. TPOT: (E2E − TTFT)/(n_out − 1), undefined for one-token outputs. ITL: every gap between
consecutive tokens of a request, pooled. E2E: arrival → last token; normalized latency: E2E / n_out.
"""

from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
import pandas as pd

from framework.core import Sequence, Step
from framework.measure.intervals import STATISTICS, Values, bootstrap_pooled, bootstrap_statistics, statistics

LATENCIES = ("ttft", "tpot", "itl", "e2e")
SLO_METRICS = ("ttft", "tpot", "e2e", "normalized_latency")


def request_table(sequences: Iterable[Sequence]) -> pd.DataFrame:
    """One row per request: the trace's facts, its timestamps (s) and the latencies (s) that follow from them."""
    rows = [
        {
            "request_id": sequence.request.request_id,
            "adapter_id": sequence.request.adapter_id,
            "session_id": sequence.request.session_id,
            "priority": sequence.request.priority,
            "arrival_time": sequence.request.arrival_time,
            "num_prompt_tokens": sequence.request.num_prompt_tokens,
            "num_output_tokens": len(sequence.output_token_ids),
            "scheduled_time": sequence.scheduled_time,
            "first_token_time": sequence.token_times[0] if sequence.token_times else np.nan,
            "finish_time": sequence.token_times[-1] if sequence.is_finished else np.nan,
            "num_preemptions": sequence.num_preemptions,
            "adapter_load_wait": sequence.adapter_load_wait,
            "token_times": np.asarray(sequence.token_times),
        }
        for sequence in sequences
    ]
    table = pd.DataFrame(rows).astype({"scheduled_time": float})
    table["ttft"] = table["first_token_time"] - table["arrival_time"]
    table["e2e"] = table["finish_time"] - table["arrival_time"]
    later_tokens = (table["num_output_tokens"] - 1).where(table["num_output_tokens"] > 1)
    table["tpot"] = (table["finish_time"] - table["first_token_time"]) / later_tokens
    table["normalized_latency"] = table["e2e"] / table["num_output_tokens"]
    return table


def step_table(steps: Iterable[Step]) -> pd.DataFrame:
    """One row per step, with the fields of `Step`."""
    return pd.DataFrame([asdict(step) for step in steps])


def summarize(
    requests: pd.DataFrame, steps: pd.DataFrame, slo: dict[str, float], warmup_fraction: float = 0.1
) -> dict[str, float]:
    """All numbers of one point: whole run, 95% intervals (`…_low`, `…_high`), steady window (`steady_…`)."""
    check_slo(slo)
    first_arrival, last_arrival = requests["arrival_time"].min(), requests["arrival_time"].max()
    whole = window_metrics(requests, steps, slo, first_arrival, requests["finish_time"].max())
    steady_start = first_arrival + warmup_fraction * (last_arrival - first_arrival)
    steady = window_metrics(requests, steps, slo, steady_start, last_arrival)
    counts = {"num_requests": len(requests), "num_completed": int(requests["finish_time"].notna().sum())}
    return (
        counts
        | whole
        | {"waiting_growth": waiting_growth(requests), "sustained_throughput": sustained_throughput(requests)}
        | intervals(requests, slo)
        | {f"steady_{name}": value for name, value in steady.items()}
    )


def window_metrics(
    requests: pd.DataFrame, steps: pd.DataFrame, slo: dict[str, float], start: float, end: float
) -> dict[str, float]:
    """Throughput counts what completes in [start, end]; latency and attainment are of the requests that arrive in it.

    A prompt counts when its first token appears. The mean batch size is weighted by the time of the steps.
    """
    duration = end - start
    if not duration > 0:  # all requests arrive at once: there is no steady window
        return dict.fromkeys(metric_names(), float("nan"))
    token_times = np.concatenate(list(requests["token_times"]))
    num_finished = int(requests["finish_time"].between(start, end).sum())
    num_output_tokens = int(((token_times >= start) & (token_times <= end)).sum())
    num_prompt_tokens = int(requests.loc[requests["first_token_time"].between(start, end), "num_prompt_tokens"].sum())
    offered = requests[requests["arrival_time"].between(start, end)]
    num_meeting_slo = int(meets_slo(offered, slo).sum())
    steps_inside = steps[steps["start_time"].between(start, end)]
    metrics = {
        "duration_s": duration,
        "request_throughput": num_finished / duration,
        "output_throughput": num_output_tokens / duration,
        "total_throughput": (num_output_tokens + num_prompt_tokens) / duration,
    }
    for latency in LATENCIES:
        values = latency_values(offered, latency)
        metrics |= {f"{latency}_{name}": value for name, value in zip(STATISTICS, statistics(values), strict=True)}
    normalized = latency_values(offered, "normalized_latency")
    return metrics | {
        "normalized_latency_mean": float(statistics(normalized)[0]),
        "normalized_latency_p50": float(statistics(normalized)[1]),
        "slo_attainment": num_meeting_slo / len(offered) if len(offered) else float("nan"),
        "goodput": num_meeting_slo / duration,
        "mean_batch_size": float(np.average(steps_inside["num_seqs"], weights=steps_inside["elapsed"]))
        if steps_inside["elapsed"].sum() > 0
        else float("nan"),
        "num_preemptions": int(offered["num_preemptions"].sum()),
    }


def metric_names() -> list[str]:
    """The metrics of one window, in the order of the columns of `points.csv`."""
    return [
        "duration_s",
        "request_throughput",
        "output_throughput",
        "total_throughput",
        *(f"{latency}_{statistic}" for latency in LATENCIES for statistic in STATISTICS),
        "normalized_latency_mean",
        "normalized_latency_p50",
        "slo_attainment",
        "goodput",
        "mean_batch_size",
        "num_preemptions",
    ]


def latency_values(requests: pd.DataFrame, latency: str) -> Values:
    """The defined values (s) of one latency, one per request, or per gap for `itl`."""
    if latency == "itl":
        gaps = [np.diff(times) for times in requests["token_times"]]
        return np.concatenate(gaps) if gaps else np.empty(0)
    return requests[latency].dropna().to_numpy(dtype=float)


def intervals(requests: pd.DataFrame, slo: dict[str, float]) -> dict[str, float]:
    """Percentile-bootstrap intervals (Efron 1979) of attainment and of every latency statistic, drawing requests.

    The gaps of a request depend on each other, so for ITL whole requests are drawn, not gaps.
    """
    bounds: dict[str, float] = {}
    for latency in ("ttft", "tpot", "e2e", "normalized_latency"):
        low, high = bootstrap_statistics(latency_values(requests, latency))
        bounds |= named_bounds(latency, low, high)
    bounds |= named_bounds("itl", *bootstrap_pooled(list(requests["token_times"])))
    names = metric_names()
    low, high = bootstrap_statistics(meets_slo(requests, slo).to_numpy(dtype=float))
    attainment = {"slo_attainment_low": float(low[0]), "slo_attainment_high": float(high[0])}  # the mean's
    return {name: bound for name, bound in bounds.items() if name.rpartition("_")[0] in names} | attainment


def named_bounds(latency: str, low: Values, high: Values) -> dict[str, float]:
    bounds = {}
    for index, statistic in enumerate(STATISTICS):
        bounds[f"{latency}_{statistic}_low"] = float(low[index])
        bounds[f"{latency}_{statistic}_high"] = float(high[index])
    return bounds


def check_slo(slo: dict[str, float]) -> None:
    for metric, limit in slo.items():
        if metric not in SLO_METRICS:
            raise ValueError(f"unknown SLO metric {metric!r}; allowed: {', '.join(SLO_METRICS)}")
        if limit is None or not limit > 0:
            raise ValueError(f"the SLO for {metric} must be a positive number of seconds, not {limit}")


def meets_slo(requests: pd.DataFrame, slo: dict[str, float]) -> "pd.Series[bool]":
    """Finished, and within every limit (s); an undefined TPOT (one-token output) breaks no limit."""
    met = requests["finish_time"].notna()
    for metric, limit in slo.items():
        met &= ~(requests[metric] > limit)
    return met


def waiting_growth(requests: pd.DataFrame) -> float:
    """By how many seconds waiting (arrival → first step) grows per second: the last third of arrivals over the first.

    A rate x times what a server can do makes it x − 1, a lower one 0; infinite where all arrive at once.
    """
    ordered = requests.sort_values("arrival_time")
    arrival_time = ordered["arrival_time"].to_numpy()
    waiting = ordered["scheduled_time"].to_numpy() - arrival_time
    third = max(len(ordered) // 3, 1)
    elapsed = arrival_time[-third:].mean() - arrival_time[:third].mean()
    return float((waiting[-third:].mean() - waiting[:third].mean()) / elapsed) if elapsed > 0 else float("inf")


def sustained_throughput(requests: pd.DataFrame) -> float:
    """Completions per second (1/s) of the middle 80% of requests, which neither warm-up nor drain touches."""
    start, end = requests["finish_time"].quantile([0.1, 0.9])
    return float(0.8 * (len(requests) - 1) / (end - start)) if end > start else float("inf")
