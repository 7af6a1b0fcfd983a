"""experiment=papers/anyscale as a user calls it."""

import pandas as pd
import pytest

from tests.report.html_page import Page, check_page


def test_throughputs_stand_beside_what_is_reported(cli, tmp_path):
    few = ["~workloads.cap_32", "~workloads.cap_128", "~workloads.cap_512", "trace.num_requests=24"]
    code, output = cli("experiment=papers/anyscale", "engine=modelled", "tracking=none", *few)
    assert code == 0, output
    folder = tmp_path / "outputs/papers/anyscale"
    rows = pd.read_csv(folder / "throughput.csv").set_index("arm")["total_throughput"]
    table = pd.read_csv(folder / "comparison.csv").set_index("of")
    assert table["measured ratio"].tolist() == pytest.approx([rows[arm] / rows["static"] for arm in table.index])
    assert table["reported ratio"].tolist() == [1.0, 2.0, 5.75]
    assert table.loc["continuous", "measured ratio"] > 1
    check_page(Page(folder / "report.html"), folder)
