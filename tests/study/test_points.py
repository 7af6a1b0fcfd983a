"""Points on disk: whole or not at all, found again, and computed again where they are damaged."""

import hashlib
import json
import shutil
import warnings
from functools import partial
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest

from framework.study.load import Load
from framework.study.points import Point, arm_digest, load_record, write_point
from framework.trace.files import read_table
from framework.trace.recorded import recorded
from tests.study.fake_study import run_fake_study


def test_a_rate_is_the_same_point_however_it_is_written(study):
    study({"only": {}}, [50])
    table = study({"only": {}}, [50.0]).table()
    assert table[["rate", "seed"]].to_numpy().tolist() == [[50.0, 0.0]]


def test_a_dataset_that_is_downloaded_on_the_way_keeps_its_points(study, tmp_path, capsys):
    source = tmp_path / "source.csv"
    source.write_text("arrival_time,num_prompt_tokens,num_output_tokens\n0.0,4,2\n1.0,4,2\n")
    trace = partial(recorded, reader=partial(read_table), file=str(tmp_path / "copy.csv"), url=source.as_uri())
    for is_reused in (False, True):
        result = study({"only": {"trace": trace}}, [None])
        assert ("1 of 1 points reused" in capsys.readouterr().out) == is_reused
    [point] = result.table()["point"]
    record = json.loads((result.folder(point) / "point.json").read_text())
    assert record["files"] == {str(tmp_path / "copy.csv"): hashlib.sha256(source.read_bytes()).hexdigest()}
    (tmp_path / "copy.csv").write_text(source.read_text() + "2.0,4,2\n")
    assert study({"only": {"trace": trace}}, [None]).table()["num_requests"].tolist() == [3]


def test_jobs_that_write_the_same_point_leave_one_whole(tmp_path):
    point = Point("a", Load(1.0), 0, "digest")
    folder = tmp_path / "points" / point.name
    errors = []

    def write():
        try:
            for _ in range(20):
                write_point(folder, point, pd.DataFrame({"x": [1]}), pd.DataFrame({"y": [2]}), {"slo": {}})
        except OSError as error:
            errors.append(error)

    threads = [Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(path.name for path in folder.iterdir()) == ["point.json", "requests.parquet", "steps.parquet"]
    assert [path.name for path in folder.parent.iterdir()] == [point.name]


def test_a_path_is_a_file_only_where_the_config_names_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = {"code_version": "1", "device": "cpu", "packages": {"torch": "2"}}
    before = arm_digest({"trace": {"path": None}}, environment)
    Path("None").write_text("a file of that name")
    assert arm_digest({"trace": {"path": None}}, environment) == before


def test_a_point_of_earlier_code_is_left_alone_and_not_mixed_in(study):
    """Its record has no version of its metrics, and lacks one that came later."""
    result = study({"only": {}}, [1.0])
    folder = result.folder(result.table()["point"][0])
    earlier = folder.with_name("only-rate1-seed0-01234567")
    shutil.copytree(folder, earlier)
    record = json.loads((earlier / "point.json").read_text()) | {"arm_digest": "of earlier code"}
    del record["metrics_version"], record["metrics"]["goodput"]
    (earlier / "point.json").write_text(json.dumps(record))
    with warnings.catch_warnings(action="error"):
        assert study({"only": {}}, [1.0]).table()["point"].tolist() == [folder.name]
    assert json.loads((earlier / "point.json").read_text()) == record


def test_metrics_of_other_code_are_computed_again_from_the_tables(study, capsys):
    before = study({"only": {}}, [1.0])
    path = before.folder(before.table()["point"][0]) / "point.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"metrics_version": "other", "metrics": {"ttft_p50": 9.0}}))
    after = study({"only": {}}, [1.0])
    assert "1 of 1 points reused" in capsys.readouterr().out
    pd.testing.assert_frame_equal(after.table(), before.table())
    assert json.loads(path.read_text()) == record


MISSHAPEN = {
    "no metrics": {"metrics": {}},
    "null metrics": {"metrics": None},
    "null trace": {"trace": None},
    "empty trace": {"trace": {}},
    "null engine": {"engine": None},
    "a seed that is text": {"seed": "0"},
    "an arm that is a list": {"arm": ["only"]},
    "no tables": {"tables": {}},
    "another point's": {"rate": 2.0},
}
TABLES = ("without requests", "empty steps", "cut requests", "flipped bits", "half of the rows", "swapped tables")


FILES = {"truncated": "{", "foreign": "{}", "list": "[]"}  # what stands in point.json


def damage(folder, how):
    if how == "without requests":
        (folder / "requests.parquet").unlink()
    elif how == "empty steps":
        (folder / "steps.parquet").write_bytes(b"")
    elif how == "cut requests":
        (folder / "requests.parquet").write_bytes((folder / "requests.parquet").read_bytes()[:-100])
    elif how == "flipped bits":
        content = bytearray((folder / "requests.parquet").read_bytes())
        content[len(content) // 2] ^= 0xFF
        (folder / "requests.parquet").write_bytes(content)
    elif how == "half of the rows":
        pd.read_parquet(folder / "steps.parquet").iloc[::2].to_parquet(folder / "steps.parquet")
    elif how == "swapped tables":
        (folder / "requests.parquet").write_bytes((folder / "steps.parquet").read_bytes())
    elif how in MISSHAPEN:
        record = json.loads((folder / "point.json").read_text())
        (folder / "point.json").write_text(json.dumps(record | MISSHAPEN[how]))
    else:
        (folder / "point.json").write_text(FILES[how])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished point."""
    result = run_fake_study(tmp_path_factory.mktemp("study"), {"only": {}}, [1.0])
    return result.folder(result.table()["point"][0])


@pytest.mark.parametrize("how", [*FILES, *TABLES, *MISSHAPEN])
def test_a_damaged_point_is_none(finished, tmp_path, how):
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    assert load_record(folder)["arm"] == "only"
    damage(folder, how)
    with pytest.warns(UserWarning, match=f"{folder.name} is no finished point"):
        assert load_record(folder) is None


@pytest.mark.parametrize(
    "how",
    [
        *("truncated", "cut requests"),
        *(
            pytest.param(how, marks=pytest.mark.nightly)
            for how in ("flipped bits", "half of the rows", "another point's")
        ),
    ],
)
def test_a_damaged_point_is_computed_again_and_stops_no_other(study, how):
    result = study({"only": {}}, [1.0])
    folder = result.folder(result.table()["point"][0])
    damage(folder, how)
    with pytest.warns(UserWarning, match=f"{folder.name} is no finished point"):
        assert study({"only": {}}, [2.0]).table()["rate"].tolist() == [2.0]
    with pytest.warns(UserWarning, match="is no finished point"):
        assert len(study({"only": {}}, [1.0]).table()) == 2


def test_what_a_killed_job_left_is_put_right(study):
    result = study({"only": {}}, [1.0, 2.0])
    first, second = (result.folder(point) for point in result.table()["point"])
    before = sorted(result.output_dir.rglob("*"))
    first.rename(first.with_name(f".earlier-{first.name}"))  # its successor never came
    shutil.copytree(second, second.with_name(f".earlier-{second.name}"))  # its successor did
    shutil.copytree(second, second.with_name(".unfinished-only-rate3-seed0-01234567"))
    for name in (".unfinished-report.json", ".points.csv-123"):  # the latter of an earlier version
        (result.output_dir / name).touch()
    assert result.table()["rate"].tolist() == [1.0, 2.0]
    assert sorted(result.output_dir.rglob("*")) == before


def test_point_json_describes_its_tables(study):
    result = study({"only": {}}, [1.0])
    folder = result.folder(result.table()["point"][0])
    record = json.loads((folder / "point.json").read_text())
    for name, table in record["tables"].items():
        frame = pd.read_parquet(folder / name)
        assert table["num_rows"] == len(frame)
        assert table["columns"] == list(frame.columns)
        assert table["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert sorted(record["tables"]) == ["requests.parquet", "steps.parquet"]
