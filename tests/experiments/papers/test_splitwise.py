"""experiment=papers/splitwise as a user calls it, by a cost model."""

import pandas as pd
import pytest
import yaml

from tests.report.html_page import Page, check_page

FEW = ["engine=modelled", "tracking=none", "trace.num_requests=12", "scheduler.max_num_seqs=2"]


@pytest.mark.nightly
def test_throughputs_within_the_limits_stand_beside_what_is_reported(cli, tmp_path):
    few = ["rates.multiples=[0.1,3]", "scales=[1,60]", "compared_at=60"]
    code, output = cli("experiment=papers/splitwise", *FEW, *few)
    assert code == 0, output
    folder = tmp_path / "outputs/papers/splitwise"
    found = pd.read_csv(folder / "throughputs.csv").set_index(["arm", "limit"])["capacity"]
    assert list(found.index) == [(arm, scale) for arm in ("baseline", "split_half") for scale in (1, 60)]
    table = pd.read_csv(folder / "comparison.csv").set_index("of")
    gain = found["split_half", 60] / found["baseline", 60]
    assert table.loc["split ÷ baseline", "measured"] == pytest.approx(gain, nan_ok=True)
    assert found.notna().any()
    slowdowns = pd.read_csv(folder / "slowdowns.csv")
    assert len(slowdowns) == 2 * 2 * 9
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert len(page.table("limits ×")) == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compared_at=3", "compared_at=3"),
        ("~arms.baseline", "compares servers that do both, the first arm, with arms that are split"),
        ("arms.split_half.servers.decode.num=1", "compared at an equal number of servers"),
    ],
)
def test_what_cannot_be_compared_is_refused(cli, override, message):
    code, output = cli("experiment=papers/splitwise", *FEW, override)
    assert code == 1
    assert message in " ".join(output.split())


def test_with_the_8b_model_lengths_and_limits_are_the_papers(cli):
    code, output = cli("experiment=papers/splitwise", "engine=modelled", "model=llama_8b", "--cfg", "job")
    assert code == 0, output
    config = yaml.safe_load(output)
    assert list(config["arms"]) == ["baseline", "split_half", "split_few", "split_most", "chunked"]
    servers = [arm["servers"] for arm in config["arms"].values()]
    assert [own if isinstance(own, int) else own["prefill"]["num"] for own in servers] == [4, 2, 1, 3, 4]
    assert config["compared_at"] == 1
    assert config["trace"]["lengths"]["prompt"]["median"] == 1020
