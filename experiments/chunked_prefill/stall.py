"""One long prompt arrives while other sequences decode: their tokens, and its first one, under each scheduler."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from framework.build import make_scheduler
from framework.checks import whole
from framework.contracts import Engine, Router
from framework.core import Request, Sequence
from framework.measure.serving import max_num_seqs_of
from framework.replay import Server, replay
from framework.report.tables import short
from framework.study.arms import Arm, check_named
from framework.study.engine_cache import EngineCache
from framework.trace.source import TraceSource

NUM_SHORT = 32  # prompt tokens of the sequences that decode
NUM_BEFORE = 16  # tokens of each before the long prompt arrives
NUM_LONG_OUTPUT = 8  # tokens that follow the long prompt
PROMPT = "prompt"  # whose tokens these are, in the table


@dataclass(frozen=True, slots=True)
class Stall:
    """`num_decodes` sequences decode `num_output_tokens` each when a prompt of `num_prompt_tokens` arrives.

    Under every one of `arms`, in turns, `num_repeats` times.
    """

    arms: list[str]
    num_decodes: int
    num_output_tokens: int
    num_prompt_tokens: int
    num_repeats: int

    def check(self, arms: dict[str, Arm]) -> None:
        """ValueError for no arm, one that there is not or has too few seats, and for numbers that make no stall."""
        if not self.arms:
            raise ValueError("stall.arms is empty: name at least one arm, or set stall=null")
        check_named("stall.arms", self.arms, arms)
        for name in ("num_decodes", "num_prompt_tokens", "num_repeats"):
            whole(f"stall.{name}", getattr(self, name))
        if self.num_output_tokens <= NUM_BEFORE + 1:
            raise ValueError(
                f"stall.num_output_tokens={self.num_output_tokens}: the prompt arrives after {NUM_BEFORE} tokens, so "
                f"that at least {NUM_BEFORE + 2} are needed"
            )
        for name in self.arms:
            num_seats = max_num_seqs_of(arms[name].scheduler)
            if num_seats <= self.num_decodes:
                raise ValueError(
                    f"stall.num_decodes={self.num_decodes}: with the prompt that arrives these are more than the "
                    f"{num_seats} seats of {name} (scheduler.max_num_seqs)"
                )


def measure_stall(stall: Stall, arms: dict[str, Arm], engines: EngineCache) -> pd.DataFrame:
    """A row per token: `arm`, `repeat`, `sequence`, `time` (s) since the prompt's arrival, `gap` (s) to the one before.

    `sequence` is `prompt` for the one that arrives. ValueError naming the stall if an engine has no room for it.
    """
    parts = []
    for repeat in range(stall.num_repeats):
        for name in stall.arms:
            engines.on_progress(f"a stall under {name}, repeat {repeat + 1} of {stall.num_repeats}")
            engine = engines.get(arms[name])
            try:
                tokens = replay_stall(stall, arms[name], engine)
            except ValueError as error:
                raise ValueError(f"the stall (stall=null: none), under {name}: {error}") from error
            parts.append(tokens.assign(arm=name, repeat=repeat))
    return pd.concat(parts, ignore_index=True)


def replay_stall(stall: Stall, arm: Arm, engine: Engine) -> pd.DataFrame:
    """The tokens of one replay, in which the prompt comes when each of the decodes has NUM_BEFORE tokens."""
    decodes = [Request(index, 0.0, NUM_SHORT, stall.num_output_tokens) for index in range(stall.num_decodes)]
    prompt = Request(stall.num_decodes, 0.0, stall.num_prompt_tokens, NUM_LONG_OUTPUT)
    server = Server(make_scheduler(arm.scheduler, engine), engine)
    *decoding, last = replay(TraceSource([*decodes, prompt]), [server], hold_back(prompt, server))
    rows = [token_rows(str(sequence.request.request_id), sequence, last.arrival_time) for sequence in decoding]
    return pd.concat([*rows, token_rows(PROMPT, last, last.arrival_time)], ignore_index=True)


def hold_back(prompt: Request, server: Server) -> Router:
    """A router that lets `prompt` arrive when all before it have NUM_BEFORE tokens, however long that takes."""
    decoding: list[Sequence] = []

    def route(sequence: Sequence) -> Server | None:
        if sequence.request is not prompt:
            decoding.append(sequence)
            return server
        if any(len(decode.token_times) < NUM_BEFORE for decode in decoding):
            return None
        sequence.arrival_time = max(decode.token_times[-1] for decode in decoding)  # the end of this step
        return server

    return route


def token_rows(name: str, sequence: Sequence, arrival_time: float) -> pd.DataFrame:
    times = np.array(sequence.token_times)
    return pd.DataFrame({"sequence": name, "time": times - arrival_time, "gap": np.diff(times, prepend=np.nan)})


def summarize_stall(tokens: pd.DataFrame) -> pd.DataFrame:
    """One row per arm and repeat, in seconds.

    `before`: the median gap of the decodes before the prompt arrives. `longest`: of those that end after it and begin
    before its first token, which comes after `ttft`. `num_decoding` decodes have tokens to come when it arrives.
    """
    rows = []
    for (arm, repeat), group in tokens.groupby(["arm", "repeat"], sort=False):
        is_prompt = group["sequence"] == PROMPT
        ttft = group.loc[is_prompt, "time"].min()
        decodes = group[~is_prompt]
        is_meanwhile = (decodes["time"] > 0) & (decodes["time"] - decodes["gap"] < ttft)
        before = decodes.loc[decodes["time"] <= 0, "gap"].median()
        rows.append(
            {
                "arm": arm,
                "repeat": repeat,
                "before": before,
                "longest": decodes.loc[is_meanwhile, "gap"].max(),
                "ttft": ttft,
                "num_decoding": decodes.loc[decodes["time"] > 0, "sequence"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def typical(tokens: pd.DataFrame) -> pd.DataFrame:
    """Of every arm the tokens of one repeat: that whose longest gap is the median one."""
    summary = summarize_stall(tokens)
    parts = []
    for arm, rows in summary.groupby("arm", sort=False):
        ordered = rows.sort_values("longest")["repeat"].tolist()
        repeat = ordered[(len(ordered) - 1) // 2]
        parts.append(tokens[(tokens["arm"] == arm) & (tokens["repeat"] == repeat)])
    return pd.concat(parts, ignore_index=True)


def stall_table(tokens: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, medians over the repeats (ms); `decodes` is the least that any repeat had left to stall."""
    repeats = summarize_stall(tokens).groupby("arm", sort=False)
    medians = repeats[["before", "longest", "ttft"]].median()
    return pd.DataFrame(
        {
            "arm": medians.index,
            "decodes": repeats["num_decoding"].min(),
            "gap before (ms)": 1e3 * medians["before"],
            "longest gap meanwhile (ms)": 1e3 * medians["longest"],
            "longest ÷ before": medians["longest"] / medians["before"],
            "TTFT of the prompt (ms)": 1e3 * medians["ttft"],
        }
    ).reset_index(drop=True)


def describe_stall(stall: Stall, table: pd.DataFrame) -> list[str]:
    """One sentence on the first arm, and what the others make of it; one for every arm whose decodes ended too soon."""
    first, *others = table.to_dict("records")
    before, longest, ttft = "gap before (ms)", "longest gap meanwhile (ms)", "TTFT of the prompt (ms)"
    sentence = (
        f"{first['arm']}: while a prompt of {stall.num_prompt_tokens:,} tokens is computed, the {stall.num_decodes} "
        f"sequences that decode wait up to {short(first[longest])} ms for a token ({short(first[before])} ms before it "
        "came)"
    )
    parts = [
        f"{row['arm']} up to {short(row[longest])} ms, and the prompt's first token takes "
        f"{row[ttft] / first[ttft]:.2f}× as long"
        for row in others
    ]
    few = [
        f"{row['arm']}: the gaps are of {row['decodes']} of the {stall.num_decodes} sequences; the others had ended "
        "when the prompt came: raise stall.num_output_tokens"
        for row in (first, *others)
        if row["decodes"] < stall.num_decodes
    ]
    return ["; ".join([sentence, *parts]), *few]
