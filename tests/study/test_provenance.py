"""An edit redoes the replays that it could change, and no others."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from framework.paths import ROOT
from framework.study import points, provenance
from framework.study.provenance import FRAMEWORK, MEASURING, METRICS_SOURCES, NOT_MEASURING

COPIED = ("framework", "experiments", "conf", "models/tiny", "traces", "run.py")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def run(root: Path, *overrides: str) -> str:
    """What the study prints, run with the source at `root` and there."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "run.py", "experiment=continuous_batching", *overrides, "rates=[50]"]
    process = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    return process.stdout


@pytest.fixture
def append(monkeypatch, tmp_path):
    """Appends a line to a file of a copy of the framework, which is hashed in its place."""
    copy = tmp_path / "framework"
    shutil.copytree(FRAMEWORK, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "FRAMEWORK", copy)

    def append(name: str) -> None:
        with (copy / name).open("a") as file:
            file.write("\n# an edit\n")
        forget()

    def forget() -> None:
        provenance.code_version.cache_clear()
        provenance.metrics_version.cache_clear()

    forget()
    yield append
    forget()


def test_which_sources_redo_the_replays_which_the_metrics_and_which_nothing(study, append, monkeypatch, capsys):
    """With edits that change the sources' hashes alone."""

    def num_reused() -> int:
        table = study({"a": {}, "b": {}}, [1.0]).table()
        goodputs.append(set(table["goodput"]))
        return capsys.readouterr().out.count("(reused)")

    goodputs, summarize = [], points.summarize
    assert num_reused() == 0
    changed = {"goodput": 123.0}
    monkeypatch.setattr(points, "summarize", lambda *args, **keywords: summarize(*args, **keywords) | changed)
    append("report/sweep_plots.py")
    append("catalog.py")
    assert num_reused() == 2
    assert goodputs[1] == goodputs[0] != {123.0}
    append("measure/metrics.py")
    assert num_reused() == 2
    assert goodputs[2] == {123.0}
    for name in ("scheduler/continuous.py", "study/replay_point.py"):
        append(name)
        assert num_reused() == 0


@pytest.mark.nightly
def test_a_caption_a_help_text_and_a_metric_redo_no_replay_and_a_scheduler_redoes_all(smallest, tmp_path):
    for name in COPIED:
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    framework, folder = tmp_path / "framework", tmp_path / "outputs/continuous_batching"
    assert run(tmp_path, *smallest).count("(reused)") == 0
    before = pd.read_csv(folder / "points.csv")

    edit(framework / "report/sweep_plots.py", "The first requests of each arm", "A caption that was edited")
    with (framework / "catalog.py").open("a") as file:
        file.write("\nHELP = 'a help text more'\n")
    edit(framework / "measure/metrics.py", "lambda window: window.num_met / window.duration", "lambda window: 123.0")
    assert run(tmp_path, *smallest).count("(reused)") == 2
    after = pd.read_csv(folder / "points.csv")
    assert after["goodput"].tolist() == [123.0, 123.0]
    others = after.columns.drop(["goodput", "steady_goodput"])
    pd.testing.assert_frame_equal(after[others], before[others])
    assert "A caption that was edited" in (folder / "report.html").read_text()

    with (framework / "scheduler/continuous.py").open("a") as file:
        file.write("\n# an edit\n")
    assert run(tmp_path, *smallest).count("(reused)") == 0
    assert set(pd.read_csv(folder / "points.csv")["point"]).isdisjoint(after["point"])
    assert len(list((folder / "points").iterdir())) == 4


def test_every_source_that_is_named_is_there():
    assert all((FRAMEWORK / name).is_file() for name in (*MEASURING, *METRICS_SOURCES))
    assert all((FRAMEWORK / name).exists() for name in NOT_MEASURING)


def test_metrics_are_made_by_the_sources_that_are_hashed():
    """What they import of the framework is one of them."""
    for name in METRICS_SOURCES:
        tree = ast.parse((FRAMEWORK / name).read_text())
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        own = [module.removeprefix("framework.").replace(".", "/") for module in modules if "framework" in module]
        assert {f"{module}.py" for module in own} <= set(METRICS_SOURCES)
