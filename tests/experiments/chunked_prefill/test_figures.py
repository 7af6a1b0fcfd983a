"""What the figures of the study draw, number by number."""

import pandas as pd
import pytest

from experiments.chunked_prefill.figures import beside_reported, chunk_overhead, over_rates, stall_timeline
from experiments.chunked_prefill.stall import PROMPT
from experiments.chunked_prefill.tables import latencies_table
from tests.experiments.chunked_prefill.test_tables import SUMMARY
from tests.experiments.lora.test_figures import drawn


def test_curves_over_rates_in_milliseconds_and_tokens():
    first_tokens, gaps, output = over_rates(SUMMARY).axes
    assert len(first_tokens.containers) == 3 * 2  # P50 and P99
    for bars, values in zip(gaps.containers, [[50, 200], [60, 100], [40, 50]], strict=True):
        assert bars.lines[0].get_ydata().tolist() == pytest.approx(values)
    assert [bars.lines[0].get_xdata().tolist() for bars in output.containers] == [[4.0, 8.0]] * 3
    assert output.containers[0].lines[0].get_ydata().tolist() == [100.0, 200.0]


def test_reported_latencies_are_hollow_bars_beside_the_measured_ones():
    reported = {"whole": {"ttft_p50": 2.0, "itl_p99": 0.4}, "small": {"ttft_p50": 4.0, "itl_p99": 0.1}}
    latencies = latencies_table(SUMMARY[SUMMARY["rate"] == 8.0], reported)
    first_tokens, gaps = beside_reported(latencies, "whole").axes
    assert [bars.get_label() for bars in gaps.containers] == ["measured", "reported"]
    assert [bar.get_height() for bar in gaps.containers[0]] == pytest.approx([1, 0.25])
    assert [bar.get_height() for bar in gaps.containers[1]] == pytest.approx([1, 0.25])
    assert [bar.get_height() for bar in first_tokens.containers[1]] == pytest.approx([1, 2])
    assert [text.get_text() for text in gaps.texts] == ["0.2 s", "0.05 s", "0.4 s", "0.1 s"]


def test_reported_chunks_are_dotted_and_hollow_beside_the_measured_ones():
    columns = ["num_prompt_tokens", "num_chunk_tokens", "ratio"]
    measured = pd.DataFrame([(4096, 512, 1.1), (2048, 512, 1.2)], columns=columns)
    reported = pd.DataFrame([(2048, 512, 1.15), (4096, 1024, 1.0)], columns=columns)
    [axes] = chunk_overhead(measured, reported, "device").axes
    lines = drawn(axes)
    assert lines["chunks of 512"] == [1.2, 1.1]  # by length
    assert (lines["512, reported"], lines["1024, reported"]) == ([1.15], [1.0])
    styles = {line.get_label(): line for line in axes.get_lines()}
    assert styles["512, reported"].get_linestyle() == ":"
    assert styles["512, reported"].get_color() == styles["chunks of 512"].get_color()


def test_a_panel_per_arm_has_the_gaps_of_the_decodes_and_the_span_of_the_prompt():
    rows = [("a", "0", -0.1, None), ("a", "0", 0.3, 0.4), ("a", PROMPT, 0.25, None), ("b", "0", 0.1, 0.2)]
    rows.append(("b", PROMPT, 0.5, None))
    tokens = pd.DataFrame(rows, columns=["arm", "sequence", "time", "gap"])
    upper, lower = stall_timeline(tokens, "device").axes
    assert [line.get_xydata().tolist() for line in upper.get_lines()] == [[[300.0, 400.0]]]
    assert [line.get_xydata().tolist() for line in lower.get_lines()] == [[[100.0, 200.0]]]
    assert [axes.patches[0].get_width() for axes in (upper, lower)] == [250.0, 500.0]
    assert [axes.get_title(loc="left") for axes in (upper, lower)] == ["a", "b"]
