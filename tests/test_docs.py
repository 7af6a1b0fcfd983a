"""Links lead somewhere, README is short, and the scheduler in it survives a preemption."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from framework.build import replay_trace
from framework.core import Step
from framework.paths import ROOT
from tests.contracts.implementations import readme_classes
from tests.fake_engine import FakeEngine, requests_at

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("models/**/*.md"), *ROOT.glob("traces/*.md")]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = HEADING.findall(without_code(page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in LINK.findall(without_code(page.read_text())):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def test_every_room_has_its_place_in_the_docs():
    rooms = {path.parent.name for path in (ROOT / "framework").glob("*/*.py")}
    assert {room for room in rooms if f"{room}/" not in page("architecture")} == set()


def test_the_docs_order_of_imports_is_the_one_that_is_checked():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = re.sub(r"framework\.|[()]", "", "\n".join(contracts[0]["layers"]))
    assert f"```\n{layers}\n```" in page("architecture")


def test_every_column_of_a_step_has_its_place_in_the_docs():
    words = set(re.findall(r"\w+", page("files")))
    assert {field.name for field in fields(Step)} <= words


def run(requests, **options):
    engine = FakeEngine(
        lambda batch: 1.0 if batch.phase == "prefill" else 0.125, num_blocks=options.pop("num_blocks", 1000)
    )
    (scheduler_type,) = readme_classes("schedule")
    scheduler = scheduler_type(engine.num_blocks, engine.block_size, **options)
    sequences, steps = replay_trace(requests, scheduler, engine)
    assert scheduler.num_used_blocks == 0
    return sequences, [(step.start_time, *batch) for step, batch in zip(steps, engine.batches, strict=True)]


def test_readmes_scheduler_admits_the_shortest_prompt_first():
    _, log = run(requests_at((0.0, 8, 1), (0.5, 12, 1), (0.5, 4, 1)), max_num_seqs=1)
    assert log == [(0.0, "prefill", [0]), (1.0, "prefill", [2]), (2.0, "prefill", [1])]


def test_readmes_scheduler_survives_a_preemption():
    """1 is preempted when it has 9 tokens: 3, whose prompt has 5, goes before it, and 2, with 12, after it."""
    requests = requests_at((0.0, 4, 6), (0.0, 4, 6), (1.25, 12, 1), (1.25, 5, 1))
    sequences, log = run(requests, num_blocks=4, watermark=0.0, max_num_seqs=2)
    assert log[5:] == [
        (1.5, "decode", [0]),
        (1.625, "prefill", [3]),
        (2.625, "prefill", [1]),
        (3.625, "prefill", [2]),
    ]
    assert [sequence.num_preemptions for sequence in sequences] == [0, 1, 0, 0]
    assert sequences[1].output_token_ids == [0, 1, 2, 3, 4, 5]
