"""The end of a study: what is written, what the page has, and what a tracker is given."""

import json

import pandas as pd
import pytest
from matplotlib.figure import Figure

from framework.errors import StudyError
from framework.report.finish import Findings, finish, finish_sweep
from framework.study.place import open_place

FOUND = Findings(
    figures={"curve": (Figure(), "A curve.")},
    tables={"Numbers": pd.DataFrame({"x": [1.0, 2.0]})},
    notes=["one [note]"],
    definitions={"X": "what it is"},
    files={"data.csv": pd.DataFrame({"x": [1]}), "data.json": {"x": 1}},
)


@pytest.mark.usefixtures("placeholders")
def test_everything_is_written_told_and_on_the_page(tmp_path, capsys):
    place = open_place("cpu", str(tmp_path / "new"))
    finish(place, "a title", FOUND)
    folder = tmp_path / "new"
    assert (folder / "data.csv").read_text() == "x\n1\n"
    assert json.loads((folder / "data.json").read_text()) == {"x": 1}
    page = json.loads((folder / "report.json").read_text())
    assert (page["title"], page["notes"], page["figures"]) == ("a title", ["one [note]"], {"curve": "A curve."})
    assert page["tables"] == [{"caption": "Numbers", "columns": ["x"], "rows": [[1.0], [2.0]]}]
    assert page["environment"]["device"] == place.device_name
    output = capsys.readouterr().out
    assert "one [note]" in output.splitlines()
    written = [line.rpartition("/")[2] for line in output.splitlines() if line.startswith("wrote ")]
    assert written == ["data.csv", "data.json", "curve.png", "curve.svg"]


@pytest.mark.usefixtures("placeholders")
def test_a_sweep_finds_from_every_point_and_tracks_them(study, tmp_path, capsys):
    done = study({"only": {}, "tight": {"engine": {"num_blocks": 1}}}, [1.0, 2.0])
    tracked = []
    done.tracking = lambda points, configs, figures, **keywords: tracked.append((points, configs, figures, keywords))
    seen = []

    def find(points):
        seen.append(points["rate"].tolist())
        return FOUND

    finish_sweep(done, "mine", find)
    assert seen == [[1.0, 2.0]]
    page = json.loads((tmp_path / "report.json").read_text())
    assert [table["caption"] for table in page["tables"]] == ["Every arm at every rate", "Numbers"]
    assert page["notes"][0] == "one [note]"
    assert page["notes"][-1].startswith("Failed: ")
    [(points, configs, figures, keywords)] = tracked
    assert points["arm"].tolist() == ["only", "only"]
    assert list(configs) == ["only", "tight"]
    assert [path.name for path in figures] == ["curve.png", "curve.svg"]
    assert keywords == {"study": "mine", "output_dir": tmp_path}
    output = capsys.readouterr().out
    assert "Failed: " not in output  # told when it failed
    written = [line.rpartition("/")[2] for line in output.splitlines() if line.startswith("wrote ")]
    assert written == ["data.csv", "data.json", "points.csv", "points", "curve.png", "curve.svg"]


@pytest.mark.usefixtures("placeholders")
def test_the_page_is_there_when_tracking_fails(study, tmp_path, capsys):
    done = study({"only": {}}, [1.0])

    def fail(*arguments, **keywords):
        raise OSError("no room")

    done.tracking = fail
    with pytest.raises(StudyError, match=f"no room .*1 points.* are in {tmp_path}; the same command logs them"):
        finish_sweep(done, "mine", lambda points: FOUND)
    assert (tmp_path / "report.json").exists()
    output = capsys.readouterr().out
    assert "wrote " in output  # all is told before
    assert "one [note]" in output


@pytest.mark.usefixtures("placeholders")
def test_what_is_finished_in_a_folder_that_is_read_only_is_told(study, tmp_path, capsys, monkeypatch):
    finish_sweep(study({"only": {}}, [1.0]), "mine", lambda points: FOUND)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    monkeypatch.setattr("os.access", lambda path, mode: False)  # a test may run as root
    again = study({"only": {}}, [1.0], slo={"ttft": 1.0})
    again.tracking = lambda *arguments, **keywords: pytest.fail("nothing is tracked")
    finish_sweep(again, "mine", lambda points: FOUND)
    output = capsys.readouterr().out
    assert "one [note]" in output
    assert "1 of 1 points reused" in output
    assert f"{tmp_path} is read only: nothing was written" in output
    assert "wrote" not in output
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(ValueError, match="cannot be written"):
        study({"only": {}}, [2.0])
