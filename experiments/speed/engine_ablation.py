"""What each of an engine's options buys, added one after the other: eager, fused, compiled, graphs, overlap."""

from dataclasses import asdict
from typing import Any

import pandas as pd
from typing_extensions import Unpack

from experiments.speed.figures import ablation
from framework.build import ChangeModel, MakeScheduler, MakeTrace
from framework.engine.measured import measured
from framework.measure.ceilings import limits
from framework.measure.serving import max_num_seqs_of, measure_serving
from framework.measure.steps import ceilings_for, check_sizes, get_ready, measure_cases
from framework.report.finish import Findings, finish, write_files
from framework.report.tables import short
from framework.study.arms import Arms, configs_of, parts_of, resolve_arms
from framework.study.engine_cache import EngineCache
from framework.study.place import open_place
from framework.study.sweep import Setup

FIGURE_CAPTION = "Left, decode steps per arm; right, the output throughput of the queue."
CAPTION = "decode: device / step to step, ms; ×: faster than the arm before"


def run(
    *,
    arms: Arms,
    batch_sizes: list[int],
    context: int,
    num_steps: int,
    seed: int,
    trace: MakeTrace,
    quantization: ChangeModel,
    lora: ChangeModel,
    scheduler: MakeScheduler,
    **setup: Unpack[Setup],
) -> None:
    """Decode steps and the served requests of `trace` for every arm, each with its factor over the arm before.

    What is measured is written after each arm. Raises ValueError for an arm that wants what the device does not have.
    """
    sizes = {"decode": [[batch_size, context] for batch_size in batch_sizes]}
    check_sizes(sizes, num_steps)
    place = open_place(setup["device"], setup["output_dir"])
    parts = {"quantization": quantization, "lora": lora, "scheduler": scheduler, "trace": trace, "clock": "virtual"}
    variants = resolve_arms(arms, parts_of(setup) | parts)
    ceilings = ceilings_for(setup["model"], setup["engine"], place.device)
    record = {
        "config": configs_of(variants),
        "environment": place.environment,
        "ceilings": asdict(ceilings),
    }
    title = f"{place.device_name}: {limits(ceilings)}"
    place.say(title)
    rows: list[dict[str, Any]] = []
    serving: dict[str, dict[str, float]] = {}
    engines = EngineCache(place.device, place.say)
    for arm, components in variants.items():
        with place.console.status(arm) as status:
            engine = measured(engines.get(components))
            engine.on_progress = status.update
            get_ready(engine, max([*batch_sizes, max_num_seqs_of(components.scheduler)]))
        place.say(f"{arm}:")
        cases = measure_cases(sizes, engine, num_steps, ceilings, place.say)
        rows += [{"arm": arm} | case.row(ceilings) for case in cases]
        requests = components.trace(rate=None, seed=seed, max_model_len=engine.max_model_len).requests
        serving[arm] = measure_serving(engine, components.scheduler, requests)
        place.say(f"{serving[arm]['output_throughput']:,.0f} output tok/s")
        files = {
            "ablation.json": record | {"serving": serving, "cases": rows},
            "ablation.csv": pd.DataFrame(rows),  # one row per arm and decode step
        }
        write_files(place.output_dir, files)
        del engine  # else the next arm's KV cache would have to fit beside this one's
    figures = {"ablation": ablation(pd.DataFrame(rows), output_throughputs(serving), title)} if rows else {}
    drawn = {name: (figure, FIGURE_CAPTION) for name, figure in figures.items()}
    finish(place, title, Findings(drawn, {CAPTION: factors_table(rows, serving)}, files=files))


def output_throughputs(serving: dict[str, dict[str, float]]) -> pd.Series:
    return pd.Series({arm: numbers["output_throughput"] for arm, numbers in serving.items()})


def factors_table(rows: list[dict[str, Any]], serving: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Per arm the decode steps (ms, device and step to step) and output tokens/s, with factors over the arm before."""
    times = {(row["arm"], row["case"]): (row["device"], row["elapsed"]) for row in rows}
    names = list(dict.fromkeys(row["case"] for row in rows))
    lines = []
    before = next(iter(serving))
    for arm, numbers in serving.items():
        line = {"arm": arm}
        for name in names:
            if (arm, name) not in times:  # it did not fit beside this arm's other memory
                line[name] = "–"
                continue
            device, elapsed = times[arm, name]
            line[name] = f"{short(1e3 * device)} / {short(1e3 * elapsed)}"
            if (before, name) in times:
                line[name] += f" ({times[before, name][1] / elapsed:.2f}×)"
        throughput = numbers["output_throughput"]
        line["output tok/s"] = f"{throughput:,.0f} ({throughput / serving[before]['output_throughput']:.2f}×)"
        lines.append(line)
        before = arm
    return pd.DataFrame(lines)
