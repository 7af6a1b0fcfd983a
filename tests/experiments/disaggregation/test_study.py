"""experiment=disaggregation as a user calls it, and what it makes of attainment over rates and scales."""

from math import isnan

import pandas as pd
import pytest

from experiments.disaggregation.study import check_equal, rate_of_scales, run, summary, tightest
from framework.study.arms import resolve_arms
from tests.report.html_page import Page, check_page
from tests.study.fake_study import DEFAULTS

ATTAINED = {"base": (0.2, 0.8, 0.95, 1.0), "other": (0.92, 0.88, 0.9, 0.97), "never": (0, 0, 0, 0.5)}
SHARES = pd.DataFrame(
    [
        (arm, scale, share)
        for arm, values in {
            "base": (0.2, 0.8, 0.95, 1.0),
            "other": (0.92, 0.88, 0.9, 0.97),
            "never": (0, 0, 0, 0.5),
        }.items()
        for scale, share in zip((0.5, 1.0, 2.0, 4.0), values, strict=True)
    ],
    columns=["arm", "scale", "attainment"],
)


def test_the_tightest_scale_is_one_from_which_on_the_target_is_kept():
    found = tightest(SHARES, 0.9)
    assert (found["base"], found["other"]) == (2.0, 2.0)
    assert isnan(found["never"])


def test_rates_and_scales_stand_over_those_of_the_first_arm_and_per_gpu():
    within = {"base": 4.0, "other": 6.0, "never": float("nan")}
    shares = SHARES.assign(attainment=SHARES["attainment"].where(SHARES["arm"] != "other", 1.0))
    table = summary(shares, within, {"base": 0.0, "other": 0.01, "never": 0.0}, 0.9, 2).set_index("arm")
    assert table.loc["other"].tolist() == [3.0, 1.5, 0.5, 4.0, 1.0]
    assert table.loc["base"].tolist() == [2.0, 1.0, 2.0, 1.0, 0.0]


def test_limits_are_scaled_at_the_highest_rate_that_some_arm_keeps():
    points = pd.DataFrame(
        {"arm": ["a", "a", "b", "b"], "rate": [1.0, 2.0, 1.0, 2.0], "offered_rate": [1.1, 2.2, 1.1, 2.2]}
    )
    assert rate_of_scales(points, {"a": 1.1, "b": 2.2}) == 2.0
    assert rate_of_scales(points, {"a": 1.1, "b": float("nan")}) == 1.0
    assert rate_of_scales(points, {"a": float("nan")}) == 1.0


def test_arms_of_different_numbers_of_servers_are_refused():
    arms = resolve_arms({"a": {"servers": 2}, "b": {}}, DEFAULTS)
    with pytest.raises(ValueError, match="an equal number of servers, and a has 2, b has 1"):
        check_equal(arms)


def test_each_arm_is_replayed_at_every_rate_and_what_moved_is_told(cli, tmp_path):
    few = ["trace.num_requests=12", "rates=[5,50]", "tracking=none", "trace.max_output_tokens=16"]
    code, output = cli("experiment=disaggregation", *few, "trace.max_prompt_tokens=512", "scales=[1,0.001]")
    assert code == 0, output
    folder = tmp_path / "outputs/disaggregation"
    scales = pd.read_csv(folder / "scales.csv").set_index(["arm", "scale"])["attainment"]
    assert scales[("disaggregated", 0.001)] == 0
    assert scales[("colocated", 1.0)] > 0
    points = pd.read_csv(folder / "points.csv")
    assert (points["num_completed"] == 12).all()
    for point in points.loc[points["arm"] == "disaggregated", "point"]:
        requests = pd.read_parquet(folder / "points" / point / "requests.parquet")
        assert (requests["num_moves"] == (requests["num_output_tokens"] > 1)).all()
    check_page(Page(folder / "report.html"), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": []}, "disaggregation needs scales"),
        ({"scales": [0]}, "scales=0 is not a finite number above 0"),
        ({"slo": {"ttft_p99": 1.0}}, "and limits to scale that each request keeps"),
    ],
)
def test_what_cannot_be_scaled_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        run(**DEFAULTS | {"arms": {"a": {}}, "scales": [1.0], "slo": {"ttft": 1.0}} | change)
