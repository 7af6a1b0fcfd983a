"""What techniques contribute, by hand, and what combinations are."""

import pandas as pd
import pytest

from experiments.lorax.ablation import (
    COMBINATIONS,
    CONTRIBUTIONS,
    Corners,
    ablation_tables,
    check_corners,
    combine,
    contributions,
    describe_ablation,
)


def make_points(outputs):
    """Of each arm, a throughput per seed at the higher rate, where only the arms with `x` keep up."""
    rows = [{"arm": arm, "rate": rate, "seed": seed, "output_throughput": value * rate, "sustained_throughput": 0.5,
             "waiting_growth": float(rate == 1 and "x" not in arm), "num_completed": 100, "slo_attainment": 1.0,
             "offered_rate": rate}
            for arm, values in outputs.items() for seed, value in enumerate(values) for rate in (0.5, 1.0)]  # fmt: skip
    return pd.DataFrame(rows)


CORNERS = Corners(naive=["a", "x"], full=["b", "y"], ceiling=["b", "x"])


def test_contributions_alone_in_turn_and_last():
    points = make_points({"a+x": [10.0], "a+y": [30.0], "b+x": [20.0], "b+y": [90.0]})
    table = contributions(points, CORNERS)
    assert table[["technique", "before", "output", "alone", "in_turn", "last"]].to_numpy().tolist() == [
        ["a → b", 10.0, 20.0, 2.0, 2.0, 3.0],
        ["x → y", 20.0, 90.0, 3.0, 4.5, 4.5],
    ]
    together, _, noise, *unsaturated = describe_ablation(points, CORNERS)
    assert "9.00× together; the factors of each alone multiply to 6.00×" in together
    assert noise == "factors of one seed have no interval: what is within some per cent is noise"
    assert [line.partition(":")[0] for line in unsaturated] == ["a+x", "b+x"]
    without = contributions(points[points["arm"] != "b+x"], CORNERS)
    assert without["alone"].isna().tolist() == [True, False]
    assert without["last"].isna().tolist() == [False, True]


def test_factors_are_of_one_seed_each_with_an_interval_over_them():
    """Twice as much is served in one seed as in the other, by every arm; a → b is 2 in both, x → y around 1."""
    points = make_points({"a+x": [10.0, 20.0], "a+y": [12.5, 16.0], "b+x": [20.0, 40.0], "b+y": [25.0, 32.0]})
    continuous, precision = contributions(points, CORNERS).to_dict("records")
    names = ("alone", "in_turn", "last")
    assert (continuous["before"], continuous["output"]) == pytest.approx((200**0.5, 800**0.5))
    assert continuous["output"] / continuous["before"] == pytest.approx(continuous["in_turn"])
    assert [continuous[f"{name}{end}"] for name in names for end in ("", "_low", "_high")] == pytest.approx([2.0] * 9)
    end = 1.25**12.706  # Student's t of one degree of freedom × the standard error of ln 1.25 and -ln 1.25
    for name in names:
        bounds = [precision[f"{name}{end}"] for end in ("", "_low", "_high")]
        assert bounds == pytest.approx([1.0, 1 / end, end], rel=1e-4)
    together, _, noise, *_ = describe_ablation(points, CORNERS)
    assert "14 → 28 output tok/s, 2.00× [0.12, 34.07] together" in together
    assert noise == "factors that these seeds cannot tell from 1: x → y alone, in turn, last"


def test_combinations_take_one_option_of_each_axis():
    axes = {"one": {"a": {"clock": "virtual"}, "b": {"clock": "wall"}}, "other": {"x": {"lora": {}}}}
    assert combine(axes) == {"a+x": {"clock": "virtual", "lora": {}}, "b+x": {"clock": "wall", "lora": {}}}
    with pytest.raises(ValueError, match=r"axes.other.x sets clock, as an axis before it does"):
        combine(axes | {"other": {"x": {"clock": "wall"}}})


def test_the_tables_have_every_technique_and_every_combination():
    points = make_points({"a+x": [10.0], "a+y": [30.0], "b+x": [20.0], "b+y": [90.0]})
    tables = ablation_tables(points, {"one": {"a": {}, "b": {}}, "other": {"x": {}, "y": {}}}, CORNERS)
    assert tables[CONTRIBUTIONS]["technique"].tolist() == ["a → b", "x → y"]
    assert tables[CONTRIBUTIONS]["last (×)"].tolist() == [3.0, 4.5]
    combinations = tables[COMBINATIONS].set_index(["one", "other"])
    assert combinations["output (tok/s)"].to_dict() == {
        ("a", "x"): 10.0, ("a", "y"): 30.0, ("b", "x"): 20.0, ("b", "y"): 90.0,
    }  # fmt: skip
    assert combinations["× naive"].tolist() == [1.0, 3.0, 2.0, 9.0]
    assert combinations["served at most (req/s)"]["a", "y"] == 0.5  # at 1 req/s, which is too much for it
    assert combinations["rate within the SLOs (req/s)"].tolist() == [1.0, 0.5, 1.0, 0.5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"naive": ["a"]}, "naive is"),
        ({"full": ["b", "z"]}, "full has 'z', which is no option of other"),
        ({"naive": ["b", "y"]}, "nothing changes"),
    ],
)
def test_a_corner_is_one_option_of_each_axis(changes, message):
    axes = {"one": {"a": {}, "b": {}}, "other": {"x": {}, "y": {}}}
    corners = {"naive": ["a", "x"], "full": ["b", "y"], "ceiling": ["b", "x"]}
    check_corners(Corners(**corners), axes)
    with pytest.raises(ValueError, match=message):
        check_corners(Corners(**corners | changes), axes)
