"""What the figures of lesson 7 draw, number by number."""

import pandas as pd

from experiments.lorax.figures import combination_curves, contribution_bars, stream_times
from tests.experiments.lora.test_figures import drawn


def test_every_technique_is_a_step_up_or_down_from_the_level_before():
    table = pd.DataFrame({"technique": ["a → b", "x → y"], "before": [10.0, 40.0], "output": [40.0, 30.0]})
    for name, factors in {"alone": [3.0, 0.5], "in_turn": [4.0, 0.75], "last": [5.0, 0.75]}.items():
        table = table.assign(**{name: factors, f"{name}_low": factors, f"{name}_high": factors})
    left, right = contribution_bars(table, 50.0, "the full stack").axes
    bars = sorted((round(bar.get_x() + 0.4, 6), bar.get_y(), bar.get_height()) for bar in left.patches)
    assert bars == [(0, 0, 10), (1, 10, 30), (2, 40, -10), (3, 0, 30)]  # place, from, step
    assert drawn(left)["the full stack, without adapters"] == [50.0, 50.0]
    assert [bar.get_y() + bar.get_height() for bar in right.patches] == [3.0, 0.5, 4.0, 0.75, 5.0, 0.75]
    assert {bar.get_y() for bar in right.patches} == {1.0}
    assert right.get_yscale() == "log"


def test_a_stream_alone_is_a_line_and_all_streams_are_a_lane_each():
    rows = [("alone", 1, repeat, 0, token, token * scale) for token in (1, 2) for repeat, scale in enumerate((1, 5, 2))]
    rows += [("at once", count, 0, stream, 1, 1.0 + stream) for count in (0, 2) for stream in (0, 1)]
    rows += [("at once", 2, 0, 1, 2, 4.0)]
    columns = ["order", "num_adapters", "repeat", "stream", "token", "time"]
    left, right = stream_times(pd.DataFrame(rows, columns=columns), "title").axes
    assert left.lines[0].get_xydata().tolist() == [[1, 2000.0], [2, 2000.0]]  # medians over the repeats, ms
    lanes = [(lane.get_lineoffset(), list(lane.get_positions())) for lane in right.collections]
    assert lanes == [(0, [1.0]), (1, [2.0, 4.0])]  # those with the most adapters
    assert [text.get_text() for text in right.get_yticklabels()] == ["at once, 1", "at once, 2"]


def test_combinations_have_a_panel_per_pair_and_a_curve_per_last_option():
    rows = [(f"{a}+{b}+{c}", rate, 0.001 * rate) for a in "st" for b in "fi" for c in "nl" for rate in (10.0, 20.0)]
    summary = pd.DataFrame(rows, columns=["arm", "output_throughput", "normalized_latency_mean"])
    figure = combination_curves(summary)
    assert [axes.get_title() for axes in figure.axes] == ["s, f", "s, i", "t, f", "t, i"]
    assert [drawn(axes) for axes in figure.axes] == [{"n": [10.0, 20.0], "l": [10.0, 20.0]}] * 4
