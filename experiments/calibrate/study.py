"""Fits what steps cost on this device and how they vary, for engine=modelled; the error is of steps not fitted."""

from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
from typing_extensions import Unpack

from experiments.calibrate.figures import predicted_against_measured, ratios_by_kind
from experiments.calibrate.grid import Grid, cells_of, check_grid, measure_cells
from framework.checks import positive, whole
from framework.cost.error import errors, predicted
from framework.cost.fit import fit_kinds
from framework.cost.model import VERSION, Calibrated, CostModel, write_cost_model
from framework.cost.shipped import UNKNOWN
from framework.cost.step_log import from_steps, read_step_log
from framework.cost.subject import read_target
from framework.engine.measured import MeasuredEngine, graph_sizes, measured
from framework.measure.serving import max_num_seqs_of
from framework.report.finish import Findings, finish, finish_sweep
from framework.study.arms import Arm, parts_of, resolve_arms
from framework.study.engine_cache import EngineCache
from framework.study.files import digest_of
from framework.study.place import Place, open_place
from framework.study.points import arm_digest
from framework.study.provenance import compute_version
from framework.study.sweep import Study, Sweep, check_points, run_study

FOLDER = "models"  # in the study's, for the cost models
HELD_OUT = 0.2  # of a given step log, its end
AGAINST = (
    "Seconds that the cost model predicts over the seconds measured, of steps that were not fitted. Dashed: equal."
)
RATIOS = (
    "Measured over predicted seconds of the same steps, as shares of the steps. Shaded: the 90% interval predicted."
)
DEFINITIONS = {
    "Bias": "predicted over measured seconds of all steps together, less 1",
    "Median error, P99 error": "of the relative error of single steps against the predicted median",
    "Within 90% interval": "share of the steps between the 5% and the 95% quantile that are predicted for them",
    "Rows": "new tokens of a step",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenLog:
    """Steps that were logged elsewhere (None: measure here), and what the engine there was."""

    path: str | None
    device: str | None
    num_blocks: int | None
    block_size: int
    num_steps_ahead: int


def run(*, name: str, note: str | None, grid: Grid, time_limit: float, steps: GivenLog, **sweep: Unpack[Sweep]) -> None:
    """Time the steps of `grid`, for at most `time_limit` seconds, and of replays; fit them, and write models/NAME.json.

    The arms replay the trace at every rate with every seed. The steps of every second seed are not fitted, and the
    error is theirs: seeds take turns, so that a drift of the machine's speed meets both. There is a cost model for
    every engine that the arms have: with several, NAME-ARM.json by its first arm. With `steps.path` a log is fitted
    instead, whose last fifth is held out; `model`, `quantization` and `lora` say of what. `note` is a sentence on the
    measurement, which every page of a replay with the cost model has.
    """
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": "virtual"})
    if steps.path is not None:
        place = open_place("cpu", sweep["output_dir"])
        fit_log(place, name, note, next(iter(arms.values())), steps)
        return
    check_grid(grid)
    positive("time_limit", time_limit)
    check_points(arms, sweep["rates"], sweep["seeds"])
    if len(sweep["seeds"]) < 2:
        raise ValueError(f"seeds={sweep['seeds']}: calibrate needs two at least, of which every second one is held out")
    place = open_place(sweep["device"], sweep["output_dir"])
    groups = engine_groups(arms)
    grids, builds = {}, {}
    with place.status("loading") as update:
        engines = EngineCache(place.device, update, arms.values())
        for label, group in groups.items():
            engine = measured(engines.get(arms[group[0]]))
            grids[label] = time_grid(place, engine, arms, group, grid, time_limit / len(groups))
            builds[label] = Built(engine, arms, group)
    study = run_study(arms, sweep, engines)
    finish_sweep(study, "calibrate", partial(find, study, name, note, groups, grids, builds, sweep["seeds"]))
    study.raise_failures()


class Built:
    """What a cost model has to say of an engine, which is not kept."""

    def __init__(self, engine: MeasuredEngine, arms: dict[str, Arm], group: list[str]) -> None:
        seats = max(max_num_seqs_of(arms[arm].scheduler) for arm in group)
        self.sizes = graph_sizes(engine.switches, seats)
        self.engine = Calibrated(
            num_blocks=engine.num_blocks,
            block_size=engine.block_size,
            num_cache_bytes=engine.num_cache_bytes,
            slot_bytes=engine.num_adapter_bytes // (engine.num_adapter_slots + 1),
            kv_dtype=str(engine.kv_dtype).removeprefix("torch."),
            num_steps_ahead=engine.num_steps_ahead,
            are_loads_beside=engine.device.type == "cuda",
            switches=engine.switches,
        )
        self.subject = read_target(arms[group[0]].config).subject


def engine_groups(arms: dict[str, Arm]) -> dict[str, list[str]]:
    """The arms of each engine, by the name of the first."""
    groups: dict[str, list[str]] = {}
    for name, arm in arms.items():
        groups.setdefault(arm.engine_key, []).append(name)
    return {names[0]: names for names in groups.values()}


def time_grid(
    place: Place, engine: MeasuredEngine, arms: dict[str, Arm], group: list[str], grid: Grid, seconds: float
) -> pd.DataFrame:
    seats = max(max_num_seqs_of(arms[arm].scheduler) for arm in group)
    cells = cells_of(grid, graph_sizes(engine.switches, seats), seats, engine.num_adapter_slots)
    config = {key: value for key, value in arms[group[0]].config.items() if key not in ("scheduler", "trace")}
    digest = digest_of([arm_digest(config, place.environment), grid.num_steps])
    path = place.output_dir / f"grid-{digest[:8]}.csv"
    place.output_dir.mkdir(parents=True, exist_ok=True)
    place.say(f"{group[0]}: timing {len(cells)} kinds of steps")
    return measure_cells(engine, cells, grid.num_steps, seats, path, seconds, place.say)


def find(
    study: Study,
    name: str,
    note: str | None,
    groups: dict[str, list[str]],
    grids: dict[str, pd.DataFrame],
    builds: dict[str, Built],
    seeds: list[int],
    points: pd.DataFrame,
) -> Findings:
    """Fit and test the cost model of every engine, write it, and show how far it is."""
    findings = Findings(definitions=DEFINITIONS)
    for label, group in groups.items():
        built, of_group = builds[label], points[points["arm"].isin(group)]
        is_held_out = of_group["seed"].isin(seeds[1::2])
        ahead = built.engine.num_steps_ahead
        fitted = pd.concat([grids[label], *logs_of(study, of_group[~is_held_out], ahead)], ignore_index=True)
        held_out = logs_of(study, of_group[is_held_out], ahead)
        if not held_out or len(fitted) == len(grids[label]):
            raise ValueError("calibrate needs a finished replay of a seed that is fitted, and one of one that is not")
        file = f"{name}.json" if len(groups) == 1 else f"{name}-{label}.json"
        model = CostModel(
            version=VERSION,
            name=file.removesuffix(".json"),
            device=study.device_name,
            subject=built.subject,
            engine=built.engine,
            kinds=fit_kinds(fitted, built.sizes),
            sizes=built.sizes,
            error={},
            environment=dict(study.environment),
            compute_version=compute_version(),
            notes=[note] if note else [],
        )
        findings = add(findings, *judge(study, file, model, pd.concat(held_out, ignore_index=True)))
    return findings


def logs_of(study: Study, points: pd.DataFrame, num_steps_ahead: int) -> list[pd.DataFrame]:
    tables = [pd.read_parquet(study.folder(point) / "steps.parquet") for point in points["point"]]
    return [
        from_steps(table, num_steps_ahead).assign(is_replayed=1, replay=index) for index, table in enumerate(tables)
    ]


def fit_log(place: Place, name: str, note: str | None, arm: Arm, given: GivenLog) -> None:
    """As the study, of a log: its last fifth is held out."""
    if given.device is None or given.num_blocks is None:
        raise ValueError("steps.path needs steps.device, the name of the device, and steps.num_blocks of its KV cache")
    log = read_step_log(str(given.path)).assign(is_replayed=1)
    num_fitted = round((1 - HELD_OUT) * len(log))
    if num_fitted in (0, len(log)):
        raise ValueError(f"steps.path={given.path} has {len(log)} steps, too few to hold some out")
    engine = Calibrated(
        num_blocks=whole("steps.num_blocks", given.num_blocks),
        block_size=whole("steps.block_size", given.block_size),
        num_cache_bytes=0,
        slot_bytes=0,
        kv_dtype=UNKNOWN,
        num_steps_ahead=given.num_steps_ahead,
        are_loads_beside=False,
        switches={},
    )
    model = CostModel(
        version=VERSION,
        name=name,
        device=given.device,
        subject=read_target(arm.config).subject,
        engine=engine,
        kinds=fit_kinds(log[:num_fitted], {}),
        sizes={},
        error={},
        environment=dict(place.environment),
        compute_version=compute_version(),
        notes=[f"fitted on a log of another server, {given.path}", *([note] if note else [])],
    )
    finish(place, f"calibrate on {given.device}", judge(place, f"{name}.json", model, log[num_fitted:])[1])


def judge(place: Place, file: str, model: CostModel, held_out: pd.DataFrame) -> tuple[str, Findings]:
    """Write the model with its error on steps that were not fitted; its name, and what a page shows of it."""
    steps = predicted(model, held_out)
    found = errors(steps)
    model = replace(model, error=found)
    path = place.output_dir / FOLDER / file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_cost_model(path, model)
    caption = f"Steps that {model.name} was not fitted on"
    title = f"{model.name}, {model.device}"
    figures = {
        f"predicted_{model.name}": (predicted_against_measured(steps, title), AGAINST),
        f"ratios_{model.name}": (ratios_by_kind(steps, title), RATIOS),
    }
    unknown = sorted({"prompt", "decode"} - set(model.kinds))
    notes = [f"wrote {path} ({path.stat().st_size:,} bytes): python run.py engine=modelled engine.path={path}"]
    notes += [f"{model.name} knows no {kind} steps" for kind in unknown]
    return model.name, Findings(figures, {caption: error_table(found), **terms_tables(model)}, notes, DEFINITIONS)


def add(findings: Findings, name: str, more: Findings) -> Findings:
    return Findings(
        {**findings.figures, **more.figures},
        {**findings.tables, **more.tables},
        [*findings.notes, *more.notes],
        DEFINITIONS,
    )


def error_table(found: dict[str, dict[str, float | None]]) -> pd.DataFrame:
    rows = pd.DataFrame(found).T
    return pd.DataFrame(
        {
            "steps": rows.index,
            "number": [int(num) for num in rows["num_steps"]],
            "bias (%)": 100 * rows["bias"].to_numpy(),
            "median error (%)": 100 * rows["median"].to_numpy(),
            "P99 error (%)": 100 * rows["p99"].to_numpy(),
            "within 90% interval (%)": 100 * rows["coverage"].to_numpy(),
        }
    )


def terms_tables(model: CostModel) -> dict[str, pd.DataFrame]:
    """The terms of each kind, as µs per unit, and the entries of its table of rows."""
    rows = []
    for kind, cost in model.kinds.items():
        named = [(f"{num_rows} rows", seconds) for num_rows, seconds in dict.fromkeys((cost.rows[0], cost.rows[-1]))]
        named += [(f"context token, {num_rows} rows", seconds) for num_rows, seconds in cost.context]
        rows += [{"steps": kind, "term": term, "on the device (µs)": 1e6 * seconds} for term, seconds in named]
        for term in dict.fromkeys([*cost.device, *cost.beside]):
            parts = {"on the device (µs)": cost.device, "beside it (µs)": cost.beside, "of the host (µs)": cost.host}
            scaled = {key: 1e6 * terms[term] if term in terms else None for key, terms in parts.items()}
            rows.append({"steps": kind, "term": term, **scaled})
    return {f"Terms of {model.name}": pd.DataFrame(rows)}
