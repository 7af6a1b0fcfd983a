"""What the multi-LoRA studies say per adapter, and beside what is reported."""

from functools import partial

import pandas as pd
import pytest
import torch

from experiments.lora.tables import NUM_SHOWN, adapter_tables, beside_reported, mix_tables, reference_notes
from framework.lora.loop import Loop
from framework.lora.pool import serve_adapters
from framework.lora.segmented import Segmented


def make_adapters(arm, rate, seed, latencies):
    """One row per adapter, the first with the most requests."""
    num_adapters = len(latencies)
    return pd.DataFrame({"normalized_latency_mean": latencies}).assign(
        arm=arm, rate=rate, offered_rate=rate, seed=seed, num_requests=range(num_adapters, 0, -1), num_refused=0,
        adapter_id=[f"adapter-{index}" for index in range(num_adapters)], num_tokens=10, ttft_mean=0.5, ttft_p99=0.75,
        load_wait_mean=0.001,
    )  # fmt: skip


def test_fairness_is_a_mean_over_seeds_and_the_most_requested_are_of_the_first():
    adapters = pd.concat(
        [
            make_adapters("loop", 1.0, 0, [1.0]),
            make_adapters("loop", 2.0, 0, [1.0, 3.0]),
            make_adapters("loop", 2.0, 1, [1.0, 1.0]),
            make_adapters("gathered", 2.0, 0, [1.0] * (NUM_SHOWN + 2)),
        ]
    )
    fairness, most = adapter_tables(adapters).values()
    assert fairness[["arm", "rate (req/s)"]].to_numpy().tolist() == [["loop", 1.0], ["loop", 2.0], ["gathered", 2.0]]
    assert fairness["Jain's index"].tolist() == pytest.approx([1.0, (16 / (2 * 10) + 1) / 2, 1.0])
    assert fairness["max ÷ min"].tolist() == pytest.approx([1.0, 2.0, 1.0])
    assert fairness["load wait, mean (ms)"].tolist() == pytest.approx([1.0] * 3)
    assert most["arm"].tolist() == ["loop"] * 2 + ["gathered"] * NUM_SHOWN  # at the highest rate
    assert most["requests"].tolist() == [2, 1, *range(NUM_SHOWN + 2, 2, -1)]
    assert set(most["TTFT, mean (ms)"]) == {500.0}


@pytest.mark.parametrize("names", [["1", "20"], ["identical", "distinct"]])
def test_what_is_reported_stands_below_what_is_measured(names):
    measured = pd.DataFrame({"arm": "loop", "mix": names, "request_throughput": [4.0, 3.0], "ttft_mean": [1.0, 2.0]})
    reported = {"request_throughput": {"theirs": {names[0]: 8.0, names[1]: 2.0}}}
    table = beside_reported(measured, "mix", reported)
    places = [1.0, 20.0] if names[0] == "1" else names
    assert table["x"].tolist() == places * 2
    assert table["arm"].tolist() == ["loop"] * 2 + ["theirs (reported)"] * 2
    assert table["value"].tolist() == [4.0, 3.0, 8.0, 2.0]
    assert table["is_reported"].tolist() == [False, False, True, True]
    [throughputs] = mix_tables(table, pd.DataFrame(), 2.0, names[0]).values()
    assert throughputs[f"{names[1]} ÷ {names[0]}"].tolist() == [0.75, 0.25]


def test_over_rates_there_is_a_row_per_arm_and_rate():
    over_rates = pd.DataFrame(
        [("loop", 1.0, "ttft_mean", 0.5), ("loop", 2.0, "ttft_mean", 0.75)], columns=["arm", "x", "metric", "value"]
    )
    [*_, table] = mix_tables(over_rates, over_rates, 2.0, "20").values()
    assert table.to_numpy().tolist() == [["loop", 1.0, 0.5], ["loop", 2.0, 0.75]]
    assert table.columns.tolist() == ["arm", "rate (req/s)", "mean TTFT (s)"]


def test_the_kernels_arm_is_told_on_a_cpu_alone():
    loras = {
        name: partial(serve_adapters, strategy=partial(strategy), max_rank=8, adapters=None)
        for name, strategy in (("loop", Loop), ("segmented", Segmented))
    }
    [note] = reference_notes(loras, torch.device("cpu"))
    assert note.startswith("segmented: ")
    assert reference_notes(loras, torch.device("cuda")) == []
    assert reference_notes({"loop": loras["loop"]}, torch.device("cpu")) == []
