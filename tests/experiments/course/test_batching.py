"""experiment=batching as a user calls it, and where it draws the border between what binds."""

import json
from math import inf

import pandas as pd
import pytest

from experiments.course.batching import compute_bound_from, decode_work, powers_of_two
from framework.engine.torch_engine import cpu_steps
from framework.measure.ceilings import Ceilings
from framework.measure.floors import Costs
from tests.report.html_page import Page, check_page

QUICK = ["experiment=batching", "batch_sizes=[8,1,4]", "num_output_tokens=6", "num_repeats=2", "device=cpu"]


@pytest.mark.usefixtures("drawn")
def test_batches_are_timed_and_give_each_prompts_own_text(cli, smallest, tmp_path):
    code, output = cli(*QUICK, *smallest[:2])
    assert code == 0, output
    folder = tmp_path / "outputs/batching"
    runs = pd.read_csv(folder / "batching.csv")
    assert runs[["batch_size", "repeat"]].to_numpy().tolist() == [
        [size, repeat] for size in (1, 4, 8) for repeat in (0, 1)
    ]
    assert (runs["num_same"] == runs["batch_size"]).all()
    assert (runs[["prompt", "latency"]] > 0).all(axis=None)
    assert "26 of 26 texts" in output
    sizes = pd.DataFrame(json.loads((folder / "batching.json").read_text())["sizes"])
    assert (sizes["throughput"] * sizes["latency"]).tolist() == pytest.approx([1, 4, 8])
    assert sizes["floor"].is_monotonic_increasing
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert [row[0] for row in page.rows] == ["batch size", "1", "4", "8"]


@pytest.mark.gpu
def test_on_a_gpu(cli, smallest, tmp_path):
    code, output = cli("experiment=batching", *smallest[:2], "num_repeats=2", "device=cuda")
    assert code == 0, output
    runs = pd.read_csv(tmp_path / "outputs/batching/batching.csv")
    assert sorted(set(runs["batch_size"])) == powers_of_two(512)
    assert (runs["num_same"] == runs["batch_size"]).all()


def test_the_prompts_of_a_batch_are_padded_to_the_longest(cli, smallest, monkeypatch):
    batches = []
    step_inputs = cpu_steps.step_inputs

    def watched(batch, *others, **options):
        inputs = step_inputs(batch, *others, **options)
        batches.append((inputs.query_lens.tolist(), inputs.padding.tolist()))
        return inputs

    monkeypatch.setattr(cpu_steps, "step_inputs", watched)
    code, output = cli(*QUICK, *smallest[:2], "prompts=[abc,defgh]", "batch_sizes=[3]", "num_repeats=1")
    assert code == 0, output
    assert ([5, 5, 5], [2, 0, 2]) in batches


CEILINGS = Ceilings(read_bandwidth=10.0, copy_bandwidth=10.0, matmul_rate=100.0)
COSTS = {"weight_bytes": 1000, "embedding_bytes": 0, "layer_parameters": 500, "head_parameters": 0, "score_flops": 0}


def test_the_border_is_where_reading_takes_as_long_as_computing():
    costs = Costs(**COSTS, kv_bytes=1)
    border = compute_bound_from(costs, 50, CEILINGS)
    limits = CEILINGS.read_bandwidth, CEILINGS.matmul_rate
    assert border == pytest.approx(20.0)  # (1000 + 50 n) / 10 = 1000 n / 100
    assert decode_work(costs, 20, 50).is_bandwidth_bound(*limits)
    assert not decode_work(costs, 21, 50).is_bandwidth_bound(*limits)
    assert compute_bound_from(Costs(**COSTS, kv_bytes=2), 50, CEILINGS) == inf  # each sequence reads for as long


def test_the_default_sizes_are_powers_of_two():
    assert powers_of_two(128) == [1, 2, 4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_sizes=[0,2]", "batch_sizes must be one or more numbers from 1 on, not [0, 2]"),
        ("batch_sizes=[]", "batch_sizes must be one or more numbers from 1 on, not []"),
        ("num_output_tokens=1", "num_output_tokens 1 must be at least 2"),
        ("num_repeats=0", "num_repeats=0 is not a whole number of at least 1"),
        ("engine.num_threads=100000", "engine.num_threads 100000 must be from 1 to 1024"),
        ("prompts=[]", "nothing to generate from"),
        ("prompts=[a,'']", "prompt 1 is empty"),
    ],
)
def test_bad_input_is_one_clear_message(cli, smallest, tmp_path, override, message):
    code, output = cli(*QUICK, *smallest[:2], override)
    assert code == 1
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "outputs").exists()
