"""experiment=fidelity with fake engines, one of which is a tenth slower, and as a user calls it."""

import pandas as pd
import pytest

from experiments.fidelity.cells import Plan, make_arms
from experiments.fidelity.errors import AllGoals, Goals
from experiments.fidelity.study import find, rate_of, replay_cells, with_places
from tests.report.html_page import Page, check_page
from tests.study.fake_study import DEFAULTS

PLAN = Plan(reference="right", sides=["right", "slow"], loads=[0.5, 1.0], seconds=2.0, repeats=2, seed=0)
GOALS = AllGoals(
    moderate=Goals(throughput=1, p50=1, p99=2, attainment=1),
    saturated=Goals(throughput=3, p50=3, p99=5, attainment=2),
    shift=1,
)


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    sides = {"right": {}, "slow": {"engine": {"step_time": 0.011}}}
    seats = {"scheduler": {"max_num_seqs": 8}}
    arms = make_arms(PLAN, {"plenty": seats, "thrash": {"engine": {"num_blocks": 12}, **seats}}, sides, DEFAULTS)
    sweep = {
        "device": "cpu",
        "output_dir": str(tmp_path_factory.mktemp("outputs")),
        "slo": {"ttft": 1.0},
        "fresh": False,
    }
    return replay_cells(PLAN, arms, sweep | {"rates": [], "seeds": []}, "right")


@pytest.mark.nightly
def test_a_side_that_is_a_tenth_slower_is_found_to_be(studied):
    study, capacities = studied
    points = study.table()
    assert sorted(points.groupby("arm").size()) == [4] * 4  # two loads, two repeats
    assert not study.failures
    found = find(study, PLAN, capacities, GOALS, points)
    errors = found.files["errors.csv"]
    tpot = errors[(errors["metric"] == "tpot_p50") & (errors["cell"] == "plenty") & (errors["load"] == 0.5)]
    assert tpot["error"].tolist() == pytest.approx([10.0], abs=8.0)  # prompts come between, one more or less
    assert tpot["spread"].tolist() == [0.0]
    assert tpot["is_met"].tolist() == [False]
    assert set(errors["cell"]) == {"plenty", "thrash"}
    assert (found.files["requests.csv"]["tpot_bias"] > 2).all()
    assert set(found.figures) == {"error_over_load", "distributions", "request_by_request"}
    notes = "\n".join(found.notes)
    assert "plenty: capacity" in notes
    assert "thrash: preemptions by right: " in notes
    assert "plenty: preemptions" not in notes
    assert "slow: " in notes
    assert "goals met; missed: " in notes


def test_points_of_other_loads_in_the_folder_are_left_out(studied):
    study, capacities = studied
    placed = with_places(study.table(), PLAN, {**capacities, "plenty": 2 * capacities["plenty"]})
    assert placed[placed["cell"] == "plenty"]["load"].unique().tolist() == [0.5]
    assert len(placed) == 2 * 2 + 2 * 2 * 2


def test_a_rate_is_rounded_to_three_digits():
    assert rate_of(0.85, 15.93) == 13.5


def test_both_clocks_in_one_command_that_goes_on_where_it_was(cli, smallest, tmp_path):
    smaller = [each for each in smallest if not each.startswith("trace.num_requests")]
    few = ["seconds=0.05", "repeats=2", "loads=[0.5,1.0]", "cells.thrash=null"]
    code, output = cli("experiment=fidelity", "device=cpu", *smaller, *few)
    assert code == 0, output
    folder = tmp_path / "outputs/fidelity"
    assert set(pd.read_csv(folder / "errors.csv")["side"]) == {"virtual"}
    assert len(pd.read_csv(folder / "points.csv")) == 2 * 2 * 2
    check_page(Page(folder / "report.html"), folder)
    code, output = cli("experiment=fidelity", "device=cpu", *smaller, *few)
    assert code == 0, output
    assert "8 of 8 points reused" in output


def test_the_study_that_it_replaces_says_where_it_went(cli):
    code, output = cli("experiment=clock_fidelity")
    assert code != 0
    assert output.strip() == "error: experiment=clock_fidelity has moved: experiment=fidelity"


def test_sides_of_different_traces_are_one_line(cli, smallest):
    code, output = cli("experiment=fidelity", *smallest, "+sides.virtual.trace.num_requests=9")
    assert code != 0
    assert output.strip().startswith(
        "error: cells.memory_for_all: sides wall and virtual replay different traces: num_requests is 6 and 9"
    )
