"""experiment=prediction as a user calls it, and what it says of numbers that are known."""

import json

import numpy as np
import pandas as pd
import pytest

from experiments.prediction import COMPARED, compare, errors, ranking, summary

PREDICTED = {"a": "a", "b": "b-predicted"}


def points(*rows):
    """(arm, seed, every metric), at 4 requests/s."""
    return pd.DataFrame(
        [{"rate": 4.0, "arm": arm, "seed": seed} | dict.fromkeys(COMPARED, value) for arm, seed, value in rows]
    )


def test_errors_are_those_of_the_means_over_seeds():
    table = errors(points(("a", 0, 9.0), ("b", 0, 1.0), ("b", 1, 3.0), ("b-predicted", 0, 2.2)), PREDICTED, "a")
    assert table.iloc[:, :2].to_numpy().tolist() == [[4.0, "b"]]
    assert table.iloc[0, 2:].tolist() == pytest.approx([10.0] * len(COMPARED))


@pytest.mark.parametrize(
    ("executed", "guessed", "expected"),
    [
        ([[1.0, 2.0], [1.0, 2.2]], [[1.0, 1.9], [1.0, 1.9]], ("a", "a", "right")),
        ([[1.0, 2.0], [1.0, 2.2]], [[1.0, 0.9], [1.0, 0.9]], ("a", "b", "wrong")),
        ([[1.0, 2.0], [2.0, 1.2]], [[1.0, 0.9], [1.0, 0.9]], ("a", "b", "within the spread")),
        ([[1.0, 2.0]], [[1.0, 0.9]], ("a", "b", "wrong")),  # one seed has no spread
    ],
)
def test_a_ranking_counts_where_its_gap_exceeds_the_spread(executed, guessed, expected):
    less, less_predicted, gap, spread, verdict = compare(("a", "b"), np.array(executed), np.array(guessed))
    assert (less, less_predicted, verdict) == expected
    assert gap > 0
    assert len(executed) == 1 or spread > 0


def test_the_summary_counts_the_rankings_that_are_clear():
    rows = [("a", 0, 1.0), ("a", 1, 1.0), ("b", 0, 2.0), ("b", 1, 2.1)]
    ranked = ranking(points(*rows, ("b-predicted", 0, 3.0), ("b-predicted", 1, 3.0)), PREDICTED)
    assert len(ranked) == len(COMPARED)
    assert summary(ranked) == "predicted right: 6 of 6 rankings whose gap exceeds the spread"
    ranked.loc[0, ["gap (%)", "verdict"]] = [0.1, "within the spread"]
    assert summary(ranked).startswith("predicted right: 5 of 5 rankings")
    assert summary(ranked).endswith("; of the others 1 are wrong")


def test_one_arm_is_recorded_and_the_other_executed_and_predicted(cli, smallest, tmp_path):
    code, output = cli("experiment=prediction", *smallest, "rates=[50]", "seeds=[0]")
    assert code == 0, output
    folder = tmp_path / "outputs/prediction"
    table = pd.read_csv(folder / "points.csv")
    assert sorted(table["arm"]) == ["continuous", "sarathi", "sarathi-predicted"]
    [path] = folder.glob("points/sarathi-predicted-*/point.json")
    found = json.loads(path.read_text())["engine"]["recorded"]
    assert found["num_replayed"] == 0
    assert found["has_outputs"]
    assert "predicted right: " in output
    code, output = cli("experiment=prediction", *smallest, "record=other")
    assert (code, "record has 'other', which is no arm" in output) == (1, True)
