"""Figures of a sweep at one rate: what is drawn, and where."""

import numpy as np
import pandas as pd
import pytest

from framework.report import sweep_plots
from framework.report.sweep_plots import batch_and_cache, clients_over_time, latency_cdf, timeline, with_idle_gaps

STEPS = pd.DataFrame(
    {
        "start_time": [0.0, 1.0, 5.0],
        "elapsed": [0.9, 1.0, 1.0],
        "update": [0.1, 0.0, 0.0],
        "phase": ["prefill", "decode", "decode"],
        "num_seqs": [1, 2, 3],
        "num_used_blocks": [4, 5, 6],
        "num_cached_blocks": [0, 0, 2],
    }
)


def test_a_server_that_sleeps_has_nothing():
    times, values = with_idle_gaps(STEPS, STEPS["num_used_blocks"])
    assert times.tolist() == [0.0, 1.0, 2.0, 5.0, 6.0]
    assert values.tolist() == [4, 5, 0, 6, 0]


def test_prefill_steps_decode_nothing_and_what_is_cached_comes_on_top():
    upper, lower = batch_and_cache({"only": STEPS}, "4 req/s").axes
    assert upper.lines[0].get_ydata().tolist() == [0, 2, 0, 3, 0]
    assert [line.get_ydata().tolist() for line in lower.lines] == [[4, 5, 0, 6, 0], [4, 5, 8]]


def test_a_long_curve_over_time_is_drawn_with_fewer_points(monkeypatch):
    monkeypatch.setattr(sweep_plots, "MAX_DRAWN", 2)
    upper, lower = batch_and_cache({"only": STEPS.astype({"phase": "category"})}, "4 req/s").axes
    assert upper.lines[0].get_xdata().tolist() == [0.0, 5.0]
    assert upper.lines[0].get_ydata().tolist() == [0, 3]
    assert [line.get_ydata().tolist() for line in lower.lines] == [[4, 6], [4, 8]]


def test_a_bar_per_phase_of_each_request_that_is_served():
    requests = pd.DataFrame(
        {
            "arrival_time": [0.0, 1.0, 2.0],
            "scheduled_time": [0.5, np.nan, 2.0],
            "first_token_time": [1.0, np.nan, 3.5],
            "finish_time": [4.0, np.nan, 5.0],
            "refused": [None, "too long", None],
        }
    )
    [axes] = timeline({"only": requests}, "4 req/s").axes
    bars = [[(bar.get_x(), bar.get_width()) for bar in phase] for phase in axes.containers]
    assert bars == [[(0.0, 0.5), (2.0, 0.0)], [(0.5, 0.5), (2.0, 1.5)], [(1.0, 3.0), (3.5, 1.5)]]
    assert len(timeline({"only": requests}, "4 req/s", num_requests=1).axes[0].containers[0]) == 1


def test_service_adds_up_and_a_client_alone_has_no_index():
    requests = pd.DataFrame(
        {
            "client_id": ["a", "b"],
            "arrival_time": [0.0, 5.0],
            "first_token_time": [1.25, 6.25],
            "finish_time": [10.0, 10.0],
            "num_prompt_tokens": [10, 20],
            "token_times": [np.array([1.25, 9.75]), np.array([6.25])],
        }
    )
    upper, lower = clients_over_time({"only": requests}).axes
    first, second = (line.get_ydata() for line in upper.lines)
    assert (first[-1], second[-1]) == (10 + 2 * 2, 20 + 2)
    index = lower.lines[0].get_ydata()
    assert np.isnan(index[:10]).all()
    assert np.nanmax(index) <= 1


def test_the_distribution_leaves_out_requests_without_the_latency():
    requests = pd.DataFrame({"ttft": [0.2, 0.1], "tpot": [0.01, np.nan]})
    ttft, tpot = (axes.lines[0] for axes in latency_cdf({"only": requests}).axes)
    assert ttft.get_xdata().tolist() == pytest.approx([100.0, 200.0])
    assert ttft.get_ydata().tolist() == [0.5, 1.0]
    assert (tpot.get_xdata().tolist(), tpot.get_ydata().tolist()) == ([10.0], [1.0])
