"""Files appear whole or not at all, JSON is strict, digests do not depend on order, and a lock holds others back."""

import errno
import json
from math import inf, nan
from threading import Event, Thread

import pandas as pd
import pytest

from framework.study.files import GrowingTable, digest_of, finite, locked, write_atomically, write_json


def test_a_digest_depends_on_values_and_not_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": [1.0, None]}) == digest_of({"b": [1.0, None], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 1.5}) != digest_of({"a": "1.5"})


def test_json_has_null_for_what_is_no_number(tmp_path):
    data = {"a": [1.5, nan], "b": {"c": inf, "d": (2, -inf)}, "e": "NaN"}
    write_json(tmp_path / "a.json", data)
    assert json.loads((tmp_path / "a.json").read_text()) == finite(data)
    assert finite(data) == {"a": [1.5, None], "b": {"c": None, "d": [2, None]}, "e": "NaN"}


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_rows_are_on_disk_as_they_come_and_take_the_tables_place_at_the_end(tmp_path):
    path = tmp_path / "new" / "steps.csv"
    with GrowingTable(path) as table:
        table.add([])
        assert not path.parent.exists()
        table.add([{"x": 1}])
        table.add([{"x": 2}, {"x": 3}])
        assert pd.read_csv(table.unfinished)["x"].tolist() == [1, 2, 3]
        assert not path.exists()
    assert pd.read_csv(path)["x"].tolist() == [1, 2, 3]
    assert not table.unfinished.exists()


def rows_then(error):
    yield {"x": 2}
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_keeps_the_rows_and_the_earlier_table(tmp_path, error):
    path = tmp_path / "steps.csv"
    path.write_text("x\n9\n")

    table = GrowingTable(path)

    def measure():
        with table:
            table.add([{"x": 1}])
            table.add(rows_then(error))

    with pytest.raises(error):
        measure()
    assert path.read_text() == "x\n9\n"
    assert table.unfinished.read_text() == "x\n1\n"


def test_one_job_at_a_time(tmp_path):
    order, inside = [], Event()

    def wait_for_the_lock():
        inside.set()
        with locked(tmp_path / "new"):
            order.append("second")

    with locked(tmp_path / "new"):
        other = Thread(target=wait_for_the_lock)
        other.start()
        assert inside.wait(10)
        other.join(0.05)
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("framework.study.files.fcntl.flock", refuse)
    with (
        pytest.raises(ValueError, match=r"its file system has no locks, which jobs that share a folder need"),
        locked(tmp_path),
    ):
        pass
