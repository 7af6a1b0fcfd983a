"""experiment=report writes the index of the studies on disk, and prints what it wrote and left out."""

import pytest

from experiments.report import run
from framework.report.pages import write_page, write_record
from tests.report.html_page import Page

ENVIRONMENT = {"device": "cpu", "packages": {"torch": "2.11"}}
RUN = {"name": "lesson", "about": "What.", "command": "python run.py", "config": "a: 1\n", "finished": "now"}


def test_the_index_names_every_study_that_has_ended(tmp_path, capsys):
    with pytest.raises(ValueError, match="no study has ended in"):
        run(output_dir=str(tmp_path), device="cpu")
    for name in ("ended", "running"):
        (tmp_path / name).mkdir()
        write_record(tmp_path / name, title="t", environment=ENVIRONMENT, figures={}, tables={})
    write_page(tmp_path / "ended", RUN)
    run(output_dir=str(tmp_path), device="cpu")
    ended, running, index = capsys.readouterr().out.splitlines()
    assert ended == f"wrote {tmp_path / 'ended/report.html'}"
    assert running.startswith(f"{tmp_path / 'running/report.json'} is left out")
    assert index == f"wrote {tmp_path / 'index.html'}"
    assert Page(tmp_path / "index.html").count("li") == 1
