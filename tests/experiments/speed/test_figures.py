"""What the figures of the speed studies draw, number by number."""

import pandas as pd
import pytest

from experiments.speed.figures import ablation, against_alone, decode_step, roofline
from framework.measure.ceilings import Ceilings
from tests.experiments.lora.test_figures import drawn

CEILINGS = Ceilings(read_bandwidth=1e9, copy_bandwidth=1e9, matmul_rate=1e12)


def test_a_case_is_where_its_work_and_its_time_put_it_under_the_roof():
    cases = pd.DataFrame(
        {"case": ["decode", "prefill"], "num_flops": [2e6, 8e9], "num_bytes": [1e6, 1e6], "device": [0.002, 0.01]}
    )
    [axes] = roofline(cases, CEILINGS, "device").axes
    roof, *marks = axes.get_lines()
    assert [mark.get_label() for mark in marks] == ["decode", "prefill"]
    assert [mark.get_xdata()[0] for mark in marks] == pytest.approx([2.0, 8000.0])  # FLOP/byte
    assert [mark.get_ydata()[0] for mark in marks] == pytest.approx([0.001, 0.8])  # TFLOP/s
    assert max(roof.get_ydata()) == pytest.approx(1.0)  # the matmul rate
    assert roof.get_ydata()[0] == pytest.approx(1e-12 * roof.get_xdata()[0] * 1e9)  # the read bandwidth
    assert roof.get_xdata()[-1] >= 8000.0


def test_decode_steps_are_in_milliseconds_by_batch_size():
    cases = pd.DataFrame({"kind": ["decode", "prefill", "decode"], "num_seqs": [4, 1, 1]})
    cases = cases.assign(elapsed=[0.004, 9.0, 0.002], device=[0.003, 9.0, 0.001], floor=[0.002, 9.0, 0.0005])
    [axes] = decode_step(cases, "device").axes
    assert drawn(axes) == {"from step to step": [2.0, 4.0], "on the device": [1.0, 3.0], "floor": [0.5, 2.0]}
    assert all(line.get_xdata().tolist() == [1, 4] for line in axes.get_lines())


def test_a_bar_is_as_long_as_the_ratio_and_says_both_times():
    rows = [("mixed", "m", 1.25, 0.010, 0.008), ("chunks", "c", 1.5, 0.3, 0.2)]
    columns = ["kind", "case", "ratio", "device", "alone_device"]
    [axes] = against_alone(pd.DataFrame(rows, columns=columns), "device").axes
    assert [bar.get_width() for bar in axes.patches] == [1.25, 1.5]
    assert [text.get_text() for text in axes.texts] == ["1.25×  (10 ÷ 8 ms)", "1.50×  (300 ÷ 200 ms)"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["m", "c"]


def test_an_arm_without_a_batch_size_leaves_a_gap_and_keeps_its_bar():
    rows = [("eager", 1, 0.004), ("eager", 8, 0.016), ("fused", 1, 0.002)]
    decode = pd.DataFrame(rows, columns=["arm", "num_seqs", "elapsed"])
    left, right = ablation(decode, pd.Series({"eager": 100.0, "fused": 250.0}), "device").axes
    lines = drawn(left)
    assert lines["batch 1"] == [4.0, 2.0]
    assert lines["batch 8"] == pytest.approx([16.0, float("nan")], nan_ok=True)
    assert [bar.get_height() for bar in right.patches] == [100.0, 250.0]
    assert [text.get_text() for text in right.get_xticklabels()] == ["eager", "fused"]
