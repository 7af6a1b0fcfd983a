"""Figures over the rates of a sweep: what is drawn, and where."""

from functools import partial

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from framework.measure.rates import aggregate, saturation
from framework.report.plots import save
from framework.report.rate_plots import attainment_rate, latency_rate, throughput_latency
from framework.trace.arrivals import poisson
from framework.trace.lengths import fixed, independent
from framework.trace.synthetic import synthetic


def make_summary(tpots: dict[str, float]) -> pd.DataFrame:
    """What `aggregate` would make of arms that take so many seconds per token, at two rates."""
    metrics = ("normalized_latency_mean", "ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99")
    rows = [
        {"arm": arm, "offered_rate": rate} | dict.fromkeys(metrics, s) for arm, s in tpots.items() for rate in (4, 8)
    ]
    intervals = {f"{metric}_{end}": float("nan") for metric in metrics for end in ("low", "high")}
    return pd.DataFrame(rows).assign(**intervals)


@pytest.mark.nightly
def test_figures_take_any_number_of_arms(study):
    arms = {f"arm{index}": {"scheduler": {"max_num_seqs": index + 1}} for index in range(12)}
    result = study(arms, [1.0, 100.0])
    summary, rates = aggregate(result.table()), saturation(result.table())
    figure = throughput_latency(summary)
    FigureCanvasAgg(figure).draw()
    [axes], [legend] = figure.axes, figure.legends
    assert legend.get_window_extent().y0 > axes.get_window_extent().y1  # no curve runs through it
    assert axes.get_window_extent().height > figure.bbox.height / 3
    curves = latency_rate(summary, rates).axes[0].containers
    assert len(curves) == 12
    line = curves[0].lines[0]
    assert line.get_xdata().tolist() == pytest.approx([1.0, 100.0])
    shown = summary[summary["arm"] == "arm0"]["normalized_latency_mean"] * 1e3
    assert line.get_ydata().tolist() == pytest.approx(shown.tolist())


def test_a_ring_marks_the_last_rate_below_saturation(study):
    arms = {"quick": {}, "slow": {"engine": {"step_time": 0.2}, "scheduler": {"max_num_seqs": 1}}}
    summary = aggregate(study(arms, [0.125, 0.25, 20.0]).table())
    axes = throughput_latency(summary).axes[0]
    rings = [line.get_xydata().tolist() for line in axes.lines if line.get_markerfacecolor() == "none"]
    slow = summary[(summary["arm"] == "slow") & (summary["rate"] == 0.25)].iloc[0]
    assert rings == [[[slow["output_throughput"], 1e3 * slow["normalized_latency_mean"]]], []]  # and the legend's


def test_outputs_of_one_token_have_figures_too(study):
    lengths = partial(independent, prompt=partial(fixed, length=8), output=partial(fixed, length=1))
    trace = partial(synthetic, arrivals=partial(poisson), lengths=lengths, num_requests=20)
    for _ in ("computed", "reused"):
        result = study({"only": {"trace": trace}}, [1.0, 5.0], seeds=[0, 1])
    summary, rates = aggregate(result.table()), saturation(result.table())
    for figure in (latency_rate(summary, rates), throughput_latency(summary)):
        save({"figure": figure}, result.output_dir)


@pytest.mark.parametrize(("slowest", "scale"), [(0.09, "linear"), (0.2, "log")])
def test_times_per_token_have_a_logarithmic_axis_where_a_slow_arm_would_hide_the_others(slowest, scale):
    figure = latency_rate(make_summary({"quick": 0.01, "slow": slowest}), {"quick": 8.0, "slow": 8.0})
    FigureCanvasAgg(figure).draw()
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log", scale]
    low, high = figure.axes[2].get_ylim()
    assert (low == 0) == (scale == "linear")
    assert low < 10 < 1e3 * slowest < high


def test_a_ring_is_around_the_last_rate_below_saturation_of_each_arm_that_saturates():
    arms = {"slow": (80.0, [False, True]), "quick": (100.0, [False, False])}
    summary = pd.DataFrame(
        {
            "arm": arm,
            "rate": rate,
            "offered_rate": rate,
            "slo_attainment": share / rate / 100,
            "is_saturated": saturated,
        }
        for arm, (share, is_saturated) in arms.items()
        for rate, saturated in zip((1.0, 2.0), is_saturated, strict=True)
    ).assign(slo_attainment_low=float("nan"), slo_attainment_high=float("nan"))
    figure = attainment_rate(summary, {"slow": 1.0, "quick": 2.0}, 0.9)
    [axes], [legend] = figure.axes, figure.legends
    rings = [line for line in axes.get_lines() if line.get_markerfacecolor() == "none" and len(line.get_xdata())]
    assert [ring.get_xydata().tolist() for ring in rings] == [[[1.0, 80.0]]]
    assert legend.get_texts()[-1].get_text() == "last rate below saturation"
    [without] = attainment_rate(summary[summary["arm"] == "quick"], {"quick": 2.0}, 0.9).legends
    assert [text.get_text() for text in without.get_texts()] == ["quick"]
