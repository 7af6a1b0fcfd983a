"""Offline W&B runs, read back with wandb's own tool."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from framework.report.plots import save
from framework.report.tracking import wandb_tracker

POINTS = pd.DataFrame(
    [("a", 2.0, 0, 20.5), ("a", 1.0, 0, 10.5), ("b", 1.0, 0, 11.5)],
    columns=["arm", "offered_rate", "seed", "output_throughput"],
).assign(rate=lambda points: points["offered_rate"])


def track(folder: Path) -> None:
    figures = save({"curve": Figure(figsize=(1, 1))}, folder / "figures")
    wandb_tracker()(POINTS, {"a": {"x": 1}, "b": {"x": 2}}, figures, study="my_study", output_dir=folder)


def read_runs(folder: Path) -> dict[str, list[dict]]:
    """Run name → the records of its log."""
    runs = {}
    for path in sorted(folder.glob("wandb/offline-run-*")):
        command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(path)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        records = [json.loads(line) for line in output.splitlines()]
        run = next(record["run"] for record in records if record["type"] == "run")
        assert run["run_group"] == "my_study"
        runs[run["display_name"]] = records
    return runs


def history(records: list[dict]) -> list[dict]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


@pytest.mark.slow
def test_one_run_per_arm_and_a_summary(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    track(tmp_path)
    track(tmp_path)  # a repeated study replaces its runs
    runs = read_runs(tmp_path)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 3
    assert sorted(runs) == ["a", "b", "summary"]
    logged = [(row["arrival_rate"], row["output_throughput"]) for row in history(runs["a"])]
    assert logged == [(1.0, 10.5), (2.0, 20.5)]
    metrics = [record["metric"] for record in runs["a"] if record["type"] == "metric"]
    assert any(metric.get("step_metric") == "arrival_rate" for metric in metrics)
    logged = " ".join(key for row in history(runs["summary"]) for key in row)
    assert "curve." in logged
    assert "points." in logged


def test_online_without_a_key_is_an_error(monkeypatch):
    monkeypatch.setattr("framework.report.tracking.has_api_key", lambda: False)
    with pytest.raises(ValueError, match="wandb login"):
        wandb_tracker(mode="online")


@pytest.mark.parametrize("project", ["a/b", "a:b", "x" * 129])
def test_a_project_that_wandb_refuses_is_an_error_before_anything_runs(project):
    with pytest.raises(ValueError, match=r"tracking\.project='.*Invalid project name") as raised:
        wandb_tracker(project=project)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["WANDB_CACHE_DIR", "WANDB_DATA_DIR"])
def test_a_folder_that_wandb_cannot_write_is_an_error_before_anything_runs(tmp_path, monkeypatch, name):
    (tmp_path / "file").touch()
    monkeypatch.setenv(name, str(tmp_path / "file" / "x"))
    with pytest.raises(ValueError, match=f"{name}=.*file is a file, where a folder belongs"):
        wandb_tracker()
    wandb_tracker(mode="disabled")
    monkeypatch.setenv(name, str(tmp_path / "new"))
    wandb_tracker()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="cannot be written"):
        wandb_tracker()


def test_nothing_of_wandb_that_is_used_is_deprecated(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with warnings.catch_warnings(action="error"), pytest.raises(ValueError, match="wandb login"):
        wandb_tracker(mode="online")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["environment", "netrc"])
def test_a_key_is_found_without_a_network(tmp_path, place):
    key = 40 * "a"
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {key}\n" if place == "netrc" else "")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environ = kept | {"NETRC": str(tmp_path / "netrc")} | ({"WANDB_API_KEY": key} if place == "environment" else {})
    code = "from framework.report.tracking import wandb_tracker; wandb_tracker(mode='online')"
    subprocess.run([sys.executable, "-c", code], env=environ, check=True)
