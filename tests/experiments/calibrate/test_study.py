"""experiment=calibrate as a user calls it, on the smallest model; then its cost model serves a replay."""

import json

import numpy as np
import pandas as pd
import pytest

from framework.cost.model import read_cost_model

GRID = ["grid.decode=[1,2]", "grid.contexts=[32]", "grid.prefill=[[1,16],[2,8],[1,1024]]", "grid.mixed=[[8,4,2,32]]"]
QUICK = ["experiment=calibrate", "device=cpu", "rates=[200]", "grid.num_steps=4", *GRID]


def test_a_cost_model_is_fitted_tested_and_used(cli, smallest, tmp_path):
    command = [*smallest, *QUICK, "name=mine", "note=noisy", "arms.mixed.scheduler.max_num_batched_tokens=32"]
    code, output = cli(*command)
    assert code == 0, output
    assert "1 × 1024 behind 0: skipped" in output
    folder = tmp_path / "outputs/calibrate"
    model = read_cost_model(folder / "models/mine.json")
    assert set(model.kinds) == {"decode", "prompt"}
    assert model.notes == ["noisy"]
    assert model.error["all"]["num_steps"] > 0
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png", ".svg"}
    [grid] = folder.glob("grid-*.csv")
    assert len(pd.read_csv(grid)) == 5
    code, output = cli(*command)
    assert "4 of 4 points reused" in output

    kept = folder / "models/mine.parquet"
    assert set(pd.read_parquet(kept)["held_out"]) == {0, 1}
    again = ["experiment=calibrate", f"steps.path={kept}", "name=mine", "output_dir=again"]
    code, output = cli(*smallest, *again)
    assert code == 0, output
    assert (tmp_path / "again/models/mine.json").read_bytes() == (folder / "models/mine.json").read_bytes()
    code, output = cli(*smallest, *again, "steps.device=Elsewhere")
    assert "says itself what it is of: leave out steps.device" in output

    served = [*smallest[:2], *smallest[3:], "experiment=continuous_batching", "rates=[50]"]
    code, output = cli(*served, "engine=modelled", f"engine.path={folder}/models")
    assert code == 0, output
    assert "continuous_batching on " in output
    page = json.loads((tmp_path / "outputs/continuous_batching/report.json").read_text())
    assert page["title"].endswith("(modelled)")
    assert "Every arm at every rate (modelled)" in [table["caption"] for table in page["tables"]]
    assert any("no step was executed" in note for note in page["notes"])
    assert any("cost model mine: noisy" in note for note in page["notes"])


@pytest.mark.usefixtures("placeholders")
def test_a_log_of_another_server_is_fitted(cli, smallest, tmp_path):
    rng = np.random.default_rng(0)
    seqs, prompt = rng.integers(1, 9, 400), np.where(rng.random(400) < 0.3, 16, 0)
    decode = np.where(prompt > 0, 0, seqs)
    columns = {"num_seqs": seqs, "num_prefill_tokens": prompt * seqs, "num_decode_tokens": decode}
    log = pd.DataFrame(columns | {"num_context_tokens": 16 * seqs, "elapsed": 0.01 + 1e-4 * (decode + prompt * seqs)})
    log.to_csv(tmp_path / "log.csv", index=False)
    given = ["steps.path=log.csv", "steps.device=Elsewhere", "steps.num_blocks=500"]
    code, output = cli(*smallest, "experiment=calibrate", *given)
    assert code == 0, output
    model = read_cost_model(tmp_path / "outputs/calibrate/models/cost.json")
    assert (model.device, model.engine.num_blocks) == ("Elsewhere", 500)
    assert model.error["all"]["median"] < 1e-3
    code, output = cli(*smallest, "experiment=calibrate", *given[:2])
    assert "steps.path needs steps.device" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seeds=[0]", "calibrate needs two at least, of which every second one is held out"),
        ("time_limit=0", "time_limit=0 is not a finite number above 0"),
        ("grid.num_steps=0", "num_steps 0 must be at least 1"),
    ],
)
def test_what_cannot_be_calibrated_is_told_before_a_model_loads(cli, smallest, change, message):
    code, output = cli(*smallest, "experiment=calibrate", change)
    assert code != 0
    assert message in output
