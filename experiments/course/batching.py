"""Lesson 2: throughput and latency per token of padded batches over the batch size, and what binds them."""

from dataclasses import asdict
from itertools import cycle, islice
from math import inf

import pandas as pd
from typing_extensions import Unpack

from experiments.course.figures import batch_tradeoff
from framework.build import ChangeModel, Decoder, make_engine_for, replay_trace
from framework.checks import whole
from framework.config import describe, with_keywords
from framework.contracts import Engine
from framework.core import Batch, Request, Sequence
from framework.engine.measured import measured
from framework.measure.ceilings import Ceilings, limits
from framework.measure.floors import Costs, Work, model_costs, step_work
from framework.measure.steps import Say, ceilings_for
from framework.models.tokenizer import load_tokenizer
from framework.report.finish import Findings, finish
from framework.report.tables import in_units
from framework.scheduler.static import StaticScheduler
from framework.study.arguments import Setup
from framework.study.place import open_place
from framework.trace.prompts import make_requests

LARGEST = {"cpu": 128, "cuda": 512}
REPORTED = "reported (lesson 2): throughput rises near-linearly at first, latency slowly"
CAPTION = (
    "Throughput and latency per output token over the batch size, without the prompts' step; medians over the repeats. "
    "Shaded: what binds a decode step by the measured ceilings. Dotted: the floor of the latency."
)
DEFINITIONS = {
    "Latency per token": "(last token − first token) / (output tokens − 1) of a batch",
    "Throughput": "batch size / latency per token; with the prompts: all output tokens / (start → last token)",
    "Prompts": "start → first tokens: the step that computes the padded prompts",
    "Compute-bound": "a decode step's FLOPs / rate are more than its bytes / read bandwidth; both ceilings are "
    "measured first, on a CPU in five rounds, of which the best counts",
}
COLUMNS = {  # of the page's table: header, and what its seconds are multiplied with
    "batch_size": ("batch size", 1),
    "throughput": ("throughput (tok/s)", 1),
    "latency": ("latency per token (ms)", 1e3),
    "floor": ("floor (ms)", 1e3),
    "prompt": ("prompts (ms)", 1e3),
    "whole_throughput": ("throughput with the prompts (tok/s)", 1),
}


def run(
    *,
    prompts: list[str],
    batch_sizes: list[int] | None,
    num_output_tokens: int,
    num_repeats: int,
    quantization: ChangeModel,
    **setup: Unpack[Setup],
) -> None:
    """Write `batching.csv`, `batching.json`, the figure and the page.

    A batch takes the `prompts` in turns, padded on the left to the longest, and generates greedily; latency is the time
    per token after the first, as is throughput. `batch_sizes` null: powers of two up to 128, or 512 on a GPU. Raises
    ValueError for sizes out of range.
    """
    place, model, engine = open_place(setup["device"], setup["output_dir"]), setup["model"], setup["engine"]
    sizes = powers_of_two(LARGEST[place.device.type]) if batch_sizes is None else sorted(set(batch_sizes))
    check_counts(sizes, num_output_tokens, num_repeats)
    ceilings = ceilings_for(model, engine, place.device)
    loaded = quantization(model(device=place.device))
    requests = make_batch(loaded, prompts, max(sizes), num_output_tokens)
    timed = measured(make_engine_for(requests, with_keywords(engine, temperature=0.0), loaded))
    with place.status("warming up") as update:
        runs = measure_batches(timed, requests, len(prompts), sizes, num_repeats, update)
    num_context = max(request.num_prompt_tokens for request in requests) + num_output_tokens // 2
    costs = model_costs(loaded, timed.kv_dtype)
    table = median_times(runs, num_output_tokens)
    table["floor"] = [floor_of(costs, size, num_context, ceilings) for size in table["batch_size"]]
    border = compute_bound_from(costs, num_context, ceilings)
    title = f"{loaded.config.model_type} on {place.device_name}: {limits(ceilings)}"
    record = {
        "config": describe({"model": model, "quantization": quantization, "engine": engine}),
        "environment": place.environment,
        "ceilings": asdict(ceilings),
        "compute_bound_from": border,
        "sizes": table.to_dict("records"),
    }
    findings = Findings(
        figures={"batching": (batch_tradeoff(table, border, title), CAPTION)},
        tables={title: in_units(table, COLUMNS)},
        notes=describe_results(runs, table, border),
        definitions=DEFINITIONS,
        files={"batching.json": record, "batching.csv": runs},
    )
    finish(place, title, findings)


def make_batch(model: Decoder, prompts: list[str], largest: int, num_output_tokens: int) -> list[Request]:
    """As many requests as the largest batch has, and at least one per prompt."""
    tokenizer = load_tokenizer(model.config)
    encoded = [list(tokenizer.encode(prompt)) for prompt in prompts]
    seats = list(islice(cycle(encoded), max(largest, len(encoded))))
    return make_requests(seats, num_output_tokens, model.config.max_model_len, frozenset())


def powers_of_two(largest: int) -> list[int]:
    return [2**power for power in range(largest.bit_length())]


def check_counts(batch_sizes: list[int], num_output_tokens: int, num_repeats: int) -> None:
    if not batch_sizes or batch_sizes[0] < 1:
        raise ValueError(f"batch_sizes must be one or more numbers from 1 on, not {batch_sizes}")
    if num_output_tokens < 2:
        raise ValueError(
            f"num_output_tokens {num_output_tokens} must be at least 2: the first one's time is the prompt's"
        )
    whole("num_repeats", num_repeats)


def measure_batches(
    engine: Engine,
    requests: list[Request],
    num_prompts: int,
    batch_sizes: list[int],
    num_repeats: int,
    on_progress: Say,
) -> pd.DataFrame:
    """One row per run: seconds until the first tokens (`prompt`) and per later token (`latency`), and how many texts
    are what their prompt gives alone (`num_same`)."""
    generate(engine, requests)  # the largest batch: all that is compiled or captured
    alone = [generate(engine, [request])[0].output_token_ids for request in requests[:num_prompts]]
    rows = []
    for repeat in range(num_repeats):
        for size in reversed(batch_sizes):
            on_progress(f"batch size {size}, {repeat + 1} of {num_repeats}")
            sequences = generate(engine, requests[:size])
            first, last = sequences[0].token_times[0], sequences[0].token_times[-1]
            num_same = sum(one.output_token_ids == text for one, text in zip(sequences, cycle(alone), strict=False))
            latency = (last - first) / (len(sequences[0].token_times) - 1)
            rows.append(
                {"batch_size": size, "repeat": repeat, "prompt": first, "latency": latency, "num_same": num_same}
            )
    return pd.DataFrame(rows).sort_values(["batch_size", "repeat"], ignore_index=True)


def generate(engine: Engine, requests: list[Request]) -> list[Sequence]:
    """All requests in one padded batch; without a wait, since all are there."""
    scheduler = StaticScheduler(engine.num_blocks, engine.block_size, max_num_seqs=len(requests), max_wait=0.0)
    sequences, _ = replay_trace(requests, scheduler, engine)
    return sequences


def median_times(runs: pd.DataFrame, num_output_tokens: int) -> pd.DataFrame:
    """Medians per batch size, and the throughputs (tok/s) that follow: of later tokens, and of all with the prompts."""
    table = runs.groupby("batch_size", as_index=False)[["prompt", "latency"]].median()
    table["throughput"] = table["batch_size"] / table["latency"]
    whole = table["prompt"] + (num_output_tokens - 1) * table["latency"]
    table["whole_throughput"] = table["batch_size"] * num_output_tokens / whole
    return table


def decode_work(costs: Costs, batch_size: int, num_context: int) -> Work:
    """Of a decode step of `batch_size` sequences of `num_context` tokens each."""
    return step_work(costs, Batch([], [num_context - 1] * batch_size, [1] * batch_size, 0, batch_size))


def floor_of(costs: Costs, batch_size: int, num_context: int, ceilings: Ceilings) -> float:
    """Seconds that the step takes at least."""
    return decode_work(costs, batch_size, num_context).floor(ceilings.read_bandwidth, ceilings.matmul_rate)


def compute_bound_from(costs: Costs, num_context: int, ceilings: Ceilings) -> float:
    """The batch size at which a step's arithmetic takes as long as its reads; inf where each sequence reads for longer.

    Both are straight lines over the batch size: the weights are read once, everything else is per sequence.
    """
    none, one = (decode_work(costs, size, num_context) for size in (0, 1))
    reading = (one.num_bytes - none.num_bytes) / ceilings.read_bandwidth
    computing = (one.num_flops - none.num_flops) / ceilings.matmul_rate
    return none.num_bytes / ceilings.read_bandwidth / (computing - reading) if computing > reading else inf


def describe_results(runs: pd.DataFrame, table: pd.DataFrame, border: float) -> list[str]:
    """What is to notice, beside what the lesson reports."""
    first, last = table.iloc[0], table.iloc[-1]
    throughput, latency = (last[name] / first[name] for name in ("throughput", "latency"))
    sizes = f"batch size {first['batch_size']:.0f} → {last['batch_size']:.0f}"
    binds = f"compute-bound from about batch size {border:.0f} on" if border < inf else "never compute-bound"
    return [
        f"{sizes}: throughput × {throughput:.3g}, latency × {latency:.3g} ({REPORTED})",
        f"a decode step is {binds}, by the measured ceilings",
        f"{runs['num_same'].sum()} of {runs['batch_size'].sum()} texts in batches are those of their prompt alone",
    ]
