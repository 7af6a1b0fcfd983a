"""A few streams on one engine: alone, at once and one after the other, with no, one and several adapters."""

from collections.abc import Callable
from itertools import cycle, islice

import pandas as pd

from framework.build import MakeScheduler, make_scheduler, replay_trace
from framework.config import with_keywords
from framework.core import Request
from framework.engine.measured import MeasuredEngine

ALONE, AT_ONCE, IN_TURN = "alone", "at once", "one after the other"
STREAMS = "Each stream, medians over the repeats"
DURATIONS = "All streams: until the last token, medians over the repeats"


def measure_streams(
    engine: MeasuredEngine,
    scheduler: MakeScheduler,
    streams: list[int],
    num_prompt_tokens: int,
    num_repeats: int,
    on_progress: Callable[[str], None],
) -> pd.DataFrame:
    """One row per token: `order`, `num_adapters`, `repeat`, `stream`, `token` (from 1) and `time` (s).

    The streams, of so many output tokens each, all arrive at 0 s; one after the other they wait for their turn. The
    first of them is measured alone, too. The cases take turns, `num_repeats` times. Raises ValueError if the engine has
    fewer adapter slots, or its adapters are fewer, than there are streams.
    """
    if engine.num_adapter_slots < len(streams):
        raise ValueError(
            f"{len(streams)} streams need as many adapter slots: full names a lora with {engine.num_adapter_slots}"
        )
    adapter_ids = engine.adapter_names(len(streams))
    counts = sorted({0, 1, len(streams)})
    cases = [(ALONE, 1), *((order, count) for count in counts for order in (AT_ONCE, IN_TURN))]
    rows: list[dict[str, object]] = []
    for repeat in range(num_repeats):
        for order, num_adapters in cases:
            on_progress(f"streams {order}, {num_adapters} adapters, {repeat + 1} of {num_repeats}")
            limited = with_keywords(scheduler, max_num_seqs=len(streams) if order == AT_ONCE else 1)
            chosen = streams[:1] if order == ALONE else streams
            requests = make_requests(chosen, num_prompt_tokens, adapter_ids[:num_adapters])
            sequences, _ = replay_trace(requests, make_scheduler(limited, engine), engine)
            key = {"order": order, "num_adapters": num_adapters, "repeat": repeat}
            rows += [
                key | {"stream": sequence.request.request_id, "token": token, "time": time}
                for sequence in sequences
                for token, time in enumerate(sequence.token_times, start=1)
            ]
    return pd.DataFrame(rows)


def make_requests(streams: list[int], num_prompt_tokens: int, adapter_ids: list[str]) -> list[Request]:
    """All at 0 s; they ask in turn for the adapters, if there are any."""
    names = islice(cycle(adapter_ids or [None]), len(streams))
    return [
        Request(index, 0.0, num_prompt_tokens, num_output_tokens, adapter_id=name)
        for index, (num_output_tokens, name) in enumerate(zip(streams, names, strict=True))
    ]


def stream_tables(tokens: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """TTFT and tokens/s of every stream; and how long all take at once and one after the other."""
    keys = ["order", "num_adapters", "stream"]
    runs = tokens.groupby([*keys, "repeat"], sort=False)["time"].agg(ttft="first", e2e="last", num_tokens="size")
    medians = runs.groupby(keys, sort=False).median().reset_index()
    each = pd.DataFrame(
        {
            "streams": medians["order"],
            "adapters": medians["num_adapters"],
            "tokens": medians["num_tokens"].astype(int),
            "TTFT (ms)": 1e3 * medians["ttft"],
            "tokens/s": medians["num_tokens"] / medians["e2e"],
        }
    )
    ends = runs.groupby(["order", "num_adapters", "repeat"])["e2e"].max().reset_index()
    several = ends[ends["order"] != ALONE]
    durations = several.pivot_table(index="num_adapters", columns="order", values="e2e", aggfunc="median")
    together = pd.DataFrame(
        {
            "adapters": durations.index,
            f"{IN_TURN} (s)": durations[IN_TURN].to_numpy(),
            f"{AT_ONCE} (s)": durations[AT_ONCE].to_numpy(),
            f"{IN_TURN} ÷ {AT_ONCE}": (durations[IN_TURN] / durations[AT_ONCE]).to_numpy(),
        }
    )
    return {STREAMS: each, DURATIONS: together}


def describe_streams(tables: dict[str, pd.DataFrame]) -> list[str]:
    """One stream, all at once, and how flat the time is over the number of adapters, beside the source's word."""
    alone, durations = tables[STREAMS].iloc[0], tables[DURATIONS].set_index("adapters")
    at_once, num_streams = durations[f"{AT_ONCE} (s)"], int(durations.index.max())
    return [
        f"one stream of {alone['tokens']} tokens: TTFT {alone['TTFT (ms)']:.3g} ms, {alone['tokens/s']:.0f} tokens/s",
        f"{num_streams} streams with {num_streams} adapters at once: {at_once[num_streams]:.3g} s, "
        f"{durations[f'{IN_TURN} ÷ {AT_ONCE}'][num_streams]:.2f} times as fast as {IN_TURN}",
        f"{num_streams} adapters take {at_once[num_streams] / at_once[1]:.2f}× the time of one, and "
        f"{at_once[num_streams] / at_once[0]:.2f}× that of none (reported: flat with the number of adapters, lesson 7)",
    ]
