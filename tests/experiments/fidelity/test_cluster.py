"""experiment=cluster_fidelity: which decisions are the same, how even they are, and a run with workers in threads."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from experiments.fidelity.cells import Plan
from experiments.fidelity.cluster import decision_notes, decision_table, decisions_of
from framework.placement.workers import when_ready
from framework.study import placed
from tests.placement.engines import in_threads
from tests.report.html_page import Page, check_page

PLAN = Plan(reference="real", sides=["real", "emulated"], loads=[0.5], seconds=1.0, repeats=2, seed=0)


def decisions(tmp_path, servers: dict[str, list[int]], imbalances: dict[str, float], stateless: list[str]):
    """Of one cell; `servers` are those of four requests at each point, SIDE-REPEAT."""
    rows = []
    for point, chosen in servers.items():
        (tmp_path / "points" / point).mkdir(parents=True)
        table = pd.DataFrame({"request_id": [0, 1, 2, 3], "server": chosen})
        table.to_parquet(tmp_path / "points" / point / "requests.parquet")
        side = point.partition("-")[0]
        rows.append({"cell": "a", "load": 0.5, "side": side, "point": point, "imbalance_load": imbalances[point]})
    study = SimpleNamespace(folder=lambda point: tmp_path / "points" / point, device=torch.device("cpu"))
    return decisions_of(study, pd.DataFrame(rows), PLAN, stateless)


def test_decisions_are_compared_with_every_repeat(tmp_path):
    servers = {"real-0": [0, 1, 0, 1], "real-1": [0, 1, 1, 1], "emulated-0": [0, 1, 0, 0]}
    found = decisions(tmp_path, servers, {"real-0": 1.1, "real-1": 1.3, "emulated-0": 1.25}, [])
    [row] = found.to_dict("records")
    assert row["same_server"] == (0.75 + 0.5) / 2
    assert row["between_repeats"] == 0.75
    assert row["imbalance_reference"] == pytest.approx(1.2)
    assert row["spread"] == pytest.approx(0.1 * 12.706, rel=1e-4)  # Student's t of one degree of freedom
    assert row["is_met"]
    assert decision_notes(found) == []
    assert decision_table(found)["Routing decisions and imbalance of load"]["same server (%)"].tolist() == [62.5]


def test_one_other_decision_of_a_stateless_router_is_told(tmp_path):
    servers = {"real-0": [0, 1, 0, 1], "emulated-0": [0, 1, 0, 0]}
    found = decisions(tmp_path, servers, {"real-0": 1.0, "emulated-0": 1.0}, ["a"])
    assert decision_notes(found) == ["a at 50%, emulated: 75% of the requests went to the same server"]


def test_another_imbalance_is_told(tmp_path):
    servers = {"real-0": [0, 1, 0, 1], "emulated-0": [0, 0, 0, 1]}
    found = decisions(tmp_path, servers, {"real-0": 1.0, "emulated-0": 1.5}, [])
    told = "a at 50%, emulated: imbalance of load 1.500 where the reference has 1.000 (±0.000)"
    assert decision_notes(found) == [told]


def test_a_single_server_has_no_imbalance_that_could_differ(tmp_path):
    nothing = float("nan")
    found = decisions(
        tmp_path, {"real-0": [0] * 4, "emulated-0": [0] * 4}, {"real-0": nothing, "emulated-0": nothing}, []
    )
    assert found["is_met"].all()
    assert decision_notes(found) == []


def test_emulated_and_real_servers_in_one_command(cli, smallest, tmp_path, monkeypatch):
    monkeypatch.setattr(placed, "spawn_workers", lambda make, number, device: when_ready(in_threads(make, number)))
    smaller = [each for each in smallest if not each.startswith("trace.num_requests")]
    few = ["seconds=0.05", "repeats=1", "cells.least_outstanding=null", "loads=[0.5]"]
    code, output = cli("experiment=cluster_fidelity", *smaller, *few)
    assert code == 0, output
    folder = tmp_path / "outputs/cluster_fidelity"
    [row] = pd.read_csv(folder / "decisions.csv").to_dict("records")
    assert (row["cell"], row["side"], row["same_server"], row["is_met"]) == ("round_robin", "emulated", 1.0, True)
    assert set(pd.read_csv(folder / "errors.csv")["side"]) == {"emulated"}
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert "This shows that the study works, not how good the emulation is" in page.text


def test_a_cell_that_is_said_to_be_stateless_has_to_be_there(cli, smallest):
    code, output = cli("experiment=cluster_fidelity", *smallest, "stateless=[round_robbin]")
    assert code == 1
    assert "stateless has 'round_robbin', which is no cell; did you mean 'round_robin'?" in output
