"""Latency over the rate against a paper's ratio, and the two studies of it as a user calls them."""

import pandas as pd
import pytest

from tests.report.html_page import Page, check_page

FEW = ["engine=modelled", "tracking=none", "trace.num_requests=48"]


@pytest.mark.parametrize(
    ("study", "few", "case"),
    [
        ("vllm_latency", ["~arms.pow2", "~arms.oracle", "rates={of: max, multiples: [0.2, 20]}"], "paged ÷ max"),
        ("orca", ["rates={of: static, multiples: [0.1, 20]}"], "continuous ÷ static"),
    ],
)
def test_what_arms_sustain_stands_beside_what_is_reported(cli, tmp_path, study, few, case):
    code, output = cli(f"experiment=papers/{study}", *FEW, *few)
    assert code == 0, output
    folder = tmp_path / "outputs/papers" / study
    table = pd.read_csv(folder / "comparison.csv").set_index("of")
    assert table.loc[case, "measured"] > 1
    assert len(pd.read_csv(folder / "latency.csv")) == 4
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert len(page.table("limit ÷ lowest")) == 5


def test_rates_have_to_be_multiples_of_an_arm(cli):
    code, output = cli("experiment=papers/orca", *FEW, "rates=auto")
    assert code == 1
    assert "rates=auto are no multiples" in output
