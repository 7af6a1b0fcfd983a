"""What `conf/` offers, read from the files themselves: the help text, and the nearest name for a mistyped choice.

A folder in `conf/experiment` holds a study's presets if a YAML of the folder's name stands beside it, else studies.
"""

import ast
import re
import textwrap
from pathlib import Path

from framework.config import suggest
from framework.paths import ROOT

CONF = ROOT / "conf"
EXPERIMENT = "experiment"
MOVED = {  # a study or a preset that another study has taken the place of → how to call that
    "clock_fidelity": "experiment=fidelity",
    "multi_lora/slora": "experiment=papers/slora",
    "multi_lora/slora_8b": "experiment=papers/slora preset=llama_8b",
    "multi_lora/punica": "experiment=papers/punica",
    "multi_lora/punica_8b": "experiment=papers/punica preset=llama_8b",
}
UNTOLD = "(says nothing of itself)"
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
    """Every group with its options; a study's presets are options too, as study/preset.

    A file whose name begins with an underscore is what several options share, and none itself.
    """
    return {
        folder.name: sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("[!_]*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def study_and_preset(option: str) -> tuple[str, str]:
    """('papers/slora', 'llama_8b') for papers/slora/llama_8b; ('papers/slora', '') for the study itself."""
    study, _, preset = option.rpartition("/")
    return (study, preset) if study and yaml_of(study).is_file() else (option, "")


def presets_of(study: str) -> list[str]:
    """The names that `preset=` takes beside `experiment=study`."""
    pairs = map(study_and_preset, groups()[EXPERIMENT])
    return [preset for of, preset in pairs if of == study and preset]


def about(option: str) -> str:
    """The first line of a study's docstring; for a preset, the first comment of its YAML that is for people."""
    text = yaml_of(option).read_text(encoding="utf-8", errors="replace")
    _, preset = study_and_preset(option)
    return first_comment(text) if preset else first_line_of_docstring(text)


def yaml_of(option: str) -> Path:
    return CONF / EXPERIMENT / f"{option}.yaml"


def first_comment(text: str) -> str:
    lines = text.splitlines()
    comments = (line.removeprefix("# ") for line in lines if line.startswith("# ") and not line.startswith("# @"))
    return next(comments, UNTOLD)


def first_line_of_docstring(text: str) -> str:
    """Of the module that the study's `_target_` names, which is not imported: that would load torch."""
    target = re.search(r"^_target_: (.+)\.\w+$", text, re.MULTILINE)
    source = (ROOT / target[1].replace(".", "/")).with_suffix(".py") if target else CONF
    docstring = ast.get_docstring(ast.parse(source.read_bytes())) if source.is_file() else None
    return docstring.splitlines()[0] if docstring else UNTOLD


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
            if group == EXPERIMENT and option in MOVED:
                raise ValueError(f"{group}={option.replace('/', ' preset=')} has moved: {MOVED[option]}")
            if option not in known[group]:
                study, _, _ = option.rpartition("/")
                presets = [name for name in known[group] if name.startswith(f"{study}/")]
                allowed = (presets or [study]) if study in known[group] else known[group]
                raise ValueError(f"{group}={option}: there is no such {group}{suggest(option, allowed)}")


def help_text(default_study: str) -> str:
    lines = ["python run.py experiment=STUDY [preset=PRESET] [key=value …]", ""]
    lines.append(f"Studies (without experiment=: {default_study})")
    for option in groups()[EXPERIMENT]:
        study, preset = study_and_preset(option)
        lines.append(entry(f"  preset={preset}" if preset else study, about(option)))
    lines += ["", "Overrides", *(entry(*override) for override in OVERRIDES.items())]
    choices = {group: ", ".join(options) for group, options in groups().items() if group != EXPERIMENT}
    lines += ["", "Groups", *(entry(*choice) for choice in choices.items())]
    return "\n".join([*lines, "", *SEE_ALSO])


def entry(name: str, what: str) -> str:
    """A name and, wrapped beside it, what it is."""
    indent = " " * HELP_INDENT
    wrapped = textwrap.fill(what, HELP_WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return f"  {name:{HELP_INDENT - 2}}" + wrapped[HELP_INDENT:]
