"""Compose the config, check it, call it: `python run.py experiment=NAME key=value …`. The only importer of hydra."""

import inspect
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C while the imports below take their time ends it quietly

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    CompactHydraException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from framework.catalog import CONF, about, check_choices, groups, help_text
from framework.config import check, suggest
from framework.core import StudyError
from framework.pages import write_page

DEFAULT_EXPERIMENT = "multi_lora"  # as in conf/config.yaml
SWEEP = ("-m", "--multirun")


def main() -> None:
    """Run the config, or with -m one after the other. User errors are a line each, and exit code 1 at the end.

    HYDRA_FULL_ERROR=1 shows where they come from.
    """
    failed: list[str] = []
    process = os.getpid()

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(config: DictConfig) -> None:
        try:
            run(config)
        except (ValueError, OSError, StudyError, InstantiationException, OmegaConfBaseException) as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            message = f"error: {describe_error(error)}"
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                message += f" ({command()})"
            if os.getpid() != process:  # a launcher's: only an exception reaches the process that waits for it
                raise CompactHydraException(message) from None
            failed.append(message)
            print(message, file=sys.stderr)
        else:
            print("reproduce with:", command())

    job()
    if failed:
        sys.exit(1)


def run(config: DictConfig) -> None:
    if not config.output_dir:
        raise ValueError("output_dir is empty: name a folder (. is this one)")
    check_groups(config)
    check(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    try:
        hydra.utils.call(config, _convert_="all")
    finally:  # an arm that failed leaves the others' results
        page = write_page(Path(config.output_dir), describe_run(config))
        if page is not None:
            print(f"wrote {page}")


def check_groups(config: DictConfig) -> None:
    """Raise ValueError for a chosen group that the study has no use for, such as tracking=wandb for kv_cache."""
    keywords = inspect.signature(hydra.utils.get_method(config._target_)).parameters
    choices = HydraConfig.get().runtime.choices
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


def describe_error(error: BaseException) -> str:
    """What went wrong in the called function, whose error Hydra wraps in its own."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: give it one, {error.full_key}=…"
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {str(error).splitlines()[0]}"
    is_for_users = isinstance(error, ValueError | OSError | StudyError)
    return str(error) if is_for_users else f"{type(error).__name__}: {error}"


def prepare(arguments: list[str]) -> list[str]:
    """The command line as Hydra takes it; ends the process for --help and for what cannot be composed."""
    if {"-sc", "--shell-completion"} & set(arguments):
        return arguments
    if "--help" in arguments or "-h" in arguments:
        print(help_text(DEFAULT_EXPERIMENT))
        sys.exit()
    try:
        arguments = expand_preset(arguments)
        arguments = sorted(arguments, key=lambda argument: argument not in SWEEP)  # -m may stand anywhere
        check_choices(arguments)
        check_overrides(arguments)
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {error}")
    return arguments


def check_overrides(arguments: list[str]) -> None:
    """Raise ValueError for overrides that Hydra cannot read or compose; for an unknown key, with the allowed ones.

    With -m, every option of a group that is swept is composed once, and else the first value of each sweep.
    """
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            for overrides in variants(arguments):
                hydra.compose("config", overrides)
        except OverrideParseException as error:
            raise ValueError(describe_unreadable(error)) from error
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(describe_composition(error)) from error


def variants(arguments: list[str]) -> Iterator[list[str]]:
    """Overrides to compose: the first value of each sweep, then each further option of a group, one at a time."""
    overrides = [
        argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
        if not argument.startswith("-") and ("=" in argument or not before.startswith("-") or before in SWEEP)
    ]
    if not {*SWEEP, "hydra.mode=MULTIRUN"} & set(arguments):
        yield overrides
        return
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)
    values = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [override]
        for one, override in zip(parsed, overrides, strict=True)
    ]
    first = [options[0] for options in values]
    yield first
    for index, (one, options) in enumerate(zip(parsed, values, strict=True)):
        if one.key_or_group in groups():
            yield from ([*first[:index], option, *first[index + 1 :]] for option in options[1:])


def describe_unreadable(error: OverrideParseException) -> str:
    key, is_pair, value = error.override.partition("=")
    if not is_pair:
        return f"{error.override!r} is no override: key=value, as in experiment=NAME"
    if not set(value) & set("[]{}'\""):  # else what is wrong may be a bracket or a quote
        quoted = f'{key}="{value}"'
        return f"{error.override} cannot be read: quote the value, '{quoted}'"
    reasons = [line for line in str(error).splitlines() if not line.startswith(("Error parsing", "See https"))]
    return f"{error.override} cannot be read: {' '.join(reasons)}"


def describe_composition(error: HydraException | OmegaConfBaseException) -> str:
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        path, _, key = cause.full_key.rpartition(".")
        names = [] if path else ["experiment", "preset"]
        names += [name for name in cause.parent_node if name != "hydra" and not name.startswith("_")]
        message = f"unknown key {key!r} in {path or 'the study'}{suggest(key, names) if names else ''}"
        return f"{message} (to add it: +{cause.full_key}=…)"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option}: there is no such {group}{suggest(option, error.options)}"
    return " ".join(str(error).split())


def expand_preset(arguments: list[str]) -> list[str]:
    """`experiment=NAME preset=course` is short for `experiment=NAME/course`, a file beside the study's own.

    Of a sweep's `experiment=kv_cache,batching preset=course` that is each study's. Raises ValueError for several
    `preset=`: one is not put on top of another.
    """
    presets = [argument.partition("=")[2] for argument in arguments if argument.startswith("preset=")]
    experiments = [argument.partition("=")[2] for argument in arguments if argument.startswith("experiment=")]
    if not presets:
        return arguments
    if len(presets) > 1:
        raise ValueError(f"preset={' preset='.join(presets)}: a study takes one preset")
    kept = [argument for argument in arguments if not argument.startswith(("preset=", "experiment="))]
    studies = (experiments or [DEFAULT_EXPERIMENT])[-1].split(",")
    files = [f"{study}/{preset}" for study in studies for preset in presets[0].split(",")]
    return [f"experiment={','.join(files)}", *kept]


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
