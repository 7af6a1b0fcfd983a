"""experiment=engine_speed as a user calls it, on a CPU."""

import json

import pandas as pd
import pytest

from tests.report.html_page import Page, check_page

SMALL = ["batch_sizes=[1,4,256]", "context=32", "num_steps=4", "device=cpu", "mixed=[[8,16,2,32]]", "chunks=[[64,16]]"]


@pytest.fixture
def small(smallest):
    return [*smallest, *SMALL]


@pytest.mark.nightly
@pytest.mark.usefixtures("drawn")
def test_speed_with_peers(cli, small, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.speed.engine_speed.run_peer", lambda peer, run: peer(run))  # in this process
    sizes = ["prefills=[[1,64],[1,8192]]", "attention=[[2,64]]", "trace.num_requests=4"]
    code, output = cli("experiment=engine_speed", *small, *sizes, "peers=true", "peer_seats=[3]")
    assert code == 0, output
    folder = tmp_path / "outputs/engine_speed"
    record = json.loads((folder / "speed.json").read_text())
    assert set(record) == {"config", "environment", "ceilings", "start", "cases", "comparisons", "serving", "peers"}
    table = pd.read_csv(folder / "speed.csv")
    assert table["case"].tolist() == ["decode 1 × 32", "decode 4 × 32", "prefill 1 × 64"]
    assert (table["utilisation"] > 0).all()
    compared = pd.read_csv(folder / "comparisons.csv")
    assert compared["case"].tolist() == ["mixed 8 behind 16 + 2 × 32", "64 in chunks of 16"]
    assert compared["alone"].tolist() == ["prefill 1 × 10", "prefill 1 × 64"]
    assert (compared[["mfu", "ratio", "waited"]] > 0).all(axis=None)
    assert output.count("skipped") == 3
    assert "8192 tokens are more than the model's context of 512" in output
    assert "attention 2 × 64: skipped, the kernel needs a GPU" in output
    assert list(record["peers"]) == ["HF continuous batching, 3 seats", "HF generate, static batches"]
    for peer in record["peers"]:
        assert record["peers"][peer]["output_throughput"] > 0, record["peers"]
        assert f"{peer}: " in output
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert figures == {
        f"{name}.{kind}" for name in ("roofline", "decode_step", "against_alone") for kind in ("png", "svg")
    }
    page = Page(folder / "report.html")
    check_page(page, folder)
    peers = page.rows[page.rows.index(["peer", "output throughput (tok/s)", "engine ÷ peer", "error"]) + 1 :]
    assert [row[0] for row in peers] == list(record["peers"])
    assert all(row[3] == "–" for row in peers)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_sizes=[0]", "a decode needs at least 1 sequence and 1 token of each, not 0 and 32"),
        ("prefills=[[1]]", "a prefill is [sequences, tokens each], not [1]"),
        (
            "mixed=[[8,0,2]]",
            "an entry of mixed is [prompt tokens, cached ones before them, decodes, context of each], not",
        ),
        ("chunks=[[8,8]]", "chunks: a chunk of 8 tokens is no part of a prompt of 8"),
        ("num_steps=0", "num_steps 0 must be at least 1"),
        (
            "engine.cuda_graphs=true",
            "scheduler.max_num_batched_tokens=8192 is more than the 2,048 tokens of the largest",
        ),
    ],
)
def test_sizes_are_checked_before_anything_is_measured(cli, small, override, message):
    code, output = cli("experiment=engine_speed", *small, override)
    assert code == 1
    assert message in output
    assert "GB/s" not in output
