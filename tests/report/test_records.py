"""What a page's record may hold in its tables: text, numbers, null, and intervals of three numbers."""

import pytest

from framework.report.records import PAGE_RECORD
from framework.study.records import check_record

RECORD = {
    "title": "a study on a CPU",
    "environment": {"device": "cpu", "packages": {"torch": "2", "triton": None}},
    "figures": {"curve": "A curve."},
    "tables": [],
    "notes": [],
    "definitions": {},
}


@pytest.mark.parametrize("value", ["text", True, 1.5, None, [1.0, 0.5, None]])
def test_a_cell(value):
    check_record(PAGE_RECORD, RECORD | {"tables": [{"caption": "t", "columns": ["x"], "rows": [[value]]}]})


@pytest.mark.parametrize("value", [[1.0, 2.0], {"x": 1}, ["low", 0.5, 1.0]])
def test_no_cell(value):
    with pytest.raises(ValueError, match=r"tables\.0\.rows\.0\.0"):
        check_record(PAGE_RECORD, RECORD | {"tables": [{"caption": "t", "columns": ["x"], "rows": [[value]]}]})


def test_a_run_is_there_once_the_study_has_ended():
    with pytest.raises(ValueError, match=r"no run\.about"):
        check_record(PAGE_RECORD, RECORD | {"run": {"name": "a", "command": "", "config": "", "finished": ""}})
