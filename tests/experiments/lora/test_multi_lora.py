"""experiment=multi_lora as a user calls it, on the smallest model."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.engine.torch_engine import TorchEngine
from framework.lora.adapter_file import save_adapter
from framework.lora.adapters import RandomAdapters
from framework.lora.layout import make_layout
from framework.measure.steps import measure_decode
from tests.lora.serving_models import make_engine
from tests.quantization.small_models import make_model
from tests.report.html_page import Page, check_page

SMALL = ["num_adapters=2", "batch_sizes=[1,4]", "context=16", "num_steps=2", "num_rounds=2", "rates=[50]"]


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(
    "strategies",
    [("gathered",), pytest.param(("loop", "gathered", "segmented"), marks=pytest.mark.nightly)],
    ids=["one", "every"],
)
def test_steps_and_replays_of_every_strategy(cli, smallest, tmp_path, strategies):
    without = [f"~arms.{arm}" for arm in ("loop", "gathered", "segmented") if arm not in strategies]
    code, output = cli(
        "experiment=multi_lora",
        *smallest,
        *SMALL,
        *without,
        "identical=true",
        "trace.num_requests=4",
        "mixed=[[6,4,2,16]]",
    )
    assert code == 0, output
    folder = tmp_path / "outputs/multi_lora"
    steps = pd.read_csv(folder / "steps.csv")
    names = ["none", *(f"{arm}{mix}" for arm in strategies for mix in ("", ", one adapter"))]
    assert list(dict.fromkeys(steps["arm"])) == names
    assert steps["num_adapters"].tolist() == [0, 0, 0, *[1, 2, 2, 1, 1, 1] * len(strategies)] * 2
    assert steps["case"][:3].tolist() == ["decode 1 × 16", "decode 4 × 16", "mixed 6 behind 4 + 2 × 16"]
    assert (steps["elapsed"] > 0).all()
    points = pd.read_csv(folder / "points.csv")
    assert points["arm"].tolist() == ["none", *strategies]
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
    assert [row[1] for row in page.table("more than none (%)")] == names
    notes = json.loads((folder / "report.json").read_text())["notes"]
    assert {note.partition(": ")[0] for note in notes} >= set(names[1:])
    adapters = pd.read_csv(folder / "adapters.csv")
    assert adapters.groupby("arm")["num_requests"].sum().tolist() == [4] * len(points)
    loaded = adapters.groupby("arm")["load_wait_mean"].sum() > 0
    assert loaded.to_dict() == {"none": False, **dict.fromkeys(strategies, True)}
    fairness = page.table("Jain's index")
    assert [row[2] for row in fairness] == [str(adapters["adapter_id"].nunique())] * len(points)
    assert all(0 < float(row[3]) <= 1 <= float(row[4]) for row in fairness)
    assert [row[0] for row in page.table("tokens served")] == adapters["arm"].tolist()


@pytest.mark.nightly
def test_requests_that_are_served_without_their_adapter_are_told(cli, smallest, tmp_path):
    arms = ["+lora@arms.merged.lora=merged", "~arms.loop", "~arms.segmented"]
    code, output = cli("experiment=multi_lora", *smallest, *SMALL, *arms, "batch_sizes=[]", "rates=[50,60]")
    assert code == 0, output
    folder = tmp_path / "outputs/multi_lora"
    assert (folder / "figures/attainment_rate.svg").exists()
    points = pd.read_csv(folder / "points.csv")
    asked = {
        arm: pd.concat([pd.read_parquet(folder / f"points/{point}/requests.parquet")["adapter_id"] for point in names])
        for arm, names in points.groupby("arm")["point"]
    }
    num_others = (asked["merged"] == "adapter-1").sum()
    assert 0 < num_others < len(asked["merged"]) == 12
    text = " ".join(Page(folder / "report.html").text.split())
    for told in (
        "none: 12 of 12 requests name an adapter that this arm does not serve; all requests get the base model",
        f"merged: {num_others} of 12 requests name an adapter that this arm does not serve; all requests get the one "
        "with 'adapter-0' merged into it",
    ):
        assert told in output
        assert told in text
    assert "gathered: 12" not in output
    record = json.loads((folder / "points" / points["point"][2] / "point.json").read_text())
    assert record["arm"] == "gathered"
    slots, cache = (record["engine"][name] / 1e6 for name in ("num_adapter_bytes", "num_cache_bytes"))
    assert 0 < slots + cache <= 1.0  # engine.kv_cache_bytes
    assert f"gathered: adapter slots take {slots:.1f} MB beside {cache:.1f} MB of KV cache" in text


def save(folder, name, rank=2):
    layout = make_layout(make_model("llama"), ["q_proj", "v_proj"])
    save_adapter(folder / name, RandomAdapters(ranks=[rank]).load(name, layout, torch.float32), layout, alpha=1.0)


def saved_options(tmp_path, *adapter_ids):
    """The first arm's adapters are in a folder; the trace names `adapter_ids` in turn."""
    save(tmp_path / "mine", "good")
    save(tmp_path / "mine", "large", rank=16)
    rows = [f"{0.01 * index},4,2,{name}" for index, name in enumerate(adapter_ids)]
    (tmp_path / "trace.csv").write_text(
        "\n".join(["arrival_time,num_prompt_tokens,num_output_tokens,adapter_id", *rows])
    )
    shape = "{model_type: llama, vocab_size: 256, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, "
    shape += "num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16, max_position_embeddings: 512}"
    common = [f"model.config={shape}", "trace=csv", "trace.path=trace.csv", "trace.num_requests=null"]
    saved = ["adapters@arms.loop.lora.adapters=saved", "arms.loop.lora.adapters.path=mine"]
    return [*common, *saved, "~arms.gathered", "~arms.segmented", "rates=[null]"]


def test_a_bad_adapter_costs_its_own_requests_alone_and_is_told_before_anything_is_measured(cli, smallest, tmp_path):
    options = saved_options(tmp_path, "good", "gone", "large", "good", "gone", "good")
    code, output = cli("experiment=multi_lora", *smallest, *SMALL, *options)
    assert code == 0, output
    folder = tmp_path / "outputs/multi_lora"
    reasons = {"there is no adapter 'gone'": 2, "adapter 'large' has rank 16, more than lora.max_rank=8": 1}
    for reason in reasons:
        assert output.index(f"loop: {reason}") < output.index("loop: no steps, 1 adapters fail: adapter 'large'")
    points = pd.read_csv(folder / "points.csv").set_index("arm")
    assert points["num_requests"].to_dict() == {"none": 6, "loop": 6}
    assert points["num_completed"].to_dict() == {"none": 6, "loop": 3}
    record = json.loads((folder / "points" / points["point"]["loop"] / "point.json").read_text())
    page = Page(folder / "report.html")
    for (reason, count), (told, number) in zip(reasons.items(), record["trace"]["refused"].items(), strict=True):
        assert told.startswith(reason)
        assert number == count
        number, were = ("1 request", "was") if count == 1 else (f"{count} requests", "were")
        assert f"{number} refused: {told}" in output
        assert f"loop: {number} of each point {were} refused, and count as offered and not met: {told}" in page.text
    assert [row[0] for row in page.table("4 ÷ 1")] == ["none"]


def test_requests_for_an_adapter_with_nan_are_refused(cli, smallest, tmp_path):
    options = saved_options(tmp_path, "good", "nan", "good")
    save(tmp_path / "mine", "nan")
    path = tmp_path / "mine/nan/adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path)
    code, output = cli("experiment=multi_lora", *smallest, *SMALL, *options, "batch_sizes=[]", "~arms.none")
    assert code == 0, output
    assert f"1 request refused: adapter 'nan': '{name}' has values that are NaN or infinite" in output
    assert pd.read_csv(tmp_path / "outputs/multi_lora/points.csv")["num_completed"].tolist() == [2]


def test_an_arm_of_which_no_request_is_left_fails_by_name(cli, smallest, tmp_path):
    options = saved_options(tmp_path, "gone", "large")
    code, output = cli("experiment=multi_lora", *smallest, *SMALL, *options, "batch_sizes=[]")
    assert code == 1
    assert "none of 2 requests can be served: there is no adapter 'gone'" in output
    assert "; adapter 'large' has rank 16" in output
    assert pd.read_csv(tmp_path / "outputs/multi_lora/points.csv")["arm"].tolist() == ["none"]


def test_no_step_that_can_be_measured_is_an_error(cli, smallest, tmp_path):
    options = saved_options(tmp_path, "good")
    code, output = cli("experiment=multi_lora", *smallest, *SMALL, *options, "~arms.none", "rates=[]")
    assert code == 1
    assert "no step could be measured" in output


def test_steps_are_of_the_adapters_that_a_folder_has(cli, smallest, tmp_path):
    options = [*saved_options(tmp_path, "good"), "~arms.none", "rates=[]"]
    (tmp_path / "mine/large").rename(tmp_path / "other")
    save(tmp_path / "mine", "better")
    code, output = cli("experiment=multi_lora", *smallest, *SMALL, *options)
    assert code == 0, output
    steps = pd.read_csv(tmp_path / "outputs/multi_lora/steps.csv")
    assert steps[["arm", "num_seqs", "num_adapters"]].to_numpy().tolist() == [["loop", 1, 1], ["loop", 4, 2]] * 2
    code, output = cli("experiment=multi_lora", *smallest, *SMALL, *options, "num_adapters=3")
    assert code == 1
    assert "loop: no steps, 3 adapters are asked for, and mine has 2: better, good" in output


def test_steps_alone(cli, smallest, tmp_path):
    code, output = cli("experiment=multi_lora", *smallest, *SMALL, "rates=[]", "~arms.loop", "~arms.gathered")
    assert code == 0, output
    folder = tmp_path / "outputs/multi_lora"
    assert not (folder / "points").exists()
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert [row[0] for row in page.rows] == ["arm", "none", "segmented"]


@pytest.mark.nightly
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
    assert "error: no step could be measured of batch_sizes=[1, 4] with context=5000 and mixed=[]" in output


@pytest.mark.nightly
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

    monkeypatch.setattr("experiments.lora.steps.measure_decode", measure_until_stopped)
    with pytest.raises(KeyboardInterrupt, match=r"what was measured is in .*unfinished-steps.csv"):
        cli(*options)
    assert (folder / "steps.csv").read_text() == before
    assert pd.read_csv(folder / "unfinished-steps.csv")["arm"].tolist() == ["none", "none"]


def test_pefts_mixed_batches_beside(cli, smallest, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr("experiments.lora.multi_lora.run_peer", lambda peer, run: peer(run))  # in this process
    code, output = cli(
        "experiment=multi_lora", *smallest, *SMALL[:5], "rates=[]", "~arms.loop", "peft_batch_sizes=[1,3]"
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
        (["peft_batch_sizes=[0]"], "at least 1 sequence and 1 token of each, not 0"),
        (["peft_batch_sizes=[1]", "batch_sizes=[]"], "peft_batch_sizes stand beside batch_sizes, which is empty"),
        (
            ["~arms.loop", "~arms.gathered", "~arms.segmented", "peft_batch_sizes=[1]"],
            "peft_batch_sizes needs an arm that serves adapters",
        ),
        (["rates=[]", "batch_sizes=[]"], "all empty: nothing is left to measure"),
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
    names = ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"more adapters than lora.num_slots=2"):
        measure_decode(make_engine(num_slots=2), 3, 16, 2, names)
    assert measure_decode(TorchEngine(make_model("llama"), num_blocks=20), 3, 16, 2, names).device > 0
