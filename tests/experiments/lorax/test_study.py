"""experiment=lorax as a user calls it, on the smallest model; and what techniques contribute, by hand."""

import re

import pandas as pd
import pytest

from experiments.lorax.ablation import Corners, combine, contributions, describe_ablation
from experiments.lorax.streams import DURATIONS, describe_streams, stream_tables
from tests.report.html_page import Page, check_page

QUICK = ["experiment=lorax", "streams=[6,2,2]", "num_prompt_tokens=4", "num_repeats=2", "device=cpu"]
LORAS = ("none", "loop", "gathered", "segmented")
ARMS = [f"{one}+{other}+{lora}" for one in ("static", "continuous") for other in ("float", "int8") for lora in LORAS]


@pytest.mark.usefixtures("drawn")
def test_streams_and_every_combination(cli, smallest, tmp_path):
    code, output = cli(*smallest, *QUICK, "rates=[2000]", "seeds=[0,1]", "trace.num_requests=4")
    assert code == 0, output
    folder = tmp_path / "outputs/lorax"
    tokens = pd.read_csv(folder / "streams.csv")
    counts = tokens.groupby(["order", "num_adapters"])["token"].count()
    assert counts["alone"].to_dict() == {1: 2 * 6}
    assert counts["at once"].to_dict() == counts["one after the other"].to_dict() == dict.fromkeys((0, 1, 3), 2 * 10)
    in_turn = tokens[tokens["order"] == "one after the other"]
    for _, run in in_turn.groupby(["num_adapters", "repeat"]):
        first, second = (run[run["stream"] == stream]["time"] for stream in (0, 1))
        assert first.max() < second.min()
    at_once = tokens[tokens["order"] == "at once"]
    for _, run in at_once.groupby(["num_adapters", "repeat"]):
        first, second = (run[run["stream"] == stream]["time"] for stream in (0, 1))
        assert first.min() < second.max() < first.max()  # the short stream is done while the long one goes on
    points = pd.read_csv(folder / "points.csv")
    assert points["arm"].tolist() == [arm for arm in ARMS for _ in (0, 1)]
    assert (points["num_completed"] == 4).all()
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures == {"contributions", "combinations", "streams"}
    assert "static+float+none: saturated –, capacity –" in output
    page = Page(folder / "report.html")
    check_page(page, folder)
    header = ["technique", "output (tok/s)", "alone (×)", "in turn (×)", "last (×)"]
    techniques = page.rows[page.rows.index(header) + 1 :][:3]
    assert [row[0] for row in techniques] == ["static → continuous", "float → int8", "loop → gathered"]
    for cell in (cell for row in techniques for cell in row[2:]):
        mean, low, high = map(float, re.fullmatch(r"(\S+?)\s*\[(\S+) (\S+)\]", cell.replace(",", "")).groups())
        assert 0 <= low <= mean <= high


def test_an_arm_that_fails_leaves_the_others_and_no_bars(cli, smallest, tmp_path):
    few = ["~axes.lora.gathered", "~axes.lora.none", "~axes.precision.float", "rates=[2000]"]
    corners = ["naive=[static,int8,loop]", "full=[continuous,int8,segmented]", "ceiling=[continuous,int8,segmented]"]
    code, output = cli(*smallest, *QUICK, *few, *corners, "axes.lora.loop.lora.max_rank=4", "seeds=[0]")
    assert code == 1
    assert "has rank 8, more than lora.max_rank=4" in output
    folder = tmp_path / "outputs/lorax"
    assert pd.read_csv(folder / "points.csv")["arm"].tolist() == ["static+int8+segmented", "continuous+int8+segmented"]
    assert {path.stem for path in (folder / "figures").iterdir()} == {"combinations", "streams"}


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


def test_stream_tables_are_medians_and_last_tokens():
    times = {("alone", 1): [[1.0, 2.0]], ("at once", 1): [[2.0, 4.0], [2.0]], ("one after the other", 1): [[1, 3], [6]]}
    times |= {(order, count): runs for (order, one), runs in list(times.items())[1:] for count in (0, 2)}
    rows = [
        {
            "order": order,
            "num_adapters": count,
            "repeat": repeat,
            "stream": stream,
            "token": token,
            "time": time * scale,
        }
        for repeat, scale in enumerate((1.0, 9.0, 1.0))
        for (order, count), streams in times.items()
        for stream, stamps in enumerate(streams)
        for token, time in enumerate(stamps, start=1)
    ]
    tables = stream_tables(pd.DataFrame(rows))
    assert tables[DURATIONS].to_numpy().tolist() == [[count, 6.0, 4.0, 1.5] for count in (0, 1, 2)]
    assert describe_streams(tables)[:2] == [
        "one stream of 2 tokens: TTFT 1e+03 ms, 1 tokens/s",
        "2 streams with 2 adapters at once: 4 s, 1.50 times as fast as one after the other",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "naive=[static,float]",
            "naive is ['static', 'float']: give one option for each of scheduler, precision, lora",
        ),
        (
            "full=[continuous,int8,segmentd]",
            "full has 'segmentd', which is no option of lora; did you mean 'segmented'",
        ),
        ("naive=[continuous,int8,gathered]", "nothing changes from one to the other"),
        ("full=[continuous,int8,none]", "3 streams need as many adapter slots"),
        ("streams=[5]", "streams must be two or more numbers of tokens from 1 on, not [5]"),
        ("num_repeats=0", "num_repeats=0 is not a whole number of at least 1"),
    ],
)
def test_bad_input_is_one_clear_message(cli, smallest, tmp_path, override, message):
    code, output = cli(*smallest, *QUICK, override)
    assert code == 1
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "outputs").exists()
