"""Every command in the documentation composes, and its keys and values fit what they call."""

import re
import shlex

import pytest
from hydra import initialize_config_dir

from framework.catalog import CONF, check_choices
from framework.command_line import expand_preset, variants
from framework.config import check
from framework.paths import ROOT
from tests.test_config import composed, lacking, options

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*/README.md"))]
EXAMPLES = {  # what a reader puts in: here, something that there is
    "ORG/NAME": "openai-community/gpt2",
    "DIR": "models/tiny",
    "papers/NAME": "papers/vllm_memory",
    "arms.NAME.": "arms.mine.",
    "=shortest_first": "=continuous",  # README's own scheduler
    "my_module.my_function": "experiments.training.renderings.html_page",
    ", …}": "}",
}


def commands(page: str) -> list[str]:
    """The commands in Markdown: lines of a code block, where a backslash continues one, and inline code."""
    pieces = page.split("```")
    blocks = [line for block in pieces[1::2] for line in block.replace("\\\n", " ").splitlines()]
    inline = [" ".join(code.split()) for text in pieces[::2] for code in re.findall(r"`([^`]+)`", text)]
    lines = [line.removeprefix("nice ") for line in [*blocks, *inline]]
    return [
        f"python run.py {line}" if line.startswith("experiment=") else line
        for line in lines
        if line.startswith(("python run.py", "experiment="))
    ]


def documented() -> list[tuple[str, str]]:
    """Each line once, with the first page that has it."""
    lines = [(line, page.relative_to(ROOT).as_posix()) for page in PAGES for line in commands(page.read_text())]
    return [(page, line) for line, page in dict(reversed(lines)).items()]


def arguments_of(line: str) -> tuple[str, ...]:
    """What stands behind `python run.py`, with examples in the place of what a reader puts in."""
    for name, example in EXAMPLES.items():
        line = line.replace(name, example)
    return tuple(expand_preset(shlex.split(line, comments=True)[2:]))


def different() -> list[tuple[str, str]]:
    """Those of other arguments than any before; a study alone is composed in test_config.py."""
    studies = [option for option in options() if option.startswith("experiment=")]
    alone = {(study,) for study in studies if not lacking(*study.split("="))}
    pairs = {arguments_of(line): (page, line) for page, line in reversed(documented())}
    return [pair for arguments, pair in reversed(pairs.items()) if arguments not in alone]


def test_commands_are_found_in_blocks_over_lines_and_in_text():
    page = "`python run.py\nexperiment=a` or `b=c`\n```sh\npython run.py 'd=[1]' \\\n  e=f  # g\nls\n```\n"
    page += "`experiment=h i=j`"
    assert commands(page) == [
        "python run.py 'd=[1]'    e=f  # g",
        "python run.py experiment=a",
        "python run.py experiment=h i=j",
    ]
    assert len(documented()) > 60


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line"), different())
def test_every_documented_command_composes(page, line):
    arguments = list(arguments_of(line))
    if arguments[:1] == ["-sc"]:
        return
    check_choices(arguments)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        every = list(variants(arguments))
    for overrides in every:
        check(composed(*overrides))
