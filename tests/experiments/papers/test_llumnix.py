"""experiment=papers/llumnix: what a preemption costs, by hand, and as a user calls it, by a cost model."""

import pandas as pd
import pytest

from experiments.papers.llumnix import measured, preemption_losses
from tests.report.html_page import Page, check_page

FEW = ["engine=modelled", "tracking=none", "trace.num_requests=24", "engine.num_blocks=40", "scheduler.max_num_seqs=4"]


def test_a_preemption_costs_what_its_gap_is_longer_than_the_others():
    requests = pd.DataFrame(
        {
            "token_times": [[1.0, 1.1, 1.2, 2.3, 2.4, 2.5], [1.0, 1.1, 3.1, 3.2, 8.2, 8.3], [1.0, 9.0], [1.0], [1.0]],
            "num_preemptions": [1, 2, 0, 1, 0],
        }
    )
    assert preemption_losses(requests) == pytest.approx([1.0, 1.9 + 4.9, 0, 0, 0])


def test_ratios_are_the_largest_over_the_rates_but_for_preemptions_their_mean():
    columns = dict.fromkeys(("ttft_mean", "ttft_p99", "tpot_p99", "e2e_mean", "e2e_p99"), 1.0)
    rows = pd.DataFrame(
        [
            {"arm": arm, "rate": rate, **columns, "loss": loss, "downtime": downtime}
            for arm, rate, loss, downtime in (
                ("round_robin", 1.0, 4.0, None),
                ("round_robin", 2.0, 4.0, None),
                ("round_robin", 3.0, 4.0, None),
                ("infaas", 1.0, 0.0, None),
                ("infaas", 2.0, 2.0, None),
                ("infaas", 3.0, 4.0, None),
                ("llumnix", 1.0, 0.0, 0.001),
                ("llumnix", 2.0, 0.5, 0.002),
                ("llumnix", 3.0, 2.0, 0.006),
            )
        ]
    )
    rows.loc[rows["arm"] == "infaas", "ttft_p99"] = [1.0, 3.0, 2.0]
    found = measured(rows)
    assert found["prefill"]["P99, infaas ÷ llumnix"] == 3
    assert found["loss"]["llumnix ÷ infaas"] == pytest.approx((0.25 + 0.5) / 2)
    assert found["downtime"]["llumnix"] == pytest.approx(2)


@pytest.mark.nightly
def test_all_arms_are_replayed_and_compared(cli, tmp_path):
    code, output = cli("experiment=papers/llumnix", *FEW, "rates.multiples=[0.5,4]")
    assert code == 0, output
    folder = tmp_path / "outputs/papers/llumnix"
    tails = pd.read_csv(folder / "tails.csv").set_index(["arm", "rate"])
    assert len(tails) == 6
    assert tails.loc[["round_robin", "infaas"], "moves"].eq(0).all()
    table = pd.read_csv(folder / "comparison.csv").set_index("of")["measured"]
    means = tails["ttft_mean"]
    ratios = means["round_robin"] / means["llumnix"]
    assert table["mean, round_robin ÷ llumnix"] == pytest.approx(ratios.max())
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert len(page.table("preemption loss (s)")) == 6


def test_without_an_arm_that_the_paper_has_nothing_is_compared(cli):
    code, output = cli("experiment=papers/llumnix", *FEW, "~arms.infaas")
    assert code == 1
    assert "there is no infaas" in output
