"""What a prompt costs in chunks, and decodes beside it: the step times of Sarathi-Serve's artifact (OSDI 2024)."""

from functools import partial
from typing import cast

import pandas as pd
from typing_extensions import Unpack

from experiments.chunked_prefill.figures import chunk_overhead
from experiments.papers.comparison import read_paper, reported, with_comparison
from experiments.papers.figures import bars_by_case
from experiments.papers.step_times import (
    TimedEngine,
    chunked_seconds,
    decode_seconds,
    make_ready,
    mixed_seconds,
    timed,
)
from framework.build import ChangeModel, MakeScheduler
from framework.checks import whole
from framework.core import Trace
from framework.engine.modelled import ModelledEngine
from framework.measure.mixed_steps import check_comparisons, sizes_in
from framework.measure.steps import Say
from framework.report.finish import Findings, finish
from framework.report.plots import Drawn
from framework.scheduler.continuous import ContinuousScheduler
from framework.study.arguments import Setup
from framework.study.arms import Arm, parts_of
from framework.study.engine_cache import EngineCache
from framework.study.modelled import environment_of, modelled_record, with_times
from framework.study.place import open_place

PAPER = "sarathi_chunking"
PROMPT, MIXED, DECODE = "prefill 1 × 1024", "mixed 1021 behind 0 + 3 × 1024", "decode 4 × 1024"
SIZES = (1024, 3, 4)  # rows of the prompt and of the mixed step, decodes in this one, and in the decode step
IN_CHUNKS = "Time on the device of a prompt in chunks over that of one step (1, dashed), over its length in the paper"
STEPS = "Time of a mixed step and of a decode step over that of a prompt with as many rows as the mixed step."
OF_CHUNKS, OF_STEPS = "Prompts in chunks", "Steps"
DEFINITIONS = {
    "A in chunks of B": "a prompt of A tokens, computed B tokens at a time, nothing beside it, over one step",
    "mixed A behind B + C × D": "a step with the last A tokens of a prompt, B before them, and C decodes with a "
    "context of D tokens each",
    "prefill A × B, decode A × B": "a step of A prompts of B tokens; one in which A sequences of B tokens decode",
}


class Timing(Setup):
    """What the study takes beside its own keys."""

    quantization: ChangeModel
    lora: ChangeModel


def run(*, divisor: int, num_steps: int, **timing: Unpack[Timing]) -> None:
    """Time the paper's steps with their tokens over `divisor`, `num_steps` times each; by the cost model if modelled.

    ValueError for an engine that repeats recorded steps, and for prompts beyond the model's context.
    """
    whole("divisor", divisor)
    chunks = chunk_sizes(divisor)
    context = SIZES[0] // divisor
    check_comparisons(
        {"chunks": [list(sizes) for sizes in chunks.values()], "mixed": [[context - SIZES[1], 0, SIZES[1], context]]},
        num_steps,
    )
    scheduler = cast(MakeScheduler, partial(ContinuousScheduler))
    unserved = Arm(**parts_of(timing), scheduler=scheduler, trace=partial(nothing), clock="virtual")
    arm = with_times("steps", unserved) if unserved.is_modelled else unserved
    place = open_place(timing["device"] if not arm.is_modelled else "cpu", timing["output_dir"])
    place.environment = environment_of(arm, place.environment)
    with place.status("loading") as update:
        engine = timed(EngineCache(place.device, update).get(arm))
        longest = max(prompt for prompt, _ in chunks.values())
        if longest > engine.max_model_len:
            raise ValueError(f"a prompt of {longest} tokens is beyond model.max_model_len={engine.max_model_len}")
        make_ready(engine, SIZES[2], longest)
        steps = time_steps(engine, context, num_steps, place.say)
        in_chunks = time_chunks(engine, chunks, num_steps, place.say)
    notes = modelled_notes(engine) if isinstance(engine, ModelledEngine) else []
    finish(place, f"{PAPER} on {place.device_name}", find(steps, in_chunks, divisor, place.device_name, notes))


def nothing(*, rate: float | None, seed: int) -> Trace:
    """No request: steps are timed alone."""
    return Trace([])


def chunk_sizes(divisor: int) -> dict[str, tuple[int, int]]:
    """Of every case that is reported: the tokens of the prompt and of its chunks, over `divisor`."""
    sizes = {}
    for case in reported(read_paper(PAPER), "chunks"):
        found = sizes_in(case)
        assert found is not None
        prompt, chunk = found[1]
        sizes[case] = (prompt // divisor, chunk // divisor)
    return sizes


def time_steps(engine: TimedEngine, context: int, num_steps: int, say: Say) -> dict[str, float]:
    """Seconds by the paper's names of the steps, for a prompt of `context` rows and decodes with such a context."""
    mixed, alone = mixed_seconds(engine, context - SIZES[1], SIZES[1], context, num_steps)
    seconds = {PROMPT: alone, MIXED: mixed, DECODE: decode_seconds(engine, SIZES[2], context, num_steps)}
    for name, value in seconds.items():
        say(f"{name}: {1e3 * value:.2f} ms")
    return seconds


def time_chunks(engine: TimedEngine, sizes: dict[str, tuple[int, int]], num_steps: int, say: Say) -> pd.DataFrame:
    """A row per case: `case`, its tokens as they are here, `device` and `alone_device` (s), and their `ratio`."""
    rows = []
    for case, (prompt, chunk) in sizes.items():
        together, alone = chunked_seconds(engine, prompt, chunk, num_steps)
        say(f"{case}: {1e3 * together:.1f} ms, {together / alone:.3f}× of {1e3 * alone:.1f} ms")
        row = {"case": case, "num_prompt_tokens": prompt, "num_chunk_tokens": chunk}
        rows.append(row | {"device": together, "alone_device": alone, "ratio": together / alone})
    return pd.DataFrame(rows)


def modelled_notes(engine: ModelledEngine) -> list[str]:
    record = modelled_record([engine])
    notes = [f"no step was executed: they take what the cost model {record['name']} says, of {record['device']}"]
    if record["num_outside"]:
        furthest = ", ".join(f"{name} {factor:.3g} times as far" for name, factor in record["furthest"].items())
        share = record["num_outside"] / record["num_steps"]
        notes.append(f"{share:.0%} of the steps are outside of what was fitted: {furthest}")
    return notes


def find(steps: dict[str, float], in_chunks: pd.DataFrame, divisor: int, device: str, notes: list[str]) -> Findings:
    table = in_chunks.rename(columns={"device": "together (ms)", "alone_device": "in one step (ms)"})
    table[["together (ms)", "in one step (ms)"]] *= 1e3
    tables = {
        OF_STEPS: pd.DataFrame({"step": list(steps), "device (ms)": [1e3 * value for value in steps.values()]}),
        OF_CHUNKS: table,
    }
    measured = {
        "steps": {name: 1e3 * value for name, value in steps.items()},
        "chunks": dict(zip(in_chunks["case"], in_chunks["ratio"], strict=True)),
    }
    files = {"steps.csv": tables[OF_STEPS], "chunks.csv": in_chunks}
    sizes = "" if divisor == 1 else f", sizes ÷ {divisor}"
    figures = draw(steps, in_chunks, sizes, device)
    return with_comparison(PAPER, measured, Findings(figures, tables, notes, DEFINITIONS, files))


def draw(steps: dict[str, float], in_chunks: pd.DataFrame, sizes: str, device: str) -> dict[str, Drawn]:
    """Chunks over the prompt's length, and steps, as measured and as reported, both at the paper's sizes."""
    paper = read_paper(PAPER)
    in_paper, whose = reported(paper, "chunks"), {"reported": reported(paper, "steps"), "measured": steps}
    found = [sizes_in(case) for case in in_chunks["case"]]
    by_size = pd.DataFrame(
        [one[1] for one in found if one is not None], columns=["num_prompt_tokens", "num_chunk_tokens"]
    )
    ours, theirs = in_chunks["ratio"], in_chunks["case"].map(in_paper)
    drawn = chunk_overhead(by_size.assign(ratio=ours), by_size.assign(ratio=theirs), f"{device}{sizes}")
    bars = pd.DataFrame(
        {name: {step: times[step] / times[PROMPT] for step in (MIXED, DECODE)} for name, times in whose.items()}
    )
    return {
        "chunk_overhead": (drawn, f"{IN_CHUNKS}{sizes}. Dotted: as reported."),
        "steps": (bars_by_case(bars, "step", f"time ÷ {PROMPT}"), STEPS),
    }
