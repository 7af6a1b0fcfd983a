"""experiment=papers/sarathi_capacity as a user calls it, by a cost model."""

import pandas as pd
import pytest
import yaml

from tests.report.html_page import Page, check_page

FEW = ["engine=modelled", "tracking=none", "trace.num_requests=16"]


@pytest.mark.nightly
def test_capacities_stand_beside_what_is_reported(cli, tmp_path):
    few = ["seeds=[0,1]", "limits=[5,25]", "rates.multiples=[0.2,3]", "~arms.orca"]
    code, output = cli("experiment=papers/sarathi_capacity", *FEW, *few)
    assert code == 0, output
    folder = tmp_path / "outputs/papers/sarathi_capacity"
    rows = pd.read_csv(folder / "capacities.csv")
    assert rows[["arm", "limit"]].to_numpy().tolist() == [
        [arm, limit] for arm in ("vllm", "sarathi_512", "sarathi_2048") for limit in (5, 25)
    ]
    table = pd.read_csv(folder / "comparison.csv").set_index("of")
    found = rows.set_index(["arm", "limit"])["capacity"]
    assert table.loc["sarathi_512, 25×", "measured"] == pytest.approx(found["sarathi_512", 25], nan_ok=True)
    gain = found["sarathi_512", 5] / found["vllm", 5]
    assert table.loc["sarathi_512 ÷ vllm, 5×", "measured"] == pytest.approx(gain, nan_ok=True)
    assert found.notna().any()
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert len(page.table("limit (ms)")) == 6
    assert "a decode step of 4 sequences with 512 tokens each takes" in output


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=[0]", "give a limit and two seeds at least"),
        ("rates=auto", "rates=auto are no multiples"),
    ],
)
def test_what_makes_no_capacity_is_refused(cli, override, message):
    code, output = cli("experiment=papers/sarathi_capacity", *FEW, override)
    assert code == 1
    assert message in output


def test_with_the_8b_model_the_sizes_are_the_papers(cli):
    code, output = cli("experiment=papers/sarathi_capacity", "engine=modelled", "model=llama_8b", "--cfg", "job")
    assert code == 0, output
    config = yaml.safe_load(output)
    assert [config["step"]["num_seqs"], config["step"]["context"]] == [32, 4096]
    budgets = [config["arms"][arm]["scheduler"]["max_num_batched_tokens"] for arm in config["arms"]]
    assert budgets == [None, None, 512, 2048]
