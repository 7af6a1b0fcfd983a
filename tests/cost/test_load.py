"""How much of prompts was computed of late, from the steps one by one and from their log."""

from math import exp

import pandas as pd
import pytest

from framework.cost.load import LATELY, Load, loads_in


def test_prompts_load_the_device_and_decodes_let_it_rest():
    load = Load()
    assert load.rate == 0
    load.prompt(200, LATELY)
    assert load.rate == pytest.approx((1 - exp(-1)) * 200 / LATELY)
    load.decodes([0.2 * LATELY, 0.1 * LATELY])
    load.decode(0.7 * LATELY)
    assert load.rate == pytest.approx(exp(-1) * (1 - exp(-1)) * 200 / LATELY)
    load.prompt(200, 30 * LATELY)
    assert load.rate == pytest.approx(200 / (30 * LATELY))


def test_as_many_rows_in_as_long_a_time_load_it_as_much_however_they_are_cut():
    whole, parts = Load(), Load()
    whole.prompt(800, 0.04)
    for _ in range(8):
        parts.prompt(100, 0.005)
    assert parts.rate == pytest.approx(whole.rate)


def test_every_replay_of_a_log_begins_without_load():
    log = pd.DataFrame(
        {
            "replay": [0, 1, 1, 1, 2, 0],
            "is_replayed": [0, 1, 1, 1, 1, 1],
            "num_prefill_tokens": [50, 100, 0, 10, 10, 10],
            "elapsed": [float("nan"), 0.02, 0.01, 0.02, 0.02, 0.02],
            "device": [0.01, 0.02, 0.01, 0.02, 0.02, 0.02],
        }
    )
    load = Load()
    load.prompt(100, 0.02)
    load.decode(0.01)
    assert loads_in(log).tolist() == [5000.0, 0.0, 0.0, load.rate, 0.0, 0.0]
    assert not loads_in(log.drop(columns="replay")).any()
