"""What each of an engine's options buys, added one after the other: eager, fused, compiled, graphs, overlap."""

from dataclasses import asdict

import pandas as pd
from typing_extensions import Unpack

from experiments.speed.figures import ablation
from experiments.speed.tables import factors_table
from framework.build import MakeTrace
from framework.engine.measured import measured
from framework.measure.cases import Case
from framework.measure.ceilings import Ceilings, limits
from framework.measure.serving import max_num_seqs_of, measure_serving
from framework.measure.steps import ceilings_for, check_sizes, get_ready, measure_cases
from framework.report.finish import Findings, finish, write_files
from framework.study.arguments import Serving
from framework.study.arms import Arm, Arms, configs_of, parts_of, resolve_arms
from framework.study.engine_cache import EngineCache
from framework.study.place import Place, open_place

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
    **serving: Unpack[Serving],
) -> None:
    """Decode steps and the served requests of `trace` for every arm, each with its factor over the arm before.

    What is measured is written after each arm. Raises ValueError for an arm that wants what the device does not have.
    """
    sizes = {"decode": [[batch_size, context] for batch_size in batch_sizes]}
    check_sizes(sizes, num_steps)
    place = open_place(serving["device"], serving["output_dir"])
    variants = resolve_arms(arms, parts_of(serving) | {"trace": trace, "clock": "virtual"})
    ceilings = ceilings_for(serving["model"], serving["engine"], place.device)
    record = {"config": configs_of(variants), "environment": place.environment, "ceilings": asdict(ceilings)}
    title = f"{place.device_name}: {limits(ceilings)}"
    place.say(title)
    rows: list[dict[str, object]] = []
    served: dict[str, dict[str, float]] = {}
    engines = EngineCache(place.device, place.say)
    for name, arm in variants.items():
        place.say(f"{name}:")
        cases, served[name] = measure_arm(arm, engines, sizes, num_steps, seed, ceilings, place)
        rows += [{"arm": name, **case.row(ceilings)} for case in cases]
        files = {
            "ablation.json": record | {"serving": served, "cases": rows},
            "ablation.csv": pd.DataFrame(rows),  # one row per arm and decode step
        }
        write_files(place.output_dir, files)
    figures = {}
    if rows:
        drawn = ablation(pd.DataFrame(rows), output_throughputs(served), title)
        figures["ablation"] = (drawn, FIGURE_CAPTION)
    finish(place, title, Findings(figures, {CAPTION: factors_table(pd.DataFrame(rows), served)}, files=files))


def measure_arm(
    arm: Arm,
    engines: EngineCache,
    sizes: dict[str, list[list[int]]],
    num_steps: int,
    seed: int,
    ceilings: Ceilings,
    place: Place,
) -> tuple[list[Case], dict[str, float]]:
    """The arm's decode steps and its queue; nothing here keeps its engine, whose KV cache the next one's needs."""
    with place.status("") as update:
        engines.on_progress = update
        engine = measured(engines.get(arm))
        get_ready(engine, max([*(num_seqs for num_seqs, _ in sizes["decode"]), max_num_seqs_of(arm.scheduler)]))
    cases = measure_cases(sizes, engine, num_steps, ceilings, place.say)
    requests = arm.trace(rate=None, seed=seed).requests
    serving = measure_serving(engine, arm.scheduler, requests)
    place.say(f"{serving['output_throughput']:,.0f} output tok/s")
    return cases, serving


def output_throughputs(serving: dict[str, dict[str, float]]) -> pd.Series:
    return pd.Series({arm: numbers["output_throughput"] for arm, numbers in serving.items()})
