"""experiment=chunked_prefill as a user calls it, on the smallest model."""

import json

import pandas as pd
import pytest

from tests.report.html_page import Page, check_page
from tests.thinning import every_nth

ARMS = ("continuous", "mixed", "sarathi", "hybrid_only", "chunk_only")
QUICK = ["experiment=chunked_prefill", "device=cpu", "rates=[200,400]", "num_steps=4", "mixed=[[8,16,2,32]]"]
SMALL_STALL = ["stall.num_decodes=2", "stall.num_output_tokens=24", "stall.num_prompt_tokens=64", "stall.num_repeats=1"]
FEW_SEATS = [f"arms.{arm}.scheduler.max_num_seqs=4" for arm in ARMS]


@pytest.mark.nightly
def test_five_schedulers_chunks_and_a_stall(cli, smallest, tmp_path):
    chunks = ["chunks=[[64,16],[64,32],[4096,512]]"]
    budgets = [f"arms.{arm}.scheduler.max_num_batched_tokens=16" for arm in ("mixed", "sarathi", "chunk_only")]
    reported = [f"+reported_latencies.{arm}.ttft_p50=0.2" for arm in ("continuous", "mixed")]
    code, output = cli(*smallest, *QUICK, *chunks, *SMALL_STALL, *FEW_SEATS, *budgets, *reported)
    assert code == 0, output
    folder = tmp_path / "outputs/chunked_prefill"
    points = pd.read_csv(folder / "points.csv")
    assert points["arm"].tolist() == [arm for arm in ARMS for _ in (0, 1)]
    assert (points["num_completed"] == 6).all()
    assert pd.read_csv(folder / "overhead.csv")["case"].tolist() == [
        "mixed 8 behind 16 + 2 × 32", "64 in chunks of 16", "64 in chunks of 32",
    ]  # fmt: skip
    assert "4096 in chunks of 512: skipped" in output
    tokens = pd.read_csv(folder / "stall.csv")
    assert tokens.groupby("arm").size().to_dict() == dict.fromkeys(ARMS[:3], 2 * 24 + 8)
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures == {"over_rates", "latency_rate", "throughput_latency", "pareto", "stall", "chunk_overhead"}
    page = Page(folder / "report.html")
    check_page(page, folder)
    header = page.rows.index(["arm", "P99 ITL ≤ 50 ms", "P99 ITL ≤ 100 ms", "P99 ITL ≤ 200 ms"])
    assert [row[0] for row in page.rows[header + 1 :][:5]] == list(ARMS)
    assert "continuous has a P99 ITL of" in output
    assert "continuous: while a prompt of 64 tokens is computed, the 2 sequences that decode wait up to" in output


@pytest.mark.nightly
def test_nothing_but_replays(cli, smallest, tmp_path):
    code, output = cli(
        *smallest, *QUICK, *FEW_SEATS, "rates=[200]", "chunks=[]", "mixed=[]", "stall=null", "itl_limits=[]"
    )
    assert code == 0, output
    folder = tmp_path / "outputs/chunked_prefill"
    assert not (folder / "stall.csv").exists()
    assert not (folder / "overhead.csv").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("trace", ["sample", "all_at_once"])
def test_another_trace_keeps_its_own_lengths_and_all_at_once_has_no_rate_within_a_limit(cli, smallest, tmp_path, trace):
    without = ["chunks=[]", "mixed=[]", "stall=null", "~arms.hybrid_only", "~arms.chunk_only", "~arms.sarathi"]
    rates = ["rates=[null]", f"trace={trace}", "trace.max_output_tokens=1"]  # outputs of one token have no gaps
    code, output = cli(*smallest, "experiment=chunked_prefill", "device=cpu", *without, *rates)
    assert code == 0, output
    assert "P99 ITL of" not in output
    assert ("Highest rate" in output) == (trace == "sample")
    config = json.loads(next((tmp_path / "outputs/chunked_prefill/points").glob("*/point.json")).read_text())
    assert "openchat" not in json.dumps(config)


@pytest.mark.parametrize(
    ("override", "message"),
    every_nth(
        3,
        [
            ("chunks=[[8,8]]", "chunks: a chunk of 8 tokens is no part of a prompt of 8"),
            ("stall.arms=[]", "stall.arms is empty: name at least one arm, or set stall=null"),
            ("mixed=[[8,0,2,11]]", "mixed: a context of 11 tokens, as in [8, 0, 2, 11], is too short for num_steps=10"),
            ("stall.arms=[mixd]", "stall.arms has 'mixd', which is no arm; did you mean 'mixed'?"),
            (
                "stall.num_decodes=16",
                "stall.num_decodes=16: with the prompt that arrives these are more than the 16 seats",
            ),
            ("stall.num_output_tokens=9", "stall.num_output_tokens=9: the prompt arrives after 16 tokens"),
            ("itl_limits=[0]", "itl_limits=0 is not a finite number above 0"),
            ("+reported_latencies.mine.ttft_p50=1.0", "reported_latencies has 'mine', which is no arm"),
            ("+reported_latencies.mixed.goodput=1.0", "reported_latencies.mixed has 'goodput', which is no latency"),
            ("+reported_ratios={2048_by_512:1.0}", "reported_ratios has '2048_by_512', which names no comparison"),
            ("rates=[]", "rates is empty"),
            (
                "engine.cuda_graphs=true arms.mixed.scheduler.max_num_batched_tokens=2049",
                "arms.mixed.scheduler.max_num_batched_tokens=2049 is more than the 2,048 tokens of the largest step",
            ),
        ],
    ),
)
def test_parts_are_checked_before_anything_is_measured(cli, smallest, override, message):
    code, output = cli(*smallest, "experiment=chunked_prefill", "device=cpu", *override.split())
    assert code == 1
    assert message in output
    assert "alone" not in output
