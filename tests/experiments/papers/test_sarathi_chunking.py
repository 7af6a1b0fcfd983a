"""experiment=papers/sarathi_chunking as a user calls it."""

import pandas as pd
import pytest
from omegaconf import OmegaConf

from experiments.papers.comparison import read_paper, reported
from experiments.papers.sarathi_chunking import MIXED, PROMPT, chunk_sizes
from framework.catalog import CONF
from tests.report.html_page import Page, check_page


def test_step_times_stand_beside_what_is_reported(cli, tmp_path):
    code, output = cli("experiment=papers/sarathi_chunking", "engine=modelled", "divisor=8")
    assert code == 0, output
    folder = tmp_path / "outputs/papers/sarathi_chunking"
    table = pd.read_csv(folder / "comparison.csv").set_index("of")
    steps = pd.read_csv(folder / "steps.csv").set_index("step")["device (ms)"]
    assert table.loc["decode 4 × 1024", "measured"] == steps["decode 4 × 1024"] < steps["prefill 1 × 1024"]
    chunks = pd.read_csv(folder / "chunks.csv").set_index("case")
    case = "16384 in chunks of 2048"
    assert chunks.loc[case, ["num_prompt_tokens", "num_chunk_tokens"]].tolist() == [2048, 256]
    assert table.loc[case, "measured"] == pytest.approx(chunks.loc[case, "device"] / chunks.loc[case, "alone_device"])
    assert table.loc[case, "reported"] == 0.81
    check_page(Page(folder / "report.html"), folder)
    assert "no step was executed" in output


def test_the_sizes_are_the_papers_over_the_divisor(cli):
    assert chunk_sizes(1)["8192 in chunks of 512"] == (8192, 512)
    assert chunk_sizes(4)["8192 in chunks of 512"] == (2048, 128)
    for override, message in (
        ("divisor=1", "a prompt of 16384 tokens is beyond model.max_model_len=4096"),
        ("divisor=0", "divisor"),
    ):
        code, output = cli("experiment=papers/sarathi_chunking", "engine=modelled", override)
        assert code == 1
        assert message in output


def test_chunked_prefill_has_the_same_reported_values():
    steps, chunks = (reported(read_paper("sarathi_chunking"), name) for name in ("steps", "chunks"))
    theirs = OmegaConf.load(CONF / "experiment/chunked_prefill.yaml")["reported_ratios"]
    mixed = theirs.pop(MIXED)
    assert mixed == pytest.approx(steps[MIXED] / steps[PROMPT], abs=5e-4)
    assert dict(theirs) == chunks
    ablation = read_paper("sarathi_ablation")
    for workload in ("openchat", "arxiv"):
        latencies = OmegaConf.load(CONF / f"experiment/chunked_prefill/{workload}.yaml")["reported_latencies"]
        for metric in ("ttft_p50", "itl_p99"):
            own = {arm: values[metric] for arm, values in latencies.items()}
            assert own == reported(ablation, f"{metric}_{workload}")
