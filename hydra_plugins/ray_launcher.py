"""Jobs of a sweep as tasks on a Ray cluster: `-m … hydra/launcher=ray`. A worker that dies costs its own job alone.

Hydra looks for launchers in hydra_plugins. The machines have the project and the folder of the results at equal paths.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


@dataclass
class RayConf:
    """`address` is of a cluster, such as auto or ray://HOST:10001; null: RAY_ADDRESS, or this machine alone."""

    _target_: str = "hydra_plugins.ray_launcher.RayLauncher"
    address: str | None = None
    num_cpus: float = 1.0  # that a job takes; the cluster runs as many jobs at once as it has
    num_gpus: float = 0.0  # likewise; a job sees no GPU but its own
    max_retries: int = 0  # how often a job begins again whose worker has died


ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayConf)


class RayLauncher(Launcher):
    """Hydra's launcher interface: every job is a task, and all of them end before the first failure is told."""

    def __init__(self, address: str | None, **options: float) -> None:
        self.address, self.options = address, options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.ray = import_ray()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        self.ray.init(self.address, include_dashboard=False, logging_level="warning")
        try:
            tasks = [self.start(initial_job_idx + index, job) for index, job in enumerate(job_overrides)]
            jobs = [self.wait(task, job) for task, job in zip(tasks, job_overrides, strict=True)]
        finally:
            self.ray.shutdown()
        for job in [job for job in jobs if job.status is JobStatus.FAILED][1:]:  # Hydra tells the first
            print(job._return_value, file=sys.stderr)
        return jobs

    def start(self, index: int, overrides: Sequence[str]) -> Any:
        """The task that is to return a JobReturn."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = f"{config.hydra.job.name}_{index}", index
        task = self.ray.remote(**self.options)(run_on_worker)
        return task.remote(os.getcwd(), self.hydra_context, config, self.task_function, Singleton.get_state())

    def wait(self, task: Any, overrides: Sequence[str]) -> JobReturn:
        try:
            job: JobReturn = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            line = (
                f"error: {reason} ({' '.join(filter_overrides(overrides))}; the same command computes what is missing)"
            )
            job = JobReturn(overrides=overrides, status=JobStatus.FAILED)
            job.return_value = CompactHydraException(line)
        return job


def import_ray() -> ModuleType:
    """Which sends no usage statistics, unless the environment says so."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise CompactHydraException("error: hydra/launcher=ray needs Ray: pip install -e '.[ray]'") from None


def run_on_worker(
    folder: str,
    hydra_context: HydraContext,
    config: DictConfig,
    task_function: TaskFunction,
    state: dict[Any, Any],
) -> JobReturn:
    """Run the job in a worker's process, in the folder where the sweep was begun."""
    os.chdir(folder)
    setup_globals()
    Singleton.set_state(state)
    HydraConfig.instance().set_config(config)
    return run_job(
        hydra_context=hydra_context,
        task_function=task_function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
