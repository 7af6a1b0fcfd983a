"""experiment=multi_lora as a user calls it, on the smallest model."""

import pandas as pd
import pytest

from framework.engine.torch_engine import TorchEngine
from framework.speed import measure_decode
from tests.html_page import Page, check_page
from tests.lora.served import make_engine
from tests.quantization.models import make_model

SMALL = ["num_adapters=2", "batch_sizes=[1,4]", "context=16", "num_steps=2", "num_rounds=2", "rates=[50]"]


def test_steps_and_replays_of_every_strategy(cli, smallest, tmp_path):
    code, output = cli("experiment=multi_lora", *smallest, *SMALL, "identical=true", "trace.num_requests=4")
    assert code == 0, output
    folder = tmp_path / "outputs/multi_lora"
    steps = pd.read_csv(folder / "steps.csv")
    names = ["none", *(f"{arm}{mix}" for arm in ("loop", "gathered", "segmented") for mix in ("", ", one adapter"))]
    assert list(dict.fromkeys(steps["arm"])) == names
    assert steps["num_adapters"].tolist() == [0, 0, *[1, 2, 1, 1] * 3] * 2
    assert (steps["elapsed"] > 0).all()
    points = pd.read_csv(folder / "points.csv")
    assert points["arm"].tolist() == ["none", "loop", "gathered", "segmented"]
    for point in points["point"]:
        requests = pd.read_parquet(folder / "points" / point / "requests.parquet")
        assert set(requests["adapter_id"]) <= {"adapter-0", "adapter-1"}
        loads = pd.read_parquet(folder / "points" / point / "steps.parquet")["num_adapter_loads"].sum()
        assert loads == (0 if point.startswith("none") else requests["adapter_id"].nunique())
    assert not list(folder.glob("unfinished-*"))
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures == {"batch_latency", "timeline", "batch_and_cache"}
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert page.count("svg") == 3
    assert [row[0] for row in page.table("4 ÷ 1")] == names
    assert all(f"{name}: adapters add " in page.text for name in names[1:])
    assert "segmented: on a CPU the kernels' plain reference runs" in page.text
    assert "Jain, Chiu and Hawe" in page.text
    adapters = pd.read_csv(folder / "adapters.csv")
    assert adapters.groupby("arm")["num_requests"].sum().tolist() == [4] * 4
    loaded = adapters.groupby("arm")["load_wait_mean"].sum() > 0
    assert loaded.to_dict() == {"none": False, "loop": True, "gathered": True, "segmented": True}
    fairness = page.table("Jain's index")
    assert [row[2] for row in fairness] == [str(adapters["adapter_id"].nunique())] * 4
    assert all(0 < float(row[3]) <= 1 <= float(row[4]) for row in fairness)
    assert [row[0] for row in page.table("tokens served")] == adapters["arm"].tolist()


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
    assert not (folder / "points").exists()
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert [row[0] for row in page.rows] == ["arm", "none", "segmented"]


def test_steps_that_fit_no_engine_leave_the_replay(cli, smallest, tmp_path):
    options = ["experiment=multi_lora", *smallest, *SMALL, "context=5000", "~arms.loop", "~arms.gathered"]
    code, output = cli(*options)
    assert code == 0, output
    assert "batch 4: skipped, " in output
    page = Page(tmp_path / "outputs/multi_lora/report.html")
    assert page.count("svg") == 2
    assert len(pd.read_csv(tmp_path / "outputs/multi_lora/points.csv")) == 2
    code, output = cli(*options, "rates=[]")
    assert code == 1
    assert "error: no arm holds a batch of batch_sizes=[1, 4] with context=5000: lower them" in output


def test_an_interrupted_rerun_leaves_the_earlier_steps(cli, smallest, tmp_path, monkeypatch):
    options = ["experiment=multi_lora", *smallest, *SMALL, "rates=[]", "~arms.loop", "~arms.gathered"]
    code, output = cli(*options)
    assert code == 0, output
    folder = tmp_path / "outputs/multi_lora"
    before = (folder / "steps.csv").read_text()

    def measure_until_stopped(engine, *sizes):
        if engine.num_adapter_slots:
            raise KeyboardInterrupt
        return measure_decode(engine, *sizes)

    monkeypatch.setattr("experiments.multi_lora.measure_decode", measure_until_stopped)
    with pytest.raises(KeyboardInterrupt, match=r"what was measured is in .*unfinished-steps.csv"):
        cli(*options)
    assert (folder / "steps.csv").read_text() == before
    assert pd.read_csv(folder / "unfinished-steps.csv")["arm"].tolist() == ["none", "none"]


def test_pefts_mixed_batches_beside(cli, smallest, tmp_path):
    pytest.importorskip("peft")
    code, output = cli(
        "experiment=multi_lora", *smallest, *SMALL[:4], "rates=[]", "~arms.loop", "peft_batch_sizes=[1,3]"
    )
    assert code == 0, output
    steps = pd.read_csv(tmp_path / "outputs/multi_lora/steps.csv")
    peft = steps[steps["arm"] == "PEFT"]
    assert peft[["num_seqs", "num_adapters"]].to_numpy().tolist() == [[1, 1], [3, 2]]
    assert (peft["elapsed"] > 0).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["num_rounds=0"], "num_rounds 0 must be at least 1"),
        (["peft_batch_sizes=[0]"], "both at least 1"),
        (["peft_batch_sizes=[1]", "batch_sizes=[]"], "peft_batch_sizes stand beside batch_sizes, which is empty"),
        (
            ["~arms.loop", "~arms.gathered", "~arms.segmented", "peft_batch_sizes=[1]"],
            "peft_batch_sizes needs an arm that serves adapters",
        ),
        (["rates=[]", "batch_sizes=[]"], "both empty: nothing is left to measure"),
        (["rates=[0]"], "rates must be positive finite numbers"),
        (["+slo={tbt: 1}"], "unknown SLO metric 'tbt'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(cli, smallest, tmp_path, overrides, message):
    code, output = cli("experiment=multi_lora", *smallest, *SMALL, *overrides)
    assert code == 1
    assert message in output
    assert not (tmp_path / "outputs").exists()


def test_more_adapters_than_slots_cannot_be_timed():
    with pytest.raises(ValueError, match=r"more adapters than lora.num_slots=2"):
        measure_decode(make_engine(num_slots=2), 3, 16, 2, num_adapters=3)
    assert measure_decode(TorchEngine(make_model("llama"), num_blocks=20), 3, 16, 2, num_adapters=3).device > 0
