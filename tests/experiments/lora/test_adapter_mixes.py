"""S-LoRA's and Punica's studies as a user calls them, on the smallest model."""

import pandas as pd
import pytest
import yaml

from experiments.papers.comparison import read_paper
from framework.catalog import about
from tests.report.html_page import Page, check_page

SLORA = ["experiment=papers/slora", "only=[gathered]", "rates=[50,500]", "arms.gathered.lora.max_rank=8"]
SLORA += ["arms.gathered.lora.adapters.ranks=[4,8]", "arms.gathered.lora.num_slots=4", "scheduler.max_num_seqs=4"]


@pytest.mark.nightly
@pytest.mark.usefixtures("drawn")
def test_every_mix_is_replayed_and_stands_beside_what_is_reported(cli, smallest, tmp_path):
    code, output = cli(*smallest, *SLORA, "~mixes.20", "trace.num_requests=40")
    assert code == 0, output
    folder = tmp_path / "outputs/papers/slora"
    points = pd.read_csv(folder / "points.csv").set_index(["arm", "rate"])
    assert points.index.tolist() == [(f"gathered-{mix}", rate) for mix in (1, 200) for rate in (50.0, 500.0)]
    num_adapters = pd.read_csv(folder / "adapters.csv").groupby("arm")["adapter_id"].nunique()
    assert num_adapters["gathered-1"] == 1
    assert 20 < num_adapters["gathered-200"] <= 40
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert page.count("svg") == 2
    table, ttft = (rows[1:] for rows in page.tables if "200 ÷ 1" in rows[0])
    assert ttft[3][1:] == ["25.7", "957", "958", "972", "976", "38"]
    assert [row[0] for row in table] == [
        "gathered",
        *(f"{arm} (reported)" for arm in ("unified", "segmented", "gathered")),
    ]
    assert table[1][1:] == ["1.68", "1.65", "1.58", "1.56", "1.55", "0.923"]
    measured = [float(table[0][column].replace(",", "")) for column in (1, 5)]
    expected = points["request_throughput"].xs(500.0, level="rate").tolist()  # the highest rate
    assert measured == pytest.approx(expected, rel=0.01)
    over_rates = page.table("share of requests within the SLO")
    assert [row[:2] for row in over_rates] == [
        ["gathered", "50"], ["gathered", "500"], *(["unified (reported)", rate] for rate in ("1", "1.5", "2", "2.5"))
    ]  # fmt: skip
    assert over_rates[-1][4] == "0.05"


@pytest.mark.nightly
def test_a_queue_under_every_popularity(cli, smallest, tmp_path):
    slots = [f"arms.{arm}.lora.num_slots=2" for arm in ("loop", "gathered", "segmented")]
    code, output = cli("experiment=papers/punica", *smallest, *slots, "~arms.none", "trace.num_requests=5")
    assert code == 0, output
    folder = tmp_path / "outputs/papers/punica"
    adapters = pd.read_csv(folder / "adapters.csv")
    num_adapters = adapters.groupby("arm", sort=False)["adapter_id"].nunique()
    assert num_adapters["loop-distinct"] == 5
    assert num_adapters["loop-identical"] == 1
    assert (
        num_adapters.drop([f"{arm}-distinct" for arm in ("loop", "gathered", "segmented")]).max() <= 3
    )  # the root of 5 is 3, drawn 5 times
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert page.count("svg") == 1
    table = page.table("identical ÷ distinct")
    assert [row[0] for row in table] == ["loop", "gathered", "segmented", "segmented (reported)"]
    assert table[-1][1:] == ["1,044"] * 4 + ["1"]
    code, output = cli("experiment=report")
    assert code == 0, output
    index = Page(tmp_path / "outputs/index.html")
    check_page(index, tmp_path / "outputs")
    assert "papers/punica" in index.text
    assert about("papers/punica") in index.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("only=[lop]", "only has 'lop', which is no arm; did you mean 'loop'"),
        ("mix_over_rates='20O'", "mix_over_rates is '20O'; did you mean '20'?"),
        ("mix_over_rates=21", "mix_over_rates is '21'"),
        (
            "+mixes.x={_target_: framework.trace.popularity.zipf, _partial_: true, alfa: 1}",
            "unknown key 'alfa' in mixes.x",
        ),
    ],
)
def test_bad_input_is_one_clear_message(cli, smallest, tmp_path, override, message):
    code, output = cli(*smallest, *SLORA, override)
    assert code == 1
    assert message in output
    assert not (tmp_path / "outputs").exists()


def test_the_memory_preset_differs_in_how_adapters_lie_and_are_multiplied(cli):
    code, output = cli("experiment=papers/slora", "preset=memory", "--cfg", "job")
    assert code == 0, output
    config = yaml.safe_load(output)
    lora = {arm: dict(config["arms"][arm]["lora"]) for arm in config["only"]}
    assert lora["unified"].pop("memory") == "unified"
    assert lora["segmented"].pop("memory") == lora["gathered"].pop("memory") == "split"
    strategies = {arm: options.pop("strategy")["_target_"].rpartition(".")[2] for arm, options in lora.items()}
    assert strategies == {"unified": "Segmented", "segmented": "Segmented", "gathered": "Gathered"}
    assert lora["unified"] == lora["segmented"] == lora["gathered"]


def test_a_gpu_serves_every_number_of_adapters_that_the_source_reports_and_long_enough_to_ask_for_them(cli):
    code, output = cli("experiment=papers/slora", "preset=llama_8b", "--cfg", "job")
    assert code == 0, output
    config = yaml.safe_load(output)
    cases = read_paper("slora")["quantities"]["request_throughput"]["values"]
    reported = {case.partition(", ")[2] for case in cases}
    assert reported <= set(config["mixes"])
    assert config["trace"]["num_requests"] >= 3000
    assert set(config["only"]) <= set(config["arms"])


def test_table_3_offers_a_multiple_of_what_few_adapters_leave(cli, smallest, tmp_path):
    mixes = ["mixes.100.num_adapters=20", "trace.num_requests=30", "scheduler.max_num_seqs=4"]
    code, output = cli(*smallest, "experiment=papers/slora_table_3", *mixes, "arms.segmented.lora.num_slots=4")
    assert code == 0, output
    folder = tmp_path / "outputs/papers/slora_table_3"
    points = pd.read_csv(folder / "points.csv")
    assert points["arm"].tolist() == ["segmented-5", "segmented-100"]
    assert len(set(points["rate"])) == 1
    compared = pd.read_csv(folder / "comparison.csv")
    assert compared["reported"].tolist() == [8.05, 7.99, 7.64, 7.61]


@pytest.mark.parametrize("paper", ["slora", "slora_table_3", "punica"])
def test_by_the_cost_model_of_a_gpu_the_arms_are_those_that_were_measured(cli, paper):
    """Adapters of another rank, or on other layers, have no shipped cost model."""
    code, output = cli(f"experiment=papers/{paper}", "engine=modelled", "model=llama_8b", "--cfg", "job")
    assert code == 0, output
    config = yaml.safe_load(output)
    arms = {arm: config["arms"][arm]["lora"] for arm in config["only"] or config["arms"]}
    served = [lora for lora in arms.values() if "max_rank" in lora]
    assert served
    assert all((lora["max_rank"], lora["targets"]) == (8, None) for lora in served)
