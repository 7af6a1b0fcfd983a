"""experiment=lora as a user calls it, on the smallest model."""

import json

import pandas as pd
import pytest

from experiments.lora import ranks
from experiments.lora.ranks import compare_adapter
from tests.report.html_page import Page, check_page

SIZES = ["batch_size=2", "context=16", "num_steps=2", "prompt_len=8", "ranks=[2,4]"]


@pytest.fixture
def small(smallest):
    return [*(one for one in smallest if not one.startswith("trace.")), *SIZES, "device=cpu"]


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("options", [[], ["lora=gathered", "lora.targets=[q_proj,down_proj]"]])
def test_merged_is_served(cli, small, tmp_path, options):
    code, output = cli("experiment=lora", *small, *options)
    assert code == 0, output
    table = pd.read_csv(tmp_path / "outputs/lora/ranks.csv")
    # per layer of 32 channels: q 32, k and v 16 each, o, gate, up and down with 64; q and down alone
    per_rank = 2 * ((64 + 48 + 48 + 64 + 96 + 96 + 96) if not options else (64 + 96))
    assert table["num_parameters"].tolist() == [2 * per_rank, 4 * per_rank]
    assert table["num_bytes"].tolist() == [8 * per_rank, 16 * per_rank]
    assert (table["merged_error"] < 1e-5).all()
    assert (table["effect"] > 1e-3).all()
    assert (table[["served_elapsed", "merged_elapsed", "base_elapsed"]] > 0).all(axis=None)
    assert "reported: 0.39%" in output
    record = json.loads((tmp_path / "outputs/lora/lora.json").read_text())
    assert record["config"]["lora"]["strategy"]["_target_"].startswith("framework.lora.")
    page = Page(tmp_path / "outputs/lora/report.html")
    check_page(page, tmp_path / "outputs/lora")
    assert page.count("svg") == 1
    assert page.rows[0][-2:] == ["logits, merged − served (%)", "logits, served − no adapter (%)"]  # not of the times
    assert [row[:2] for row in page.rows] == [
        ["rank", "parameters"],
        ["2", f"{2 * per_rank:,}"],
        ["4", f"{4 * per_rank:,}"],
    ]
    assert "0.39%" in page.text


def test_an_interruption_keeps_the_ranks_so_far(cli, small, tmp_path, monkeypatch):
    def compare_until_stopped(rank, *measured):
        if rank == 4:
            raise KeyboardInterrupt
        return compare_adapter(rank, *measured)

    monkeypatch.setattr(ranks, "compare_adapter", compare_until_stopped)
    with pytest.raises(KeyboardInterrupt, match=r"unfinished-ranks.csv"):
        cli("experiment=lora", *small)
    assert pd.read_csv(tmp_path / "outputs/lora/unfinished-ranks.csv")["rank"].tolist() == [2]


@pytest.mark.parametrize("ranks", ["[]", "[2, 0]"])
def test_ranks_are_one_or_more_numbers(cli, small, tmp_path, ranks):
    code, output = cli("experiment=lora", *small, f"ranks={ranks}")
    assert code == 1
    assert f"error: ranks must be one or more numbers from 1 on, not {ranks}" in output
    assert not (tmp_path / "outputs").exists()


def test_saved_adapters_have_the_ranks_that_they_have(cli, small):
    code, output = cli("experiment=lora", *small, "adapters@lora.adapters=saved")
    assert code == 1
    assert "error: experiment=lora draws an adapter of each rank: it needs adapters@lora.adapters=random" in output


@pytest.mark.parametrize("strategy", ["none", "merged"])
def test_it_needs_adapters_that_are_served(cli, small, strategy):
    code, output = cli("experiment=lora", *small, f"lora={strategy}")
    assert code == 1
    assert "needs lora=segmented, gathered or loop" in output
