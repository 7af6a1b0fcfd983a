"""Compose the config, check it, call it: `python run.py experiment=NAME key=value …`."""

import os
import shlex
import signal
import sys
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from threading import Timer
from typing import Any

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C while the imports below take their time ends it quietly

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from framework.catalog import CONF, about
from framework.checks import message, printable
from framework.command_line import prepare
from framework.config import check, import_target, parameters_of
from framework.errors import StudyError, describe_error
from framework.paths import output_folder

USER_ERRORS = (ValueError, OSError, StudyError, InstantiationException, OmegaConfBaseException)


def main() -> None:
    """Run the config, with -m each of several; a user's error is one line (HYDRA_FULL_ERROR=1: a traceback)."""
    failed: list[str] = []
    process = os.getpid()

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(config: DictConfig) -> None:
        replace_unknown_characters()
        try:
            run(config)
        except USER_ERRORS as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
            line = f"error: {message(describe_failure(error))}" + (f" ({message(command())})" if in_sweep else "")
            if os.getpid() != process:  # a launcher's: only an exception reaches the process that waits for it
                raise CompactHydraException(line) from None
            failed.append(line)
            print(line, file=sys.stderr)
        else:
            print("reproduce with:", printable(command()))

    job()
    if failed:
        sys.exit(1)


def run(config: DictConfig) -> None:
    if not config.output_dir:
        raise ValueError("output_dir is empty: name a folder (. is this one)")
    if sys.stdout.isatty():  # what follows imports PyTorch
        print(f"{HydraConfig.get().runtime.choices.experiment} begins", flush=True)
    check_groups(config)
    check(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    config.output_dir = str(output_folder(config.output_dir))
    from framework.report.pages import write_page  # here, so that help and typos need not wait for pandas

    try:
        hydra.utils.call(config, _convert_="all")
    finally:  # an arm that failed leaves the others' results
        page = write_page(Path(config.output_dir), describe_run(config))
        if page is not None:
            print(f"wrote {page}")


def check_groups(config: DictConfig) -> None:
    """Raise ValueError for a chosen group that the study has no use for, such as tracking=wandb for kv_cache."""
    choices = HydraConfig.get().runtime.choices
    if "_target_" not in config:
        raise ValueError(f"experiment={choices.experiment} has no _target_: name the function that runs the study")
    keywords = parameters_of(import_target(config._target_, ""))
    if "output_dir" not in keywords:
        raise ValueError(f"{config._target_} runs no study: it takes no output_dir")
    for group, option in choices.items():
        if group in config and group not in keywords:
            raise ValueError(f"experiment={choices.experiment} has no use for {group}={option}: leave it out")


def command() -> str:
    return shlex.join(["python", "run.py", *HydraConfig.get().overrides.task])


def describe_run(config: DictConfig) -> dict[str, str]:
    """What a study's page says beside its results."""
    study = HydraConfig.get().runtime.choices.experiment
    return {
        "name": study,
        "about": about(study),
        "command": command(),
        "config": OmegaConf.to_yaml(config, resolve=True),
        "finished": datetime.now().astimezone().isoformat(" ", "minutes"),
    }


def describe_failure(error: BaseException) -> str:
    """What went wrong in the called function, whose error Hydra wraps in its own."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: give it one, {error.full_key}=…"
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {str(error).splitlines()[0]}"
    return describe_error(error)


def replace_unknown_characters() -> None:
    """A terminal that lacks a character shows another one in its place."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def stop(signal_number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def interrupt_again(lost: "sys.UnraisableHookArgs") -> None:
    """Python drops what is raised while an object is being deleted, an interruption too: let it come a moment later."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    sys.unraisablehook = interrupt_again
    replace_unknown_characters()
    try:
        sys.argv[1:] = prepare(sys.argv[1:])
        main()
    except KeyboardInterrupt as interrupt:
        sys.exit(": ".join(["interrupted", *interrupt.args]))
