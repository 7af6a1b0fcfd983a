"""The command line before Hydra takes it: presets, help, names for the Tab key, a line for what cannot be composed."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from framework.catalog import CONF, check_choices, groups, help_text, presets_of
from framework.checks import message, shown
from framework.config import suggest

DEFAULT_EXPERIMENT = "multi_lora"  # as in conf/config.yaml
SWEEP = ("-m", "--multirun")
UNUSED_GROUP = re.compile(  # in Hydra's words
    r"Could not override '.+'\.(\nDid you mean to override (one of )?(?P<places>.+)\?)?"
    r".*\nTo append to your default list use \+(?P<choice>.+)"
)


def prepare(arguments: list[str]) -> list[str]:
    """The command line as Hydra takes it; ends the process after an answer, and for what cannot be composed."""
    if {"-sc", "--shell-completion"} & set(arguments):
        if any(argument.startswith("query=") for argument in arguments):
            answer_shell(os.environ["COMP_LINE"])
        return arguments
    if "--help" in arguments or "-h" in arguments:
        print(help_text(DEFAULT_EXPERIMENT))
        sys.exit()
    try:
        arguments = expand_preset(arguments)
        arguments = sorted(arguments, key=lambda argument: argument not in SWEEP)  # -m may stand anywhere
        check_choices(arguments)
        make_folder_of_hydra(check_overrides(arguments), arguments)
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        sys.exit(f"error: {message(str(error))}")
    return arguments


def answer_shell(line: str) -> None:
    """Print what the last word of `line` may become and end the process, if it chooses an option or a preset.

    The rest is Hydra's. Of these, it does not know presets or options in folders.
    """
    *words, last = line.split(" ")
    key, is_pair, value = last.partition("=")
    group = key.lstrip("+").partition("@")[0]
    if is_pair and (key == "preset" or group in groups()):
        options = presets_of(study_of(words)) if key == "preset" else groups()[group]
        print("\n".join(f"{key}={option}" for option in options if option.startswith(value)))
        sys.exit()


def check_overrides(arguments: list[str]) -> DictConfig:
    """Raise ValueError for overrides that Hydra cannot read or compose; for an unknown key, with the allowed ones.

    With -m, every option of a group that is swept is composed once, and else the first value of each sweep. Returns the
    last config, with Hydra's own part.
    """
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            for overrides in variants(arguments):
                config = hydra.compose("config", overrides, return_hydra_config=True)
        except OverrideParseException as error:
            raise ValueError(describe_unreadable(error)) from error
        except yaml.YAMLError as error:
            raise ValueError(describe_yaml(error)) from error
        except UnicodeDecodeError as error:
            raise ValueError(f"a YAML in {CONF} is not UTF-8 text: {error}") from error
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(describe_unused(error, overrides) or describe_composition(error)) from error
    return config


def make_folder_of_hydra(config: DictConfig, arguments: list[str]) -> None:
    """ValueError for a `hydra.run.dir`, or with -m a `hydra.sweep.dir`, that cannot be made."""
    if any(argument.startswith("-") and argument not in SWEEP for argument in arguments):
        return  # such as --cfg: nothing runs
    key = "hydra.sweep.dir" if is_sweep(arguments) else "hydra.run.dir"
    folder = Path(OmegaConf.select(config, key))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{key}={folder} cannot be made: {error.strerror}") from error


def is_sweep(arguments: list[str]) -> bool:
    return bool({*SWEEP, "hydra.mode=MULTIRUN"} & set(arguments))


def variants(arguments: list[str]) -> Iterator[list[str]]:
    """Overrides to compose: the first value of each sweep, then each further option of a group, one at a time."""
    overrides = [
        argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
        if not argument.startswith("-") and ("=" in argument or not before.startswith("-") or before in SWEEP)
    ]
    if not is_sweep(arguments):
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
        return f"{shown(error.override)} is no override: key=value, as in experiment=NAME"
    if not set(value) & set("[]{}'\""):  # else what is wrong may be a bracket or a quote
        quoted = f'{key}="{value}"'
        return f"{error.override} cannot be read: quote the value, '{quoted}'"
    reasons = [line for line in str(error).splitlines() if not line.startswith(("Error parsing", "See https"))]
    return f"{error.override} cannot be read: {' '.join(reasons)}"


def describe_yaml(error: yaml.YAMLError) -> str:
    """The file, the line and what is wrong there."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    reasons = ", ".join(reason for reason in (error.context, error.problem) if reason)
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {reasons}"


def describe_unused(error: HydraException | OmegaConfBaseException, overrides: list[str]) -> str | None:
    """What to say of a group on the command line that the study's defaults do not list; None for another error."""
    unused = UNUSED_GROUP.match(str(error))
    if unused is None:
        return None
    places = f", or name the place: {unused['places']}" if unused["places"] else ""
    return f"experiment={study_of(overrides)} has no use for {unused['choice']}: leave it out{places}"


def describe_composition(error: HydraException | OmegaConfBaseException) -> str:
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        path, _, key = str(cause.full_key).rpartition(".")
        names = [] if path else ["experiment", "preset"]
        names += [name for name in map(str, cause.parent_node) if name != "hydra" and not name.startswith("_")]
        unknown = f"unknown key {shown(key)} in {path or 'the study'}{suggest(key, names) if names else ''}"
        return f"{unknown} (to add it: +{cause.full_key}=…)"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option}: there is no such {group}{suggest(option, error.options)}"
    told = " ".join(str(error).split())
    if told.startswith("Error merging override rates=["):
        return f"{told}: the study's rates are multiples; give a list by '~rates' '+rates=[…]'"
    return told


def expand_preset(arguments: list[str]) -> list[str]:
    """`experiment=NAME preset=course` is short for `experiment=NAME/course`, a file beside the study's own.

    Of a sweep's `experiment=kv_cache,batching preset=course` that is each study's. Raises ValueError for several
    `preset=`: one is not put on top of another.
    """
    presets = [argument.partition("=")[2] for argument in arguments if argument.startswith("preset=")]
    if not presets:
        return arguments
    if len(presets) > 1:
        raise ValueError(f"preset={' preset='.join(presets)}: a study takes one preset")
    kept = [argument for argument in arguments if not argument.startswith(("preset=", "experiment="))]
    files = [f"{study}/{preset}" for study in study_of(arguments).split(",") for preset in presets[0].split(",")]
    return [f"experiment={','.join(files)}", *kept]


def study_of(arguments: list[str]) -> str:
    """The value of `experiment=`: the study, its preset as study/preset, or several with commas."""
    values = [argument.partition("=")[2] for argument in arguments if argument.startswith("experiment=")]
    return values[-1] if values else DEFAULT_EXPERIMENT
