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
from framework.cost.kept_log import kept_model, write_kept_log
from framework.cost.model import VERSION, Calibrated, CostModel, write_cost_model
from framework.cost.shipped import UNKNOWN
from framework.cost.step_log import from_steps, read_step_log
from framework.cost.subject import read_target
from framework.engine.measured import MeasuredEngine, graph_sizes, measured
from framework.measure.serving import max_num_seqs_of
from framework.report.finish import Findings, finish, finish_sweep
from framework.study.arguments import Sweep, check_points
from framework.study.arms import Arm, parts_of, resolve_arms
from framework.study.engine_cache import EngineCache
from framework.study.files import digest_of
from framework.study.place import Place, open_place
from framework.study.points import arm_digest
from framework.study.provenance import compute_version
from framework.study.sweep import Study, run_study

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
    """Steps that were logged elsewhere (None: measure here), and what the engine there was.

    A log that a calibration kept says this of itself.
    """

    path: str | None
    device: str | None
    num_blocks: int | None
    block_size: int
    num_steps_ahead: int


def run(
    *,
    name: str,
    note: str | None,
    grid: Grid,
    time_limit: float,
    steps: GivenLog,
    **sweep: Unpack[Sweep],
) -> None:
    """Time the steps of `grid`, for at most `time_limit` seconds, and of replays; fit them, and write models/NAME.json.

    The arms replay the trace at every rate with every seed. The steps of every second seed are not fitted, and the
    error is theirs: seeds take turns, so that a drift of the machine's speed meets both. There is a cost model for
    every engine that the arms have: with several, NAME-ARM.json by its first arm. All steps are kept beside it, in
    NAME.parquet. With `steps.path` a log is fitted instead: such a file, or one whose last fifth is held out; then
    `model`, `quantization` and `lora` say of what it is. `note` is a sentence on the measurement, which every page
    of a replay with the cost model has.
    """
    arms = resolve_arms(sweep["arms"], parts_of(sweep) | {"clock": "virtual"})
    if steps.path is not None:
        place = open_place("cpu", sweep["output_dir"])
        fit_given(place, name, note, next(iter(arms.values())), steps)
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
    """Keep the steps of every engine, fit and test its cost model, write it, and show how far it is."""
    findings = Findings(definitions=DEFINITIONS)
    for label, group in groups.items():
        log = whole_log(study, grids[label], points[points["arm"].isin(group)], seeds, builds[label])
        of_replays = log.loc[log["is_replayed"] > 0, "held_out"]
        if of_replays.nunique() < 2:
            raise ValueError("calibrate needs a finished replay of a seed that is fitted, and one of one that is not")
        model = CostModel(
            version=VERSION,
            name=name if len(groups) == 1 else f"{name}-{label}",
            device=study.device_name,
            subject=builds[label].subject,
            engine=builds[label].engine,
            kinds={},
            sizes=builds[label].sizes,
            error={},
            environment=dict(study.environment),
            compute_version=compute_version(),
            notes=[note] if note else [],
        )
        path = study.output_dir / FOLDER / f"{model.name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_kept_log(path, log, model)
        found = fit_and_judge(study, model, read_step_log(str(path)))
        kept = f"kept its {len(log):,} steps in {path} ({path.stat().st_size:,} bytes), for steps.path"
        findings = add(findings, replace(found, notes=[*found.notes, kept]))
    return findings


def whole_log(study: Study, grid: pd.DataFrame, points: pd.DataFrame, seeds: list[int], built: Built) -> pd.DataFrame:
    """The grid's steps, then those of replays, numbered from 1 on; the held-out ones last."""
    parts = [grid.drop(columns="cell").assign(replay=0, held_out=0)]
    is_held_out = points["seed"].isin(seeds[1::2])
    ordered = pd.concat([points[~is_held_out], points[is_held_out]])
    for index, point in enumerate(ordered.to_dict("records")):
        steps = pd.read_parquet(study.folder(point["point"]) / "steps.parquet")
        of = {"replay": index + 1, "held_out": int(point["seed"] in seeds[1::2]), "rate": point["rate"]}
        parts.append(from_steps(steps, built.engine.num_steps_ahead).assign(is_replayed=1, **of))
    return pd.concat(parts, ignore_index=True)


def fit_given(place: Place, name: str, note: str | None, arm: Arm, given: GivenLog) -> None:
    """As the study, of a log; without `held_out` its last fifth is."""
    path = str(given.path)
    log, model = read_step_log(path), kept_model(path)
    if model is None:
        notes = [f"fitted on a log of another server, {path}"]
        model = replace(of_another_server(place, arm, given), notes=notes)
    elif given.device is not None or given.num_blocks is not None:
        raise ValueError(f"steps.path={path} says itself what it is of: leave out steps.device and steps.num_blocks")
    if "held_out" not in log:
        num_fitted = round((1 - HELD_OUT) * len(log))
        log["held_out"] = [int(index >= num_fitted) for index in range(len(log))]
    if log["held_out"].nunique() < 2:
        raise ValueError(f"steps.path={path} has {len(log)} steps, too few to hold some out")
    model = replace(model, name=name, notes=[*model.notes, *([note] if note else [])])
    finish(place, f"calibrate on {model.device}", fit_and_judge(place, model, log))


def of_another_server(place: Place, arm: Arm, given: GivenLog) -> CostModel:
    if given.device is None or given.num_blocks is None:
        raise ValueError("steps.path needs steps.device, the name of the device, and steps.num_blocks of its KV cache")
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
    return CostModel(
        version=VERSION,
        name="",
        device=given.device,
        subject=read_target(arm.config).subject,
        engine=engine,
        kinds={},
        sizes={},
        error={},
        environment=dict(place.environment),
        compute_version=compute_version(),
    )


def fit_and_judge(place: Place, model: CostModel, log: pd.DataFrame) -> Findings:
    """Fit the model and write it with its error on steps that were not fitted; what a page shows of it."""
    is_held_out = log["held_out"] > 0
    fitted, held_out = (log[chosen].reset_index(drop=True) for chosen in (~is_held_out, is_held_out))
    model = replace(model, kinds=fit_kinds(fitted, model.sizes))
    steps = predicted(model, held_out)
    found = errors(steps)
    model = replace(model, error=found)
    path = place.output_dir / FOLDER / f"{model.name}.json"
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
    return Findings(figures, {caption: error_table(found), **terms_tables(model)}, notes, DEFINITIONS)


def add(findings: Findings, more: Findings) -> Findings:
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
        long = f"longest sequence of {cost.long_tokens} tokens or more"
        named += [(f"{long}, {num_rows} rows", seconds) for num_rows, seconds in cost.longest]
        rows += [{"steps": kind, "term": term, "on the device (µs)": 1e6 * seconds} for term, seconds in named]
        for term in dict.fromkeys([*cost.device, *cost.beside]):
            parts = {"on the device (µs)": cost.device, "beside it (µs)": cost.beside, "of the host (µs)": cost.host}
            scaled = {key: 1e6 * terms[term] if term in terms else None for key, terms in parts.items()}
            rows.append({"steps": kind, "term": term, **scaled})
    return {f"Terms of {model.name}": pd.DataFrame(rows)}
