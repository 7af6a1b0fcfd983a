"""experiment=allocation as a user calls it, on the smallest model."""

import pandas as pd
import pytest

from tests.report.html_page import Page, check_page


@pytest.mark.nightly
def test_every_policy_keeps_to_the_memory_that_there_is(cli, smallest, tmp_path):
    sizes = [
        "engine.kv_cache_bytes=null",
        "engine.num_blocks=48",
        "model.max_model_len=48",
        "engine.num_swap_blocks=48",
    ]
    lengths = ["trace.num_requests=16", "trace.max_output_tokens=24"]
    fewer = [f"~arms.{arm}" for arm in ("pow2", "oracle")]
    code, output = cli(*smallest, "experiment=allocation", "device=cpu", *sizes, *lengths, *fewer)
    assert code == 0, output
    folder = tmp_path / "outputs/allocation"
    rows = pd.read_csv(folder / "memory.csv").set_index("arm")
    assert list(rows.index) == ["max", "paged", "swap"]
    assert rows[["tokens", "reserved", "lost", "cached", "adapters", "free"]].sum(axis=1).tolist() == pytest.approx(
        [1] * 3
    )
    assert rows["running"]["max"] == pytest.approx(2)  # of 24 blocks each
    assert (rows["running"][["paged", "swap"]] > 2.5).all()
    assert (rows["num_preemptions"] > 0).tolist() == [False, True, True]
    assert (rows["num_swaps"] > 0).tolist() == [False, False, True]
    page = Page(folder / "report.html")
    check_page(page, folder)
