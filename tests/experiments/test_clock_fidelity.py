"""experiment=clock_fidelity as a user calls it."""

import pandas as pd
import pytest

from experiments.clock_fidelity import COMPARED, differences
from tests.report.html_page import Page, check_page


@pytest.mark.usefixtures("drawn")
def test_both_clocks_are_compared_on_the_page(cli, smallest, tmp_path):
    code, output = cli("experiment=clock_fidelity", *smallest, "rates=[50]", "seeds=[0]")
    assert code == 0, output
    folder = tmp_path / "outputs/clock_fidelity"
    page = Page(folder / "report.html")
    check_page(page, folder)
    header = page.rows.index(["rate (req/s)", *COMPARED])
    assert page.rows[header + 1][0] == "50"
    assert all(value.endswith("%") for value in page.rows[header + 1][1:])


def test_the_differences_are_medians_over_the_seeds_that_both_clocks_have():
    rows = [
        {"rate": 8.0, "offered_rate": 8.0, "arm": arm, "seed": seed} | dict.fromkeys(COMPARED, value)
        for arm, values in {"virtual": [1.1, 1.3, 0.9, 9.0], "wall": [1.0, 1.0, 1.0]}.items()
        for seed, value in enumerate(values)
    ]
    alone = [{"rate": 4.0, "offered_rate": 4.0, "arm": "wall", "seed": 0} | dict.fromkeys(COMPARED, 1.0)]
    table = differences(pd.DataFrame(rows + alone))
    assert table.to_numpy().tolist() == [[8.0, *["+10.0%"] * len(COMPARED)]]
