"""Points through kills, beside other jobs, on a full disk, and with bytes that are not theirs."""

import errno
import json
import multiprocessing
import os
import shutil
import time
import warnings
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from framework.study.points import TABLES, load_record, point_of, write_point
from tests.robustness.kills import kill_at
from tests.study.fake_study import DEFAULTS, run_fake_study

FEW = DEFAULTS | {"trace": partial(DEFAULTS["trace"], num_requests=4)}  # of a study that runs again and again
FORK = multiprocessing.get_context("fork")
NEW = 123.0  # TTFT of the point that takes another's place
pytestmark = pytest.mark.slow


@pytest.fixture
def finished(tmp_path):
    """A study with a finished point."""
    return run_fake_study(tmp_path / "study", {"only": {}}, [1.0], defaults=FEW)


def write_again(study):
    """The point of the study once more, as `fresh` does, with another TTFT."""
    [path] = study.output_dir.glob("points/*/point.json")
    record = json.loads(path.read_text())
    record["metrics"]["ttft_p50"] = NEW
    point = point_of(record)
    write_point(path.parent, point, *(pd.read_parquet(path.parent / file) for file in TABLES), record)


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_kill_at_any_change_leaves_the_earlier_point_or_the_new_one(finished, tmp_path):
    [old], names = finished.table()["ttft_p50"], names_in(finished.output_dir)
    shutil.copytree(finished.output_dir, tmp_path / "before")
    seen = []
    for change in count():
        was_killed = kill_at(change, tmp_path, lambda: write_again(finished))
        with warnings.catch_warnings(action="error"):
            seen += finished.table()["ttft_p50"].tolist()
        assert names_in(finished.output_dir) == names
        if not was_killed:
            break
        shutil.rmtree(finished.output_dir)
        shutil.copytree(tmp_path / "before", finished.output_dir)
    assert len(seen) == change + 1 > 8
    assert seen == sorted(seen)  # the earlier one up to some change, then the new one
    assert set(seen) == {old, NEW}


@pytest.mark.parametrize(
    ("rates", "every"),
    [([1.0], 3), *(pytest.param(rates, 1, marks=pytest.mark.nightly) for rates in ([1.0], [1.0, 2.0]))],
)
def test_a_study_that_is_killed_at_any_change_goes_on(tmp_path, rates, every):
    def run(name):
        return run_fake_study(tmp_path / name, {"only": {}}, rates, defaults=FEW)

    whole = run("whole")
    for change in count(0, every):
        was_killed = kill_at(change, tmp_path, lambda: run("killed"))
        with warnings.catch_warnings(action="error"):
            table = run("killed").table()
        pd.testing.assert_frame_equal(table, whole.table())
        assert names_in(tmp_path / "killed") == names_in(whole.output_dir)
        assert (tmp_path / "killed" / "points.csv").read_bytes() == (tmp_path / "whole" / "points.csv").read_bytes()
        shutil.rmtree(tmp_path / "killed")
        if not was_killed:
            break
    assert change > 12


def test_a_reader_beside_a_writer_sees_the_earlier_point_or_the_new_one(finished):
    def write_until_told(ended):
        while not ended.is_set():
            write_again(finished)

    ended = FORK.Event()
    writer = FORK.Process(target=write_until_told, args=(ended,))
    writer.start()
    seen = set()
    try:
        end = time.monotonic() + 1
        with warnings.catch_warnings(action="error"):
            while time.monotonic() < end:
                [ttft] = finished.table()["ttft_p50"]
                seen.add(ttft)
    finally:
        ended.set()
        writer.join()
    assert NEW in seen
    assert writer.exitcode == 0


def test_jobs_that_redo_the_same_points_do_not_meet(tmp_path):
    def run():
        with warnings.catch_warnings(action="error"):
            assert len(run_fake_study(tmp_path, {"a": {}, "b": {}}, [1.0, 2.0], defaults=FEW, fresh=True).table()) == 4

    jobs = [FORK.Process(target=run) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert not [name for name in names_in(tmp_path) if name.startswith(("points/.", ".u"))]


@pytest.mark.parametrize("num_written", range(0, 7, 2))
def test_a_full_disk_names_the_file_and_what_it_needed(tmp_path, monkeypatch, num_written):
    left = num_written
    write_bytes = Path.write_bytes

    def write_until_full(path, data):
        nonlocal left
        left -= 1
        if left < 0:
            write_bytes(path, data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_bytes(path, data)

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", write_until_full)
        with pytest.raises(OSError, match=rf"No space left on device: {tmp_path}/.* needs [\d,]+ bytes"):
            run_fake_study(tmp_path, {"only": {}}, [1.0, 2.0, 3.0], defaults=FEW)
    assert not [name for name in names_in(tmp_path) if ".unfinished" in name]
    with warnings.catch_warnings(action="error"):
        assert len(run_fake_study(tmp_path, {"only": {}}, [1.0, 2.0, 3.0], defaults=FEW).table()) == 3


def test_a_changed_byte_or_a_cut_is_found(finished, tmp_path):
    [whole] = finished.output_dir.glob("points/*")
    rng = np.random.default_rng(0)
    for round in range(100):
        folder = tmp_path / str(round) / whole.name
        shutil.copytree(whole, folder)
        path = folder / TABLES[round % 2]
        content = bytearray(path.read_bytes())
        place = int(rng.integers(len(content)))
        if round % 3:
            content[place] ^= int(rng.integers(1, 256))
        else:
            del content[place:]
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=f"{whole.name} is no finished point: {path.name}: "):
            assert load_record(folder) is None
