"""report.html and index.html: what is on them, and that nothing on them collides, dangles or needs a network."""

import json
import os
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest

from experiments.training.figures import loss_curve
from framework.measure.definitions import DEFINITIONS, defined_in
from framework.report.pages import write_index, write_page, write_record
from framework.report.plots import save
from tests.report.html_page import Page, check_page

ENVIRONMENT = {
    "device": "a <device>",
    "git_commit": "abc123",
    "driver": None,
    "packages": {"torch": "2.11", "triton": None},
}
RUN = {
    "name": "lesson",
    "about": "What & why.",
    "command": "python run.py 'a=[1]'",
    "config": "a:\n- 1\n",
    "finished": "now",
}
TABLE = pd.DataFrame(
    {
        "arm": ["a < b", "c"],
        "TTFT P50 (ms)": [1234.5, float("nan")],
        "TTFT P50 (ms)_low": [1200.0, float("nan")],
        "TTFT P50 (ms)_high": [1300.0, float("nan")],
        "steps": [3, 10000],
    }
)


def leave(folder, num_figures=2, run=RUN, **changes):
    """What a study leaves behind, and its page."""
    losses = pd.DataFrame({"num_steps": [0, 1, 2], "train": [3.0, 2.0, 1.0], "held_out": [3.0, 2.1, 1.2]})
    names = ["loss", "again"][:num_figures]
    save({name: loss_curve(losses, "the same figure") for name in names}, folder / "figures")
    (folder / "losses.csv").write_text("a,b\n")
    record = {"figures": {name: f"caption of {name}" for name in names}, "tables": {"The table": TABLE}}
    write_record(folder, **{"title": "t", "environment": ENVIRONMENT, "notes": ["MBU is 1 < 2"], **record, **changes})
    return write_page(folder, run)


def test_a_page_has_everything_and_needs_nothing(tmp_path):
    page = Page(leave(tmp_path))
    check_page(page, tmp_path)
    assert page.count("svg") == 2
    for text in (
        "lesson",
        "What & why.",
        RUN["command"],
        RUN["config"],
        "a <device>",
        "torch 2.11",
        "caption of again",
    ):
        assert text in page.text
    assert "MBU is 1 < 2" in page.text
    assert "driver" not in page.text
    assert set(page.values("href")) >= {"losses.csv", "report.json"}
    assert page.rows == [
        ["arm", "TTFT P50 (ms)", "steps"],
        ["a < b", "1,234[1,200, 1,300]", "3"],
        ["c", "–", "10,000"],
    ]
    assert page.values("data-value") == ["1234.5", "3", "", "10000"]


@pytest.mark.usefixtures("placeholders")
def test_a_file_of_any_name_is_a_link_to_that_file(tmp_path):
    names = ["javascript:alert(1).csv", "a b&c.csv", "50%.csv", "ü#?.json"]
    for name in names:
        (tmp_path / name).touch()
    page = Page(leave(tmp_path))
    check_page(page, tmp_path)
    links = page.values("href")
    assert {*map(unquote, links)} >= {*names}
    assert all(urlsplit(link).scheme == "" for link in links)


@pytest.mark.usefixtures("placeholders")
def test_a_page_that_is_read_only_stays_and_is_on_the_index(tmp_path, monkeypatch):
    page = leave(tmp_path / "javascript:study")
    page.write_text("as it was")
    may_write = os.access
    monkeypatch.setattr("os.access", lambda path, mode: path != page.parent and may_write(path, mode))
    assert write_index(tmp_path) == [f"{page.parent} is read only: its page stays", f"wrote {tmp_path / 'index.html'}"]
    assert page.read_text() == "as it was"
    index = Page(tmp_path / "index.html")
    check_page(index, tmp_path)
    assert all(urlsplit(link).scheme == "" for link in index.values("href"))
    assert write_page(page.parent, RUN) is None


@pytest.mark.usefixtures("placeholders")
def test_the_terms_that_occur_are_defined(tmp_path):
    page = Page(leave(tmp_path))
    for term in ("TTFT", "P50", "MBU", "[low, high]"):
        assert DEFINITIONS[term] in page.text
    assert DEFINITIONS["ITL"] not in page.text
    assert list(defined_in(["the slo met", "steps"])) == ["SLO met"]


def test_figures_take_the_colours_of_the_page(tmp_path):
    source = leave(tmp_path).read_text()
    svg = source[source.index("<svg") : source.index("</svg>")]
    assert "<style" not in svg
    assert "<metadata" not in svg
    for colour in ("fill: #ffffff", "stroke: #000000", "stroke: #dddddd"):  # those that the page's style replaces
        assert colour in svg
        assert f'[style*="{colour}"]' in source


@pytest.mark.usefixtures("placeholders")
def test_a_record_is_completed_once(tmp_path):
    assert write_page(tmp_path, RUN) is None
    leave(tmp_path)
    assert write_page(tmp_path, RUN | {"command": "a command that failed"}) is None
    assert json.loads((tmp_path / "report.json").read_text())["run"] == RUN


@pytest.mark.usefixtures("placeholders")
def test_the_index_shows_every_study_that_has_ended(tmp_path):
    with pytest.raises(ValueError, match="no study has ended in"):
        write_index(tmp_path)
    leave(tmp_path / "one")
    leave(tmp_path / "one/preset", num_figures=1, run=RUN | {"about": "The preset."})
    leave(tmp_path / "text", num_figures=0)
    write_record(tmp_path, title="", environment=ENVIRONMENT, figures={}, tables={})  # still at it
    for name in ("bad/record", "bad/drawing", "bad/lost"):
        leave(tmp_path / name)
    (tmp_path / "bad/record/report.json").write_text("")
    (tmp_path / "bad/drawing/figures/loss.svg").write_text("")
    (tmp_path / "bad/lost/figures/again.svg").unlink()
    (tmp_path / "one/report.html").unlink()
    lines = write_index(tmp_path)
    assert lines[0].startswith(f"{tmp_path / 'report.json'} is left out: its study has not ended")
    pages = [
        tmp_path / name for name in ("one/report.html", "one/preset/report.html", "text/report.html", "index.html")
    ]
    assert all("report.json is left out: " in line for line in lines[1:4])
    assert "loss.svg is no figure" in lines[1]
    assert "again.svg" in lines[2]
    assert lines[4:] == [f"wrote {page}" for page in pages]
    page = Page(tmp_path / "index.html")
    check_page(page, tmp_path)
    assert page.count("svg") == 2
    assert "The preset." in page.text
    assert (tmp_path / "one/report.html").exists()
    with pytest.raises(ValueError, match=r"no study has ended in .*\n.*report.json is left out: "):
        write_index(tmp_path / "bad")


@pytest.mark.usefixtures("placeholders")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": None}, "title: input should be a valid string"),
        ({"environment": {}}, "no environment.device, environment.packages"),
        ({"environment": {"device": "x", "packages": ["torch"]}}, "environment.packages: "),
        ({"figures": ["loss"]}, "figures: "),
        ({"notes": [1]}, "notes.0: "),
        ({"tables": {}}, "tables: "),
        ({"tables": [{"caption": "c", "columns": ["a"], "rows": [[[1, 2]]]}]}, "tables.0.rows.0.0."),
        ({"definitions": None}, "definitions: "),
        ({"run": {"name": "lesson"}}, "no run.about, run.command, run.config, run.finished"),
    ],
)
def test_a_record_of_another_shape_is_left_out(tmp_path, change, message):
    leave(tmp_path / "good")
    leave(tmp_path / "bad")
    path = tmp_path / "bad/report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    lines = write_index(tmp_path)
    assert lines[0].startswith(f"{path} is left out: {message}")
    assert Page(tmp_path / "index.html").count("li") == 1
    with pytest.warns(UserWarning, match=f"{path} is damaged: {message}"):
        assert write_page(tmp_path / "bad", RUN) is None
