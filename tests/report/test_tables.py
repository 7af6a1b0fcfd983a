"""What the operator sees on a terminal and in a file."""

import io

import pandas as pd
import pytest
from rich.console import Console

from framework.measure.metrics import metric_names
from framework.report.tables import in_units, overview, print_frame, print_overview, short


def test_the_table_has_units_and_intervals():
    names = [*metric_names(), *(f"{name}{end}" for name in metric_names() for end in ("_low", "_high"))]
    row = dict.fromkeys(names, 0.25) | {"arm": "a", "offered_rate": 2.0, "ttft_p50_low": float("nan")}
    console = Console(file=io.StringIO(), width=140)
    print_overview(console, pd.DataFrame([row]), title="study")
    output = console.file.getvalue()
    for text in ("TTFT P50", "req/s", "tok/s", "(ms)", "[250, 250]", "[low, high]: 95% interval", "(%)", " 25 "):
        assert text in output


def test_a_page_shows_metrics_in_their_units_with_their_intervals():
    columns = [*metric_names(), *(f"steady_{name}" for name in metric_names())]
    key = {"arm": "a", "seed": 0, "num_completed": 48, "waiting_growth": 0.0}
    rates = [{"rate": rate, "offered_rate": rate} for rate in (2.0, float("inf"))]
    points = pd.DataFrame([dict.fromkeys(columns, 0.25) | key | rate for rate in rates])
    table = overview(points.assign(sustained_throughput=1.0, ttft_p50_low=0.125, ttft_p50_high=0.5))
    assert table["rate (req/s)"].tolist() == [2.0, "at once"]
    ttft = table[["TTFT P50 (ms)", "TTFT P50 (ms)_low", "TTFT P50 (ms)_high"]]
    assert ttft.iloc[0].tolist() == [250.0, 125.0, 500.0]
    assert table[["SLO met (%)", "mean batch", "output throughput (tok/s)"]].iloc[0].tolist() == [25.0, 0.25, 0.25]


@pytest.mark.parametrize("width", [80, 140])
def test_an_arm_has_its_name_on_one_line(width):
    arm = "continuous+float+segmented"
    names = [*metric_names(), *(f"{name}{end}" for name in metric_names() for end in ("_low", "_high"))]
    console = Console(file=io.StringIO(), width=width)
    summary = pd.DataFrame([dict.fromkeys(names, 12.345) | {"arm": arm, "offered_rate": 2.0}])
    print_overview(console, summary, title="study")
    numbers = {f"column {index} has a long name": [1234567.0] for index in range(8)}
    print_frame(console, pd.DataFrame({"arm": [arm], **numbers}), "table")
    output = console.file.getvalue()
    assert output.count(f" {arm} ") == 2
    assert "…" not in output


def test_numbers_are_short():
    values = (0.01234, 1.5, 99.96, 123.4, 45678.9)
    assert [short(value) for value in values] == [
        "0.0123",
        "1.5",
        "100",
        "123",
        "45,679",
    ]


def test_columns_are_shown_in_their_units_over_their_intervals():
    table = pd.DataFrame({"ttft": [0.25, 0.5], "ttft_low": [0.125, float("nan")], "ttft_high": [1.0, float("nan")]})
    frame = in_units(table.assign(unused=1), {"ttft": ("TTFT (ms)", 1e3), "absent": ("absent", 1)})
    assert frame.columns.tolist() == ["TTFT (ms)", "TTFT (ms)_low", "TTFT (ms)_high"]
    console = Console(file=io.StringIO(), width=100)
    print_frame(console, frame, "after 'x[0]'")
    lines = [line.strip("│┃ ") for line in console.file.getvalue().splitlines()]
    assert lines[0] == "after 'x[0]'"
    assert [line for line in lines if line[:1] not in "┏┡└"][1:] == ["TTFT (ms)", "250", "[125, 1,000]", "500"]


def test_any_table_is_printed_as_it_is():
    frame = pd.DataFrame({"case [a]": ["x", "[red]"], "time (ms)": [1234.5, float("nan")], "steps": [3, 40000]})
    console = Console(file=io.StringIO(), width=100)
    print_frame(console, frame, "the title", "the caption")
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.file.getvalue().splitlines()]
    assert ["x", "1,234", "3"] in lines
    assert ["[red]", "–", "40,000"] in lines
    assert "case [a]" in console.file.getvalue()


@pytest.mark.parametrize(("width", "is_list"), [(60, True), (140, False)])
def test_a_table_that_is_too_wide_is_a_list_of_its_rows(width, is_list):
    names = [*metric_names(), *(f"{name}{end}" for name in metric_names() for end in ("_low", "_high"))]
    rows = [dict.fromkeys(names, 0.25) | {"arm": arm, "offered_rate": 2.0} for arm in ("static", "continuous")]
    console = Console(file=io.StringIO(), width=width)
    print_overview(console, pd.DataFrame(rows), title="study")
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert (["TTFT P50 (ms)", "250 [250, 250]"] in cells) == is_list
    assert [row[1] for row in cells if row[0] == "arm"] == (["static", "continuous"] if is_list else [])
    assert "250" in " ".join(lines)


def test_no_cell_and_no_header_steers_the_terminal():
    frame = pd.DataFrame({"case \x1b[1m": ["\x1b[31mx", "y\x9b"], "n": [1, 2]})
    console = Console(file=io.StringIO(), width=100)
    print_frame(console, frame, "title\x07", "caption\x1b[0m")
    output = console.file.getvalue()
    assert not {"\x1b", "\x9b", "\x07"} & set(output)
    for text in (r"case \x1b[1m", r"\x1b[31mx", r"y\x9b", r"title\x07", r"caption\x1b[0m"):
        assert text in output
