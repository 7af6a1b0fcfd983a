"""A queue of requests served to the end in real time, and what the host does between the steps of full batches."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from framework.build import MakeScheduler, make_scheduler, replay_trace, warm_up_requests
from framework.contracts import Engine
from framework.core import Request, Sequence
from framework.measure.replay_tables import step_table

FULL = 0.9  # share of the seats from which on a decode step counts as one of a full batch


def measure_serving(engine: Engine, make: MakeScheduler, requests: list[Request]) -> dict[str, float]:
    """Serve `requests`, all there at once, in real time, warm: output tokens/s, and the host's work per full step."""
    requests = [replace(request, arrival_time=0.0, think_time=None) for request in requests]

    def serve(some: list[Request]) -> tuple[list[Sequence], pd.DataFrame]:
        scheduler = make_scheduler(make, engine)
        sequences, steps = replay_trace(some, scheduler, engine, clock="wall")  # as the peers are timed
        return sequences, step_table(steps)

    serve(warm_up_requests(requests, max_num_seqs_of(make)))
    sequences, steps = serve(requests)
    num_output_tokens = sum(len(sequence.output_token_ids) for sequence in sequences)
    duration = max(sequence.token_times[-1] for sequence in sequences)
    return {
        "num_requests": len(requests),
        "num_prompt_tokens": sum(request.num_prompt_tokens for request in requests),
        "num_output_tokens": num_output_tokens,
        "duration": duration,
        "output_throughput": num_output_tokens / duration,
        "num_steps": len(steps),
    } | host_times(steps, min(max_num_seqs_of(make), len(requests)))


def max_num_seqs_of(make: MakeScheduler) -> int:
    return make(num_blocks=1, block_size=1).max_num_seqs


def host_times(steps: pd.DataFrame, num_seats: int) -> dict[str, float]:
    """Medians (s) over the decode steps of at least 90% of `num_seats` sequences that another such step follows.

    `exposed` is what the device waited for: from one step to the next, less the device's time. Of a step that is not
    launched ahead, the device's time has the launch of its graph in it.
    """
    is_full = (steps["phase"] == "decode") & (steps["num_seqs"] >= FULL * num_seats)
    full = steps[is_full & is_full.shift(-1, fill_value=False)]
    period = steps["start_time"].diff().shift(-1)[full.index]
    host = full["schedule"] + full["prepare"] + full["update"]
    parts = {name: full[name].median() for name in ("schedule", "prepare", "device", "update")}
    exposed = (period - full["device"]).median()
    return {"num_full_steps": len(full), **parts, "host": host.median(), "exposed": exposed}
