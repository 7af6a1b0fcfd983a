"""What `conf/` offers, read from the files themselves: the help text, and the nearest name for a mistyped choice."""

from pathlib import Path

from framework.config import suggest

CONF = Path(__file__).parents[1] / "conf"
EXPERIMENT = "experiment"
OVERRIDES = {
    "model=gpt2": "another model; model=local model.path=DIR for a checkpoint, model.weights=random without a network",
    "device=cuda": "cpu, cuda or auto (the default: a GPU where there is one)",
    "trace=azure_conv rates=[2,4,8]": "other arrivals, at these rates (requests/s; [null]: as recorded)",
    "output_dir=DIR": "where the results go; the default is outputs/ and the study's name",
    "--cfg job": "print the whole config and stop; every key in it can be overridden",
}
SEE_ALSO = (
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
    """Raise ValueError, with the nearest name, for a `group=option` that chooses an option there is none of."""
    known = groups()
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        group = key.partition("@")[0]
        for option in value.split(",") if group in known else []:
            if option != "null" and option not in known[group]:
                raise ValueError(f"{group}={option}: there is no such {group}{suggest(option, known[group])}")


def help_text(default_study: str) -> str:
    studies = {study: about(study) for study in groups()[EXPERIMENT]}
    width = max(map(len, [*studies, *OVERRIDES]))
    lines = ["python run.py experiment=STUDY [key=value …]", "", f"Studies (without experiment=: {default_study})"]
    lines += [f"  {study:{width}}  {what}" for study, what in studies.items() if "/" not in study]
    lines += ["", "Presets"]
    for study, what in studies.items():
        name, _, preset = study.partition("/")
        if preset:
            lines.append(f"  {f'experiment={name} preset={preset}':{width}}  {what}")
    lines += ["", "Overrides", *(f"  {override:{width}}  {what}" for override, what in OVERRIDES.items())]
    lines += ["", "Groups"]
    lines += [f"  {group}: {', '.join(options)}" for group, options in groups().items() if group != EXPERIMENT]
    return "\n".join([*lines, "", *SEE_ALSO])
