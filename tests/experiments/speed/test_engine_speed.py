"""experiment=engine_speed and engine_ablation as a user calls them, on a CPU."""

import json

import pandas as pd
import pytest
import torch

from experiments.peers import hf_config
from experiments.speed.tables import factors_table
from framework.models.config import parse_config
from framework.models.loading import build_model
from tests.models.checkpoints import MODEL_NAMES, make_hf_model
from tests.report.html_page import Page, check_page

SMALL = ["batch_sizes=[1,4,256]", "context=32", "num_steps=4", "device=cpu"]
ONLY_EAGER = ["~arms.fused", "~arms.compiled", "~arms.graphs", "~arms.overlap"]


@pytest.fixture
def small(smallest):
    return [*smallest, *SMALL]


@pytest.mark.usefixtures("drawn")
def test_speed_with_peers(cli, small, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.speed.engine_speed.run_peer", lambda peer, run: peer(run))  # in this process
    sizes = ["prefills=[[1,64],[1,8192]]", "attention=[[2,64]]", "trace.num_requests=4"]
    code, output = cli("experiment=engine_speed", *small, *sizes, "peers=true", "peer_seats=[3]")
    assert code == 0, output
    folder = tmp_path / "outputs/engine_speed"
    record = json.loads((folder / "speed.json").read_text())
    assert set(record) == {"config", "environment", "ceilings", "start", "cases", "serving", "peers"}
    table = pd.read_csv(folder / "speed.csv")
    assert table["case"].tolist() == ["decode 1 × 32", "decode 4 × 32", "prefill 1 × 64"]
    assert (table["utilisation"] > 0).all()
    assert output.count("skipped") == 3
    assert "8192 tokens are more than the model's context of 512" in output
    assert "attention 2 × 64: skipped, the kernel needs a GPU" in output
    assert list(record["peers"]) == ["HF continuous batching, 3 seats", "HF generate, static batches"]
    for peer in record["peers"]:
        assert record["peers"][peer]["output_throughput"] > 0, record["peers"]
        assert f"{peer}: " in output
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert figures == {f"{name}.{kind}" for name in ("roofline", "decode_step") for kind in ("png", "svg")}
    page = Page(folder / "report.html")
    check_page(page, folder)
    peers = page.rows[page.rows.index(["peer", "output throughput (tok/s)", "engine ÷ peer", "error"]) + 1 :]
    assert [row[0] for row in peers] == list(record["peers"])
    assert all(row[3] == "–" for row in peers)


def test_ablation_of_what_a_cpu_has(cli, small, tmp_path):
    code, output = cli("experiment=engine_ablation", *small, *ONLY_EAGER)
    assert code == 0, output
    folder = tmp_path / "outputs/engine_ablation"
    assert pd.read_csv(folder / "ablation.csv")[["arm", "num_seqs"]].to_numpy().tolist() == [["eager", 1], ["eager", 4]]
    assert list(json.loads((folder / "ablation.json").read_text())["serving"]) == ["eager"]
    assert (folder / "figures/ablation.png").exists()
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert page.rows[0] == ["arm", "decode 1 × 32", "decode 4 × 32", "output tok/s"]
    assert page.rows[1][0] == "eager"
    assert page.rows[1][3].endswith("(1.00×)")


def test_an_arm_that_needs_a_gpu_says_so_and_what_was_measured_stays(cli, small, tmp_path):
    code, output = cli("experiment=engine_ablation", *small, *ONLY_EAGER[1:])
    assert code == 1
    assert "engine.fused=true needs a GPU" in output
    assert list(json.loads((tmp_path / "outputs/engine_ablation/ablation.json").read_text())["serving"]) == ["eager"]


def test_a_case_that_an_arm_could_not_hold_has_no_factor():
    rows = [
        {"arm": arm, "case": case, "device": elapsed / 2, "elapsed": elapsed}
        for arm, case, elapsed in (("a", "one", 0.004), ("b", "one", 0.002), ("b", "two", 0.008), ("c", "two", 0.002))
    ]
    serving = {arm: {"output_throughput": throughput} for arm, throughput in (("a", 100.0), ("b", 200.0), ("c", 100.0))}
    table = factors_table(pd.DataFrame(rows), serving).set_index("arm")
    assert table["one"].tolist() == ["2 / 4 (1.00×)", "1 / 2 (2.00×)", "–"]
    assert table["two"].tolist() == ["–", "4 / 8", "1 / 2 (4.00×)"]
    assert table["output tok/s"].tolist() == ["100 (1.00×)", "200 (2.00×)", "100 (0.50×)"]


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_peer_has_the_models_shape(name):
    import transformers

    theirs = make_hf_model(name).config
    config = parse_config(theirs.to_dict())
    with torch.device("meta"):
        peer = transformers.AutoModelForCausalLM.from_config(hf_config(config))
    again = parse_config(peer.config.to_dict())
    assert (again.rope_theta, again.rope_scaling) == (config.rope_theta, config.rope_scaling)
    assert again.windows == config.windows
    assert peer.num_parameters() == sum(one.numel() for one in build_model(config, torch.float32, "meta").parameters())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_sizes=[0]", "a decode needs at least 1 sequence and 1 token of each, not 0 and 32"),
        ("prefills=[[1]]", "a prefill is [sequences, tokens each], not [1]"),
        ("num_steps=0", "num_steps 0 must be at least 1"),
    ],
)
def test_sizes_are_checked_before_anything_is_measured(cli, small, override, message):
    code, output = cli("experiment=engine_speed", *small, override)
    assert code == 1
    assert message in output
    assert "GB/s" not in output
