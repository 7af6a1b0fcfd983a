"""experiment=lorax as a user calls it, on the smallest model."""

import re

import pandas as pd
import pytest

from tests.report.html_page import Page, check_page

QUICK = ["experiment=lorax", "streams=[6,2,2]", "num_prompt_tokens=4", "num_repeats=2", "device=cpu"]
LORAS = ("none", "loop", "gathered", "segmented")
CORNERS = ["naive=[static,float,loop]", "full=[continuous,float,gathered]", "ceiling=[continuous,float,none]"]
FEW = ["~axes.precision.int8", "~axes.lora.segmented", *CORNERS]


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(
    ("options", "precisions", "loras"),
    [(FEW, ["float"], LORAS[:3]), pytest.param([], ["float", "int8"], LORAS, marks=pytest.mark.nightly)],
    ids=["few", "every"],
)
def test_streams_and_every_combination(cli, smallest, tmp_path, options, precisions, loras):
    arms = [f"{one}+{other}+{lora}" for one in ("static", "continuous") for other in precisions for lora in loras]
    code, output = cli(*smallest, *QUICK, *options, "rates=[2000]", "seeds=[0,1]", "trace.num_requests=4")
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
    assert points["arm"].tolist() == [arm for arm in arms for _ in (0, 1)]
    assert (points["num_completed"] == 4).all()
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures == {"contributions", "combinations", "streams"}
    assert "static+float+none: saturated –" in output
    page = Page(folder / "report.html")
    check_page(page, folder)
    header = ["technique", "output (tok/s)", "alone (×)", "in turn (×)", "last (×)"]
    path = ["static → continuous", *["float → int8"] * ("int8" in precisions), "loop → gathered"]
    techniques = page.rows[page.rows.index(header) + 1 :][: len(path)]
    assert [row[0] for row in techniques] == path
    for cell in (cell for row in techniques for cell in row[2:]):
        mean, low, high = map(float, re.fullmatch(r"(\S+?)\s*\[(\S+) (\S+)\]", cell.replace(",", "")).groups())
        assert 0 <= low <= mean <= high


@pytest.mark.nightly
def test_an_arm_that_fails_leaves_the_others_and_no_bars(cli, smallest, tmp_path):
    few = ["~axes.lora.gathered", "~axes.lora.none", "~axes.precision.float", "rates=[2000]"]
    corners = ["naive=[static,int8,loop]", "full=[continuous,int8,segmented]", "ceiling=[continuous,int8,segmented]"]
    code, output = cli(*smallest, *QUICK, *few, *corners, "axes.lora.loop.lora.max_rank=4", "seeds=[0]")
    assert code == 1
    assert "has rank 8, more than lora.max_rank=4" in output
    folder = tmp_path / "outputs/lorax"
    assert pd.read_csv(folder / "points.csv")["arm"].tolist() == ["static+int8+segmented", "continuous+int8+segmented"]
    assert {path.stem for path in (folder / "figures").iterdir()} == {"combinations", "streams"}


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
