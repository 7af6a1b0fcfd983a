"""Traces that users reported, on the command line: what is offered, read, refused and ignored is told, and right."""

import gzip
import json

import pandas as pd
import pytest

from tests.report.html_page import Page
from tests.thinning import every_nth

OWN = "arrival_time,num_prompt_tokens,num_output_tokens"
AZURE = """\
TIMESTAMP,NumImages,ContextTokens,GeneratedTokens
2024-10-15 00:00:00.0000000,2,90,12
2024-10-15 00:00:03.5,0,40,2
"""
BURSTGPT = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,aaaa-1,43,GPT-4,90,4,94,Conversation log
19440161.0,,2,ChatGPT,36,0,36,API log
19440192.0,aaaa-1,8,GPT-4,70,3,73,Conversation log
"""
MOONCAKE = """\
{"timestamp": 0, "input_length": 65, "output_length": 5}
{"timestamp": 1500, "input_length": 67, "output_length": 2}
"""
POISSON = ["poisson", "openchat_short", "openchat", "arxiv", "many_adapters"]
SYNTHETIC = [*POISSON, "constant", "gamma", "on_off", "all_at_once", "course_queue", "mixed_queue"]
VIDUR = "num_prefill_tokens,num_decode_tokens\n" + "7,2\n" * 3 + "9,3\n" * 3


@pytest.fixture
def replay(cli, smallest, tmp_path):
    """Runs the smallest sweep with one arm on a trace; (its points, the console, the page)."""
    common = [override for override in smallest if not override.startswith("trace.")]

    def run(*overrides: str) -> tuple[pd.DataFrame, str, Page]:
        code, output = cli("experiment=continuous_batching", "~arms.static", *common, *overrides)
        assert code == 0, output
        folder = tmp_path / "outputs/continuous_batching"
        return pd.read_csv(folder / "points.csv"), output, Page(folder / "report.html")

    return run


def served(tmp_path, points: pd.DataFrame) -> list[tuple[float, int, int]]:
    """(arrival time, prompt tokens, output tokens) of every request of the only point."""
    [point] = points["point"]
    requests = pd.read_parquet(tmp_path / "outputs/continuous_batching/points" / point / "requests.parquet")
    return list(requests[["arrival_time", "num_prompt_tokens", "num_output_tokens"]].itertuples(index=False, name=None))


@pytest.mark.parametrize("trace", every_nth(2, [["trace=on_off"], ["trace=gamma", "trace.arrivals.cv=4"]]))
@pytest.mark.filterwarnings("ignore:on_off")
def test_a_synthetic_process_offers_the_rate_that_it_is_asked_for(replay, trace):
    small = ["trace.num_requests=48", "trace.max_output_tokens=2", "trace.max_prompt_tokens=8"]
    points, output, _ = replay(*trace, *small, "rates=[10,80]")
    assert points["offered_rate"].tolist() == pytest.approx([10.0, 80.0])
    assert "asked for" not in output


@pytest.mark.nightly
def test_a_thinned_trace_has_the_rate_that_it_offers(replay):
    small = ["trace.max_output_tokens=2", "trace.max_prompt_tokens=8", "trace.num_requests=40"]
    points, output, page = replay("trace=sample", "trace.rescale=thin", "rates=[0.7,2]", *small)
    assert (points["offered_rate"] / points["rate"] - 1).abs().max() > 0.02
    assert "were asked for" in output
    assert "were asked for" in page.text
    shown = [float(row[1]) for row in page.table("rate (req/s)")]
    assert shown == pytest.approx(points["offered_rate"].tolist(), rel=5e-3)


def test_requests_of_refused_adapters_stay_offered(replay):
    small = ["trace.num_requests=60", "trace.max_output_tokens=2", "trace.max_prompt_tokens=8", "rates=[50]"]
    adapters = ["+popularity@trace.adapters=uniform", "trace.adapters.num_adapters=6", "lora=gathered"]
    points, output, _ = replay(*small, *adapters, "lora.max_rank=8", "lora.adapters.ranks=[8,64]")
    [point] = points.to_dict("records")
    assert point["num_requests"] == 60
    assert point["offered_rate"] == pytest.approx(50)
    assert 0 < point["num_refused"] == 60 - point["num_completed"]
    assert point["slo_attainment"] <= point["num_completed"] / 60
    assert "requests refused: adapter 'adapter-1' has rank 64" in output


def test_the_window_is_on_the_clock_of_the_file(replay, tmp_path):
    (tmp_path / "burst.csv").write_text(BURSTGPT)
    points, output, _ = replay(
        "trace=burstgpt_v2", "trace.path=burst.csv", "trace.window=[19440110,19440200]", "rates=[null]"
    )
    assert served(tmp_path, points) == [(0.0, 90, 4), (82.0, 70, 3)]
    assert "1 request dropped: failed" in output
    assert "ignores session_id of the trace" in output


@pytest.mark.parametrize("name", ["mine.csv", "mine.csv.gz"])
def test_a_file_that_is_named_is_read_as_it_is_packed_or_not(replay, tmp_path, name):
    """Azure's multimodal trace is published as .gz; its sum is not that of the trace whose form it has."""
    content = AZURE.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    points, output, page = replay("trace=azure_conv", f"trace.path={name}", "rates=[null]")
    assert served(tmp_path, points) == [(0.0, 90, 12), (3.5, 40, 2)]
    assert "continuous: ignores NumImages of the trace" in output
    assert "continuous: ignores NumImages of the trace" in page.text


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("blank.csv", f"{OWN}\n0.0,65,5\n1.5,67,2\n\n", ["trace=csv"]),
        ("blank.jsonl", MOONCAKE + "\n", ["trace=mooncake_synthetic"]),
        ("own.jsonl", MOONCAKE, ["trace=mooncake_synthetic"]),
        (
            "blocks.jsonl",
            '{"timestamp": 0, "input_length": 65, "output_length": 5, "hash_ids": [1, 2, 3, 4, 5]}\n'
            '{"timestamp": 1.5, "input_length": 67, "output_length": 2, "hash_ids": [6, 7, 8, 9]}\n',
            ["trace=mooncake_synthetic", "+trace.reader.block_size=16", "+trace.reader.time_unit=s"],
        ),
    ],
)
def test_blank_ends_and_mooncakes_form_without_hashes_or_with_others(replay, tmp_path, name, content, options):
    (tmp_path / name).write_text(content)
    points, output, _ = replay(*options, f"trace.path={name}", "rates=[null]")
    assert served(tmp_path, points) == [(0.0, 65, 5), (1.5, 67, 2)]
    assert "ignores" not in output


def test_a_recorded_trace_can_be_sent_all_at_once(replay, tmp_path):
    points, _, _ = replay("trace=sample", "trace.num_requests=5", "trace.rescale=all_at_once", "rates=[null]")
    assert [time for time, *_ in served(tmp_path, points)] == [0.0] * 5
    assert points["offered_rate"].tolist() == [float("inf")]


@pytest.mark.parametrize(("is_shared", "ignored"), [(True, "priority, session_id, prefix_ids"), (False, "")])
def test_what_makes_no_difference_yet_is_told(replay, tmp_path, is_shared, ignored):
    rows = [f"{index},40,2,0,1,{9 - index}" if is_shared else f"{index},40,2,{index},{index},0" for index in range(3)]
    (tmp_path / "mine.csv").write_text("\n".join([f"{OWN},prefix_ids,session_id,priority", *rows]))
    points, output, page = replay("trace=csv", "trace.path=mine.csv", "rates=[null]")
    record = tmp_path / "outputs/continuous_batching/points" / points["point"][0] / "point.json"
    assert json.loads(record.read_text())["trace"]["ignored"] == (ignored.split(", ") if ignored else [])
    for text in (output, page.text):
        assert (f"continuous: ignores {ignored} of the trace" in text) == is_shared


@pytest.mark.parametrize("trace", every_nth(3, SYNTHETIC))
@pytest.mark.filterwarnings("ignore:on_off")
def test_lengths_come_from_a_file_for_every_synthetic_trace(replay, tmp_path, trace):
    (tmp_path / "lengths.csv").write_text(VIDUR)
    lengths = ["lengths@trace.lengths=file", "trace.lengths.trace.path=lengths.csv", "trace.num_requests=12"]
    is_at_once = trace in ("all_at_once", "course_queue", "mixed_queue")
    points, _, _ = replay(f"trace={trace}", *lengths, "rates=[null]" if is_at_once else "rates=[50]")
    assert {tuple(pair) for _, *pair in served(tmp_path, points)} == {(7, 2), (9, 3)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trace=sample", "lengths@trace.lengths=file", "trace.lengths.trace.path=lengths.csv"],
            "lengths@trace.lengths=file: leave it out",
        ),
        (["trace=poisson", "lengths@trace.lengths=file"], "trace.lengths.trace.path has no value"),
        (["trace=poisson", "lengths@trace.lengths=file", "trace.lengths.trace.path=own.csv"], "no columns"),
    ],
)
def test_lengths_that_cannot_be_had_are_one_clear_line(cli, smallest, tmp_path, overrides, message):
    (tmp_path / "lengths.csv").write_text(VIDUR)
    (tmp_path / "own.csv").write_text("prompt,output\n1,2\n")
    code, output = cli("experiment=continuous_batching", smallest[-1], *overrides)
    assert code == 1
    [line] = [line for line in output.splitlines() if "error: " in line]
    assert message in line
