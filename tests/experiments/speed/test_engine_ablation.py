"""experiment=engine_ablation as a user calls it, on a CPU."""

import json

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from experiments.speed.engine_ablation import output_throughputs
from framework.engine.torch_engine.mixed import SIZES
from tests.report.html_page import Page, check_page
from tests.scheduler.shipped import CONF

SMALL = ["batch_sizes=[1,4,256]", "context=32", "num_steps=4", "device=cpu"]


ONLY_EAGER = ["~arms.fused", "~arms.compiled", "~arms.graphs", "~arms.overlap"]


@pytest.fixture
def small(smallest):
    return [*smallest, *SMALL]


def test_ablation_of_what_a_cpu_has(cli, small, tmp_path):
    code, output = cli("experiment=engine_ablation", *small, *ONLY_EAGER)
    assert code == 0, output
    folder = tmp_path / "outputs/engine_ablation"
    assert pd.read_csv(folder / "ablation.csv")[["arm", "num_seqs"]].to_numpy().tolist() == [["eager", 1], ["eager", 4]]
    assert list(json.loads((folder / "ablation.json").read_text())["serving"]) == ["eager"]
    assert (folder / "figures/ablation.png").exists()
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert page.rows[0] == ["arm", "decode 1 × 32", "decode 4 × 32", "output tok/s"]
    assert page.rows[1][0] == "eager"
    assert page.rows[1][3].endswith("(1.00×)")


def test_an_arm_that_needs_a_gpu_says_so_and_what_was_measured_stays(cli, small, tmp_path):
    code, output = cli("experiment=engine_ablation", *small, *ONLY_EAGER[1:])
    assert code == 1
    assert "engine.fused=true needs a GPU" in output
    assert list(json.loads((tmp_path / "outputs/engine_ablation/ablation.json").read_text())["serving"]) == ["eager"]


def test_arms_with_graphs_take_the_schedulers_steps():
    """An engine that is asked for graphs by name refuses a scheduler whose steps none of them holds."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["experiment=engine_ablation"])
    assert config.scheduler.max_num_batched_tokens > SIZES[-1]
    switches = {name: arm.engine.cuda_graphs for name, arm in config.arms.items()}
    assert switches == {"eager": False, "fused": False, "compiled": False, "graphs": None, "overlap": None}


def test_the_figure_has_each_arms_output_throughput():
    served = {"eager": {"output_throughput": 10.0, "duration": 3.0}, "fused": {"output_throughput": 20.0}}
    assert output_throughputs(served).to_dict() == {"eager": 10.0, "fused": 20.0}
