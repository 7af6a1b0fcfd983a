"""Logs of steps: of replays here, and from elsewhere."""

import pandas as pd
import pytest

from framework.cost.step_log import from_steps, read_step_log

ROW = {"num_seqs": 3, "num_prefill_tokens": 8, "num_decode_tokens": 1, "num_context_tokens": 20, "elapsed": 0.5}


def test_optional_columns_are_filled_in(tmp_path):
    pd.DataFrame([ROW]).to_csv(tmp_path / "log.csv")
    pd.DataFrame([ROW]).to_parquet(tmp_path / "log.parquet")
    for name in ("log.csv", "log.parquet"):
        log = read_step_log(str(tmp_path / name))
        assert log["num_prefill_pairs"].tolist() == [2 * 4 * 5 / 2]  # two prompts of four tokens
        assert log["max_context_tokens"].tolist() == [20 / 3]  # of three sequences
        assert log["num_adapters"].tolist() == [0]
        assert log["device"].isna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elapsed": 0}, "row 2: elapsed is 0.0, not a number above 0"),
        ({"elapsed": "fast"}, "row 2: elapsed is fast, not a number above 0"),
        ({"num_seqs": -1}, "row 2: num_seqs is -1, not a number of at least 0"),
    ],
)
def test_a_bad_cell_is_named(tmp_path, change, message):
    pd.DataFrame([ROW, ROW | change]).to_csv(tmp_path / "log.csv")
    with pytest.raises(ValueError, match=message):
        read_step_log(str(tmp_path / "log.csv"))


def test_a_missing_column_and_a_missing_file_are_named(tmp_path):
    pd.DataFrame([ROW]).drop(columns="elapsed").to_csv(tmp_path / "log.csv")
    with pytest.raises(ValueError, match="has no column elapsed; a step log has num_seqs"):
        read_step_log(str(tmp_path / "log.csv"))
    with pytest.raises(ValueError, match=r"other.csv cannot be read: there is no such file"):
        read_step_log(str(tmp_path / "other.csv"))


def test_a_replays_steps_end_when_the_next_could_begin():
    columns = {"num_prefill_pairs": 36, "num_adapters": 0, "num_adapter_loads": 2, "adapter_wait": 0.0, "device": 0.4}
    copies = {"num_swapped_out_blocks": 2, "num_swapped_in_blocks": 1}
    row = ROW | columns | copies | {"schedule": 0.01, "prepare": 0.02, "launch": 0.03, "update": 0.1}
    steps = pd.DataFrame([row | {"start_time": time} for time in (0.0, 0.6, 1.3)])
    log = from_steps(steps, 0)
    assert log["elapsed"].tolist() == [0.6] * 3
    assert log["num_copied_blocks"].tolist() == [3] * 3
    assert log["is_first"].tolist() == [0] * 3
    assert log["host"].isna().all()
    steps = pd.concat([steps, steps[:2]], ignore_index=True)
    waits = [0.0, 0.1, 0.0, 0.0, 0.0]
    ahead = from_steps(steps.assign(start_time=[0.0, 0.5, 1.3, 1.8, 2.3], adapter_wait=waits), 1)
    assert ahead["elapsed"].tolist() == [0.5] * 5
    assert ahead["is_first"].tolist() == [1, 0, 1, 0, 0]
    assert ahead["host"].tolist() == pytest.approx([0.06, 0.06, 0.06, 0.16, 0.16])
    assert ahead["device"].tolist() == [0.4] * 5
    slow = from_steps(steps.assign(start_time=[0.0, 0.5, 1.3, 1.8, 2.3], adapter_wait=waits, device=0.6), 1)
    assert slow["device"].tolist() == pytest.approx([0.44, 0.5, 0.44, 0.5, 0.5])  # the host's work hid the rest
    assert ahead["num_adapter_loads"].tolist() == [0, 2, 0, 0, 0]
