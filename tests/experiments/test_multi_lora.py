"""experiment=multi_lora as a user calls it, on the smallest model."""

import pandas as pd
import pytest

from framework.engine.torch_engine import TorchEngine
from framework.speed import measure_decode
from tests.lora.served import make_engine
from tests.quantization.models import make_model

SMALL = ["num_adapters=2", "batch_sizes=[1,4]", "context=16", "num_steps=2", "rates=[50]"]


def test_steps_and_replays_of_every_strategy(cli, smallest, tmp_path):
    code, output = cli("experiment=multi_lora", *smallest, *SMALL, "identical=true", "trace.num_requests=4")
    assert code == 0, output
    folder = tmp_path / "outputs/multi_lora"
    steps = pd.read_csv(folder / "steps.csv")
    names = ["none", *(f"{arm}{mix}" for arm in ("loop", "gathered", "segmented") for mix in ("", ", one adapter"))]
    assert list(dict.fromkeys(steps["arm"])) == names
    assert steps["num_adapters"].tolist() == [0, 0, *[1, 2, 1, 1] * 3]
    assert (steps["elapsed"] > 0).all()
    points = pd.read_csv(folder / "points.csv")
    assert points["arm"].tolist() == ["none", "loop", "gathered", "segmented"]
    for point in points["point"]:
        requests = pd.read_parquet(folder / "points" / point / "requests.parquet")
        assert set(requests["adapter_id"]) <= {"adapter-0", "adapter-1"}
        loads = pd.read_parquet(folder / "points" / point / "steps.parquet")["num_adapter_loads"].sum()
        assert loads == (0 if point.startswith("none") else requests["adapter_id"].nunique())
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures == {"batch_latency", "timeline", "batch_and_cache"}


def test_a_saved_adapter_that_is_not_there_fails_its_arm_by_name(cli, smallest, tmp_path):
    (tmp_path / "mine").mkdir()
    saved = ["adapters@arms.loop.lora.adapters=saved", "arms.loop.lora.adapters.path=mine"]
    code, output = cli("experiment=multi_lora", *smallest, *SMALL, *saved, "batch_sizes=[]", "~arms.gathered")
    assert code == 1
    assert "there is no adapter 'adapter-" in output
    assert pd.read_csv(tmp_path / "outputs/multi_lora/points.csv")["arm"].tolist() == ["none", "segmented"]


def test_steps_alone(cli, smallest, tmp_path):
    code, output = cli("experiment=multi_lora", *smallest, *SMALL, "rates=[]", "~arms.loop", "~arms.gathered")
    assert code == 0, output
    folder = tmp_path / "outputs/multi_lora"
    assert {path.name for path in folder.iterdir()} == {"steps.csv", "figures"}
    assert "×)" in output


def test_more_adapters_than_slots_cannot_be_timed():
    with pytest.raises(ValueError, match=r"more adapters than lora.num_slots=2"):
        measure_decode(make_engine(num_slots=2), 3, 16, 2, num_adapters=3)
    assert measure_decode(TorchEngine(make_model("llama"), num_blocks=20), 3, 16, 2, num_adapters=3).device > 0
