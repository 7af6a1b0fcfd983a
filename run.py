"""Compose the config, check it, call it: `python run.py experiment=NAME key=value …`. The only importer of hydra."""

import os
import shlex
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C while the imports below take their time ends it quietly

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from framework.catalog import CONF, about, check_choices, help_text
from framework.config import check, suggest
from framework.core import StudyError
from framework.pages import write_page

DEFAULT_EXPERIMENT = "multi_lora"  # as in conf/config.yaml


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(config: DictConfig) -> None:
    """User errors become one line; HYDRA_FULL_ERROR=1 shows where they come from."""
    try:
        if not config.output_dir:
            raise ValueError("output_dir is empty: name a folder (. is this one)")
        check(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
        try:
            hydra.utils.call(config, _convert_="all")
        finally:  # an arm that failed leaves the others' results
            page = write_page(Path(config.output_dir), describe_run(config))
            if page is not None:
                print(f"wrote {page}")
    except (ValueError, OSError, StudyError, InstantiationException, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        raise CompactHydraException(f"error: {innermost(error)}") from None
    print("reproduce with:", command())


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


def innermost(error: BaseException) -> BaseException:
    """The error of the called function, which Hydra wraps in its own."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def prepare(arguments: list[str]) -> list[str]:
    """The command line as Hydra takes it; ends the process for --help and for a choice or key that is not there."""
    arguments = expand_preset(arguments)
    if {"-sc", "--shell-completion"} & set(arguments):
        return arguments
    if "--help" in arguments or "-h" in arguments:
        print(help_text(DEFAULT_EXPERIMENT))
        sys.exit()
    try:
        check_choices(arguments)
        check_keys(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    return arguments


def check_keys(arguments: list[str]) -> None:
    """Raise ValueError, with the allowed ones, for a key that the config does not have; all else is left to Hydra."""
    overrides = [one for one in arguments if "=" in one and not one.startswith("-")]
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            hydra.compose("config", overrides)
    except OverrideParseException as error:
        key, _, value = error.override.partition("=")
        if not set(value) & set("[]{}'\""):  # else what is wrong may be a bracket or a quote
            quoted = f'{key}="{value}"'
            raise ValueError(f"{error.override} cannot be read: quote the value, '{quoted}'") from None
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__
        if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
            path, _, key = cause.full_key.rpartition(".")
            names = [] if path else ["experiment", "preset"]
            names += [name for name in cause.parent_node if name != "hydra" and not name.startswith("_")]
            message = f"unknown key {key!r} in {path or 'the study'}{suggest(key, names) if names else ''}"
            raise ValueError(f"{message} (to add it: +{cause.full_key}=…)") from None


def expand_preset(arguments: list[str]) -> list[str]:
    """`experiment=NAME preset=course` is short for `experiment=NAME/course`, a file beside the study's own."""
    presets = [argument.partition("=")[2] for argument in arguments if argument.startswith("preset=")]
    experiments = [argument.partition("=")[2] for argument in arguments if argument.startswith("experiment=")]
    if not presets:
        return arguments
    kept = [argument for argument in arguments if not argument.startswith(("preset=", "experiment="))]
    return [f"experiment={(experiments or [DEFAULT_EXPERIMENT])[-1]}/{presets[-1]}", *kept]


def stop(signal_number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        sys.argv[1:] = prepare(sys.argv[1:])
        main()
    except KeyboardInterrupt as interrupt:
        sys.exit(": ".join(["interrupted", *interrupt.args]))
