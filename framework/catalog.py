"""What `conf/` offers, read from the files themselves: the help text, and the nearest name for a mistyped choice."""

import re
import textwrap

from framework.config import suggest
from framework.paths import ROOT

CONF = ROOT / "conf"
EXPERIMENT = "experiment"
HELP_WIDTH, HELP_INDENT = 100, 34
OVERRIDES = {
    "model=gpt2": "another model; model=local model.path=DIR for a checkpoint",
    "device=cuda": "cpu, cuda or auto (the default: a GPU where there is one)",
    "trace=azure_conv rates=[2,4,8]": "other arrivals, at these rates in requests/s",
    "output_dir=DIR": "where the results go; the default: outputs/ and the study's name",
    "--cfg job": "print the whole config and stop; every key of it is an override",
}
SEE_ALSO = (
    'Lessons are those of "Efficiently Serving LLMs": docs/course.md',
    'Names complete with the Tab key after: eval "$(python run.py -sc install=bash)" (or zsh, fish)',
    "--hydra-help lists what Hydra adds, such as sweeps with -m",
)


def groups() -> dict[str, list[str]]:
    """Every group with its options; a study's presets are options too, as study/preset."""
    return {
        folder.name: [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.yaml"))]
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def about(study: str) -> str:
    """The first comment line of a study's YAML that is for people."""
    lines = (CONF / EXPERIMENT / f"{study}.yaml").read_text().splitlines()
    return next(line.removeprefix("# ") for line in lines if line.startswith("# ") and not line.startswith("# @"))


def check_choices(arguments: list[str]) -> None:
    """Raise ValueError, with the nearest name, for a group's option that there is none of."""
    known = groups()
    for argument in arguments:
        key, is_pair, value = argument.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if not is_pair or group not in known:
            continue
        if not re.fullmatch(r"[\w./,-]*", value):  # Hydra has a grammar for more than names
            continue
        for option in value.split(","):
            if option not in known[group]:
                study, slash, _ = option.partition("/")
                presets = [name for name in known[group] if name.startswith(f"{study}/")]
                allowed = (presets or [study]) if slash and study in known[group] else known[group]
                raise ValueError(f"{group}={option}: there is no such {group}{suggest(option, allowed)}")


def help_text(default_study: str) -> str:
    lines = ["python run.py experiment=STUDY [preset=PRESET] [key=value …]", ""]
    lines.append(f"Studies (without experiment=: {default_study})")
    for study in sorted(groups()[EXPERIMENT]):
        _, _, preset = study.partition("/")
        lines.append(entry(f"  preset={preset}" if preset else study, about(study)))
    lines += ["", "Overrides", *(entry(*override) for override in OVERRIDES.items())]
    choices = {group: ", ".join(options) for group, options in groups().items() if group != EXPERIMENT}
    lines += ["", "Groups", *(entry(*choice) for choice in choices.items())]
    return "\n".join([*lines, "", *SEE_ALSO])


def entry(name: str, what: str) -> str:
    """A name and, wrapped beside it, what it is."""
    indent = " " * HELP_INDENT
    wrapped = textwrap.fill(what, HELP_WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return f"  {name:{HELP_INDENT - 2}}" + wrapped[HELP_INDENT:]
