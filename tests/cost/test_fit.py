"""The fit finds what synthetic steps were made with, whatever their noise."""

import numpy as np
import pandas as pd
import pytest

from framework.cost.error import errors, predicted
from framework.cost.features import features_in
from framework.cost.fit import counts_of, fit_kinds
from framework.cost.model import look_up
from tests.cost_models import cost_model

CONTEXT, PAIRS, ROW, SEQ, HOST = 1e-8, 3e-9, 2e-6, 5e-5, 2e-4


def made(num=4000, noise=0.0, seed=0, sizes=()):
    """A log of steps of known costs; `sizes` are those of graphs."""
    rng = np.random.default_rng(seed)
    is_prompt = rng.random(num) < 0.3
    decodes = rng.integers(1, 65, num) * np.where(is_prompt, rng.random(num) < 0.5, True)
    prompt = np.where(is_prompt, rng.integers(1, 2049, num), 0)
    num_prompts = np.where(is_prompt, rng.integers(1, 5, num), 0)
    pairs = prompt * rng.integers(1, 4000, num)
    context = decodes * rng.integers(10, 4000, num) + prompt
    rows = prompt + decodes
    computed = np.array([min((size for size in sizes if size >= row), default=row) for row in rows])
    seqs = num_prompts + decodes
    device = 1e-3 + ROW * computed + CONTEXT * context + PAIRS * pairs + SEQ * np.where(is_prompt, seqs, 0)
    ratio = np.exp(noise * rng.standard_normal(num))
    return pd.DataFrame(
        {
            "num_seqs": seqs,
            "num_prefill_tokens": prompt,
            "num_decode_tokens": decodes,
            "num_context_tokens": context,
            "max_context_tokens": context / np.maximum(seqs, 1),
            "num_prefill_pairs": pairs,
            "num_adapters": 0,
            "num_adapter_loads": 0,
            "num_copied_blocks": 0,
            "is_first": 0,
            "host": np.nan,
            "device": device * ratio,
            "elapsed": (device + HOST) * ratio,
            "is_replayed": 1,
        }
    )


@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 1e-3), (0.02, 0.05)])
def test_known_costs_are_found(noise, tolerance):
    kinds = fit_kinds(made(noise=noise), {})
    for num_rows in (30, 64):  # a single sequence's context costs no more than the noise
        assert look_up(kinds["decode"].context, num_rows) == pytest.approx(CONTEXT, rel=2 * tolerance)
    assert kinds["prompt"].device["num_pairs"] == pytest.approx(PAIRS, rel=tolerance)
    assert kinds["prompt"].device["num_seqs"] == pytest.approx(SEQ, rel=tolerance)
    for cost in kinds.values():
        beside = cost.beside["constant"] + 32 * (cost.beside["num_seqs"] + cost.beside["num_rows"])
        assert beside == pytest.approx(HOST, rel=0.1)
    for num_rows in (1, 30, 64):
        assert kinds["decode"].seconds_of_rows(num_rows) == pytest.approx(1e-3 + ROW * num_rows, rel=tolerance)


def test_a_step_is_as_long_as_its_graph():
    sizes = [1, 8, 64]
    cost = fit_kinds(made(sizes=sizes), {"decode": sizes})["decode"]
    assert [num_rows for num_rows, _ in cost.rows] == sizes
    assert cost.rows[1][1] == pytest.approx(1e-3 + 8 * ROW, rel=1e-3)


def test_the_interval_holds_for_steps_that_were_not_fitted():
    model = cost_model(kinds=fit_kinds(made(noise=0.05), {}))
    found = errors(predicted(model, made(noise=0.05, seed=1)))
    for kind in ("decode", "prompt", "all"):
        assert 0.87 < found[kind]["coverage"] < 0.93
        assert abs(found[kind]["bias"]) < 0.003
        assert found[kind]["median"] == pytest.approx(0.05 * 0.6745, rel=0.1)


def test_all_steps_together_take_what_was_measured():
    """Small steps vary more than large ones here, so that the mean of the ratios is not that of the seconds."""
    log = made(noise=0.02)
    slow = log.index[log["num_prefill_tokens"] == 0][::20]
    log.loc[slow, ["device", "elapsed"]] *= 3
    found = errors(predicted(cost_model(kinds=fit_kinds(log, {})), log))
    assert found["decode"]["bias"] == pytest.approx(0, abs=1e-9)
    assert found["prompt"]["bias"] == pytest.approx(0, abs=1e-9)


def test_reading_a_context_token_may_cost_otherwise_in_larger_batches():
    log = made()
    extra = CONTEXT * np.interp(log["num_decode_tokens"], [4, 64], [0, 2]) * log["num_context_tokens"]
    log["device"], log["elapsed"] = log["device"] + extra, log["elapsed"] + extra
    cost = fit_kinds(log, {})["decode"]
    assert look_up(cost.context, 4) == pytest.approx(CONTEXT, rel=0.01)
    assert look_up(cost.context, 34) == pytest.approx(2 * CONTEXT, rel=0.01)
    assert look_up(cost.context, 64) == pytest.approx(3 * CONTEXT, rel=0.01)


def test_a_step_waits_for_the_launch_of_the_next_one():
    log = made()
    log["host"] = 1e-3 + 1e-4 * log["num_seqs"]
    log["elapsed"] = np.maximum(log["device"], log["host"].shift(-1, fill_value=0.0))
    model = cost_model(kinds=fit_kinds(log, {}))
    for cost in model.kinds.values():
        assert cost.host["constant"] == pytest.approx(1e-3, rel=1e-3)
        assert cost.host["num_seqs"] + cost.host["num_rows"] == pytest.approx(1e-4, rel=1e-3)
        assert cost.beside["constant"] == pytest.approx(0, abs=1e-7)
    assert errors(predicted(model, log))["all"]["p99"] < 1e-3


def test_the_ratios_are_those_of_replays_that_were_left_out():
    """Each replay is slower or faster as a whole, which terms fitted on it would hide."""
    index = np.arange(4000) // 1000
    log = made(noise=0.001).assign(replay=1 + index)
    log["num_context_tokens"] += 1000 * index  # by which they could be told apart
    drift = 1 + 0.05 * index * np.where(index % 2, 1, -1)
    log["device"], log["elapsed"] = log["device"] * drift, log["elapsed"] * drift
    known, left_out = (fit_kinds(one, {})["decode"] for one in (log.drop(columns="replay"), log))
    assert left_out.ratio_at(0.95) - left_out.ratio_at(0.05) > 1.1 * (known.ratio_at(0.95) - known.ratio_at(0.05))


def test_how_much_slower_prompts_are_behind_others_is_found():
    log = made(1000, noise=0.001).assign(replay=1)
    rate = 1e-12  # seconds per row and row of prompts per second
    extra = rate * features_in(log)["loaded_rows"]  # of a log without it, whose times are almost the same
    log["device"], log["elapsed"] = log["device"] + extra, log["elapsed"] + extra
    assert fit_kinds(log, {})["prompt"].device["loaded_rows"] == pytest.approx(rate, rel=0.1)
    assert fit_kinds(log.drop(columns="replay"), {})["prompt"].device["loaded_rows"] == 0


def test_a_few_slow_steps_change_the_ratios_and_not_the_terms():
    log = made(noise=0.01)
    slow = log.index[::50]
    log.loc[slow, ["device", "elapsed"]] *= 10
    cost = fit_kinds(log, {})["decode"]
    assert look_up(cost.context, 64) == pytest.approx(CONTEXT, rel=0.05)
    assert cost.mean_ratio == pytest.approx(1 + 9 / 50, rel=0.05)
    assert cost.ratio_at(0.5) == pytest.approx(1, abs=0.02)
    assert cost.ratio_at(1.0) > 9


def test_what_a_log_cannot_tell_apart_is_the_rows():
    """Single whole prompts: their context is their rows, and their number is one."""
    log = made()
    log["num_decode_tokens"], log["num_seqs"] = 0, 1
    log = log[log["num_prefill_tokens"] > 0]
    log["num_context_tokens"] = log["num_prefill_tokens"]
    log["num_prefill_pairs"] = 0
    log["device"] = log["elapsed"] = 1e-3 + ROW * log["num_prefill_tokens"]
    cost = fit_kinds(log, {})["prompt"]
    assert cost.device == pytest.approx(dict.fromkeys(cost.device, 0.0), abs=1e-9)
    assert [rate for _, rate in cost.context] == pytest.approx([0.0] * len(cost.context), abs=1e-9)


def test_without_the_devices_time_all_of_a_step_is_the_devices():
    log = made().assign(device=np.nan)
    cost = fit_kinds(log, {})["decode"]
    assert cost.seconds_of_rows(1) == pytest.approx(1e-3 + HOST + ROW, rel=1e-3)
    assert cost.beside["constant"] == 0


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="there are none"):
        fit_kinds(made()[:0], {})


def test_what_the_longest_sequence_of_a_step_costs_is_found():
    log = made(noise=0.0)
    rng = np.random.default_rng(1)
    log["max_context_tokens"] *= 1 + 3 * rng.random(len(log))
    extra = 1e-3 * np.minimum(log["max_context_tokens"], 512) / 512  # the longer ones are read beside each other
    extra = np.where(log["num_prefill_tokens"] > 0, 0.0, extra)
    log["device"] += extra
    log["elapsed"] += extra
    cost = fit_kinds(log, {})["decode"]
    assert cost.long_tokens == 512
    assert fit_kinds(made(), {})["decode"].longest == []  # where all are as long nothing tells it
    for num_rows in (2, 16, 60):
        assert cost.seconds_of_longest(num_rows, 900) == pytest.approx(1e-3, rel=0.05)
    assert cost.seconds_of_longest(16, 128) == pytest.approx(0.25e-3, rel=0.05)


def test_steps_of_one_batch_one_behind_the_other_count_as_few():
    log = made(num=50)
    alike = pd.concat([log, *[log.iloc[[7]]] * 399], ignore_index=True)
    counts = counts_of(features_in(alike))
    assert counts[50:] == pytest.approx(1 / 20)
    assert counts[:7] == pytest.approx(1.0)


def host_bound(num=800, seed=0):
    """Steps of 32 seats that the host launches one adapter after the other, in bursts: the device is ahead of it."""
    rng = np.random.default_rng(seed)
    log = made(num=num, seed=seed)
    log["num_adapters"] = rng.integers(1, 33, num).clip(max=log["num_seqs"])
    log["host"] = (0.04 + 0.013 * log["num_adapters"]) * np.exp(0.02 * rng.standard_normal(num))
    log["is_first"] = (np.arange(num) % 8 == 0).astype(int)
    left = 2e-4 * np.exp(0.5 * rng.standard_normal(num))  # of the device's work once all of it is launched
    is_last = log["is_first"].shift(-1, fill_value=1) > 0
    elapsed = np.where(is_last, left, log["host"].shift(-1, fill_value=0.0))
    log["elapsed"] = elapsed + log["is_first"] * log["host"]  # both are launched before the first one's tokens come
    log["device"] = np.where(log["is_first"] > 0, left, np.minimum(log["host"], elapsed))
    return log


@pytest.mark.parametrize("has_grid", [False, True])
def test_what_the_host_hides_leaves_no_entry_at_zero(has_grid):
    grid = host_bound(200, seed=1).assign(device=np.nan, elapsed=np.nan, is_first=0, is_replayed=0)
    log = pd.concat([grid, host_bound()], ignore_index=True) if has_grid else host_bound()
    model = cost_model(kinds=fit_kinds(log, {}))
    for cost in model.kinds.values():
        assert all(0 < seconds < 0.01 for _, seconds in cost.rows)
        assert cost.host["num_adapters"] == pytest.approx(0.013, rel=0.05)
    steps = predicted(model, host_bound(seed=2))
    long = steps[steps["measured"] > 0.02]
    assert abs(errors(long)["all"]["bias"]) < 0.02
    assert errors(long)["all"]["median"] < 0.03
