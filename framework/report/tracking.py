"""Weights & Biases; the only importer of wandb. Reads finished tables, so it never sits inside a replay.

One run per arm with `arrival_rate` as the step metric, then a final run with the figures and the summary table, all in
one group per study.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import wandb
from wandb.env import get_cache_dir, get_data_dir

from framework.checks import shown
from framework.paths import check_folders, check_writable

Mode = Literal["offline", "online", "disabled"]


def wandb_tracker(
    *, project: str = "llm-serving-replay", mode: Mode = "offline", entity: str | None = None
) -> Callable[..., None]:
    """`track_wandb` with these options; ValueError, before a study has run, for what W&B would refuse after it."""
    if mode == "disabled":
        return partial(track_wandb, project=project, mode=mode, entity=entity)
    try:
        wandb.Settings(project=project, entity=entity)
    except (wandb.Error, ValueError) as error:
        raise ValueError(f"tracking.project={shown(project)}: {' '.join(str(error).split())}") from error
    for name, folder in {"WANDB_CACHE_DIR": Path(get_cache_dir()), "WANDB_DATA_DIR": Path(get_data_dir())}.items():
        check_folders(name, folder)
        check_writable(folder)
    if mode == "online" and not has_api_key():
        raise ValueError("tracking.mode=online needs an account: run `wandb login`, or use tracking.mode=offline")
    return partial(track_wandb, project=project, mode=mode, entity=entity)


def track_wandb(
    points: pd.DataFrame,
    configs: dict[str, Any],
    figures: list[Path],
    *,
    study: str,
    output_dir: Path,
    project: str,
    mode: Mode,
    entity: str | None,
) -> None:
    """Log the points' curves; `configs` maps arm → its config, `figures` are image files.

    Offline runs land in `output_dir/wandb` and take the place of an earlier run of the same arm or summary there.
    """
    shared: dict[str, Any] = {"project": project, "entity": entity, "group": study, "mode": mode}

    for arm, rows in points.groupby("arm", sort=False):
        with start_run(output_dir, name=arm, config=configs[arm], **shared) as run:
            run.define_metric("arrival_rate")
            run.define_metric("*", step_metric="arrival_rate")
            for row in rows.sort_values(["rate", "seed"]).to_dict("records"):
                run.log({"arrival_rate": row["offered_rate"]} | numbers(row))
    with start_run(output_dir, name="summary", job_type="summary", **shared) as run:
        run.log({path.stem: wandb.Image(str(path)) for path in figures if path.suffix == ".png"})
        run.log({"points": wandb.Table(dataframe=points)})


def start_run(output_dir: Path, *, name: str, mode: Mode, **options: Any) -> Any:
    """A run to be used in `with`; offline its id is its name, so that a repeated study does not pile up runs."""
    run_id = None
    if mode == "offline":
        identity = [str(output_dir.resolve()), options["group"], name, options.get("config")]
        run_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        for earlier in (output_dir / "wandb").glob(f"offline-run-*-{run_id}"):
            shutil.rmtree(earlier)
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
    return wandb.init(
        dir=str(output_dir), name=name, mode=mode, id=run_id, reinit="finish_previous", settings=settings, **options
    )


def numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float) and name != "rate"}


def has_api_key() -> bool:
    """Whether one is in the environment, the settings or .netrc; nothing is asked, printed or sent."""
    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise ValueError(f"tracking.mode=online: {error}") from error
