"""Readers: expected values of samples and of hand-written files, round trips, and files as large as the real ones."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.core import Request, Trace
from framework.paths import ROOT
from framework.trace.files import read_azure, read_burstgpt, read_lengths, read_mooncake, read_table, read_vidur
from framework.trace.recorded import recorded

SAMPLES = ROOT / "traces"
REAL = ROOT.parent / "shared" / "traces"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def rows(trace: Trace) -> list[tuple[float, int, int]]:
    return [(r.arrival_time, r.num_prompt_tokens, r.num_output_tokens) for r in trace.requests]


def test_azure_2023_has_seven_digits_and_crlf(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 23:59:59.9799601,4808,10\r\n"
        "2023-11-17 00:00:00.0000000,3180,8\r\n"
        "2023-11-17 00:00:00.0000000,110,27"
    )
    trace = read_azure(write(tmp_path, "azure.csv", text))
    assert rows(trace) == [(0.0, 4808, 10), (0.0200399, 3180, 8), (0.0200399, 110, 27)]
    assert [request.request_id for request in trace.requests] == [0, 1, 2]
    assert trace.dropped == {}


def test_azure_2024_has_offsets_and_whole_seconds(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-12 00:00:00+00:00,1452,3\n"
        "2024-05-12 00:00:00.041683+00:00,584,3\n"
        "2024-05-12 00:00:01+00:00,862,38\n"
    )
    path = write(tmp_path, "azure.csv", text)
    assert rows(read_azure(path)) == [(0.0, 1452, 3), (0.041683, 584, 3), (1.0, 862, 38)]
    assert rows(read_azure(path, num_rows=2)) == [(0.0, 1452, 3), (0.041683, 584, 3)]


def test_mooncake_is_in_milliseconds_and_keeps_block_ids(tmp_path: Path) -> None:
    text = (
        '{"timestamp": 0, "input_length": 700, "output_length": 52, "hash_ids": [46, 47]}\n'
        '{"output_length": 1, "hash_ids": [46], "timestamp": 27482, "input_length": 512.0, "extra": null}\n'
    )
    trace = read_mooncake(write(tmp_path, "mooncake.jsonl", text))
    assert trace.requests == [
        Request(0, 0.0, 700, 52, prefix_ids=(46, 47)),
        Request(1, 27.482, 512, 1, prefix_ids=(46,)),
    ]


def test_burstgpt_1_drops_and_counts_failed_requests(tmp_path: Path) -> None:
    text = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45,ChatGPT,0,0,0,Conversation log\n"
        "118,GPT-4,1087,230,1317,API log\n"
    )
    trace = read_burstgpt(write(tmp_path, "burst.csv", text))
    assert rows(trace) == [(5.0, 472, 18), (118.0, 1087, 230)]  # the file's clock
    assert trace.dropped == {"failed": 1}


def test_burstgpt_2_has_sessions_and_other_column_positions(tmp_path: Path) -> None:
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "19440110.0,007,43,GPT-4,906,446,1352,Conversation log\n"
        "19440161.5,,2,ChatGPT,36,29,65,API log\n"
    )
    trace = read_burstgpt(write(tmp_path, "burst.csv", text))
    assert trace.requests == [
        Request(0, 19440110.0, 906, 446, session_id="007"),
        Request(1, 19440161.5, 36, 29),
    ]
    assert trace.dropped == {}


def test_vidur(tmp_path: Path) -> None:
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n5.8926549999999995,396.0,109\n"
    assert rows(read_vidur(write(tmp_path, "vidur.csv", text))) == [(0.0, 374, 44), (5.8926549999999995, 396, 109)]


def test_own_table_with_every_column(tmp_path: Path) -> None:
    text = (
        "\ufeffarrival_time,num_prompt_tokens,num_output_tokens,adapter_id,priority,session_id,prefix_ids\n"
        "0.5,600,1,a,-1,7,3 17\n"
        "1.5,1,2,,2,,\n"
    )
    trace = read_table(write(tmp_path, "own.csv", text))
    assert trace.requests == [Request(0, 0.5, 600, 1, "a", -1, "7", (3, 17)), Request(1, 1.5, 1, 2, None, 2, None, ())]


def test_own_table_with_clients_and_predictions(tmp_path: Path) -> None:
    header = "arrival_time,num_prompt_tokens,num_output_tokens,client_id,num_predicted_tokens\n"
    trace = read_table(write(tmp_path, "own.csv", header + "0.5,600,1,007,3\n1.5,1,2,,9\n"))
    clients = [(one.client_id, one.num_predicted_tokens) for one in trace.requests]
    assert clients == [("007", 3), (None, 9)]


def test_parquet_equals_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "arrival_time": [0.0, 0.25],
            "num_prompt_tokens": [600, 8],
            "num_output_tokens": [5, 6],
            "adapter_id": ["a", None],
            "priority": [1, 0],
            "prefix_ids": [[3, 17], None],
        },
        index=[7, 3],  # the index of a filtered frame does not matter
    )
    frame.to_parquet(tmp_path / "own.parquet")
    trace = read_table(tmp_path / "own.parquet")
    assert trace.requests == [Request(0, 0.0, 600, 5, "a", 1, None, (3, 17)), Request(1, 0.25, 8, 6)]


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 2**31), st.integers(1, 2**31)), min_size=1, max_size=20),
    st.sampled_from(["csv", "parquet"]),
)
@settings(max_examples=25, deadline=None)
def test_own_table_round_trip(tmp_path_factory: pytest.TempPathFactory, drawn: list, suffix: str) -> None:
    columns = ["arrival_time", "num_prompt_tokens", "num_output_tokens"]
    path = tmp_path_factory.mktemp("round_trip") / f"own.{suffix}"
    frame = pd.DataFrame(sorted(drawn), columns=columns)
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    times, prompts, outputs = zip(*rows(read_table(path)), strict=True)
    assert times == pytest.approx([time for time, _, _ in sorted(drawn)], rel=1e-15)
    assert [*zip(prompts, outputs, strict=True)] == [(prompt, output) for _, prompt, output in sorted(drawn)]


@pytest.mark.parametrize(
    ("reader", "name", "num_requests", "dropped"),
    [
        (read_table, "sample.csv", 512, {}),
        (read_table, "sample_adapters.csv", 256, {}),
        (read_azure, "sample_azure_2023.csv", 40, {}),
        (read_azure, "sample_azure_2024.csv", 40, {}),
        (read_mooncake, "sample_mooncake.jsonl", 40, {}),
        (read_burstgpt, "sample_burstgpt_1.csv", 36, {"failed": 4}),
        (read_burstgpt, "sample_burstgpt_2.csv", 36, {"failed": 4}),
        (read_vidur, "sample_vidur.csv", 40, {}),
    ],
)
def test_samples_read(reader: Callable[[Path], Trace], name: str, num_requests: int, dropped: dict[str, int]) -> None:
    trace = reader(SAMPLES / name)
    assert len(trace.requests) == num_requests
    assert trace.dropped == dropped
    assert recorded(reader=reader, path=SAMPLES / name).requests[0].arrival_time == 0.0


def test_sample_adapters_and_prefixes() -> None:
    adapters = {request.adapter_id for request in read_table(SAMPLES / "sample_adapters.csv").requests}
    assert adapters == {None} | {f"adapter-{index}" for index in range(16)}
    ids = [request.prefix_ids for request in read_mooncake(SAMPLES / "sample_mooncake.jsonl").requests]
    assert all(row[0] == 0 for row in ids)
    assert len(set(ids)) == 40


@pytest.mark.skipif(not REAL.is_dir(), reason="the real traces are not here")
def test_real_traces() -> None:
    conversation = read_azure(REAL / "AzureLLMInferenceTrace_conv.csv").requests
    assert len(conversation) == 19_366
    assert sum(request.num_prompt_tokens for request in conversation) / 19_366 == pytest.approx(1154.7, abs=0.05)
    assert sum(request.num_output_tokens for request in conversation) / 19_366 == pytest.approx(211.1, abs=0.05)
    assert conversation[-1].arrival_time == pytest.approx(3501.721937)
    assert len(read_azure(REAL / "AzureLLMInferenceTrace_code.csv").requests) == 8_819
    mooncake = read_mooncake(REAL / "mooncake_fast25_synthetic.jsonl").requests
    assert len(mooncake) == 3_993
    assert mooncake[0].prefix_ids == tuple(range(79))


OWN = "arrival_time,num_prompt_tokens,num_output_tokens\n0.0,20,5\n0.5,30,1\n"
MOONCAKE = """\
{"timestamp": 0, "input_length": 65, "output_length": 5}
{"timestamp": 1500, "input_length": 67, "output_length": 2}
"""


@pytest.mark.parametrize("end", ["\n", "\r\n\r\n", "\n  \n\n"])
def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path, end: str) -> None:
    assert rows(read_table(write(tmp_path, "own.csv", OWN + end))) == [(0.0, 20, 5), (0.5, 30, 1)]
    assert rows(read_mooncake(write(tmp_path, "moon.jsonl", MOONCAKE + end))) == [(0.0, 65, 5), (1.5, 67, 2)]


def test_a_blank_line_between_rows_is_refused(tmp_path: Path) -> None:
    first, second = MOONCAKE.splitlines()
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_mooncake(write(tmp_path, "moon.jsonl", f"{first}\n\n{second}\n"))
    with pytest.raises(ValueError, match=r"row 2 \(line 3\), column 'num_prompt_tokens'"):
        read_table(write(tmp_path, "own.csv", OWN.replace("\n0.5", "\n\n0.5")))


def test_gzip_is_read_wherever_the_plain_file_is(tmp_path: Path) -> None:
    azure = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2024-10-15 00:00:00.0000000,2,90,12\n"
    for reader, name, text in (
        (read_azure, "azure.csv", azure),
        (read_table, "own.csv", OWN),
        (read_mooncake, "moon.jsonl", MOONCAKE),
    ):
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress(text.encode()))
        assert reader(path) == reader(write(tmp_path, name, text))
        assert reader(path).unread == (("NumImages",) if reader is read_azure else ())


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(OWN.encode())[:-9]], ids=["plain", "cut"])
def test_a_broken_gzip_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.csv.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"own.csv.gz: not a readable gzip file"):
        read_table(tmp_path / "own.csv.gz")


def test_mooncake_with_other_blocks_and_seconds_or_without_hashes(tmp_path: Path) -> None:
    line = '{"timestamp": 1.5, "input_length": 40, "output_length": 5, "hash_ids": [7, 8, 9]}'
    path = write(tmp_path, "moon.jsonl", line)
    (request,) = read_mooncake(path, block_size=16, time_unit="s").requests
    assert request == Request(0, 1.5, 40, 5, prefix_ids=(7, 8, 9), prefix_block_size=16)
    with pytest.raises(ValueError, match=r"3 ids, but the prompt has only 1 block\(s\) of 512 tokens"):
        read_mooncake(path)
    with pytest.raises(ValueError, match="time_unit='min' is not one of s, ms"):
        read_mooncake(path, time_unit="min")
    assert {request.prefix_ids for request in read_mooncake(write(tmp_path, "no.jsonl", MOONCAKE)).requests} == {()}
    some = MOONCAKE.replace('"output_length": 5}', '"output_length": 5, "hash_ids": [1]}')
    with pytest.raises(ValueError, match=r"line 2: missing columns \['hash_ids'\]"):
        read_mooncake(write(tmp_path, "some.jsonl", some))


def test_a_window_is_on_the_clock_of_the_file(tmp_path: Path) -> None:
    text = "Timestamp,Request tokens,Response tokens\n19440110.0,90,4\n19440161.0,36,2\n19440192.0,70,3\n"
    trace = recorded(reader=read_burstgpt, path=write(tmp_path, "burst.csv", text), window=[19440150, 19440200])
    assert rows(trace) == [(0.0, 36, 2), (31.0, 70, 3)]


@pytest.mark.parametrize("names", ["num_prefill_tokens,num_decode_tokens", "num_prompt_tokens,num_output_tokens"])
def test_lengths_alone(tmp_path: Path, names: str) -> None:
    path = write(tmp_path, "lengths.csv", f"{names},extra\n374,44,a\n396,109,b\n")
    assert rows(read_lengths(path)) == [(0.0, 374, 44), (0.0, 396, 109)]


def test_no_lengths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no columns num_prompt_tokens and num_output_tokens, nor .*; found \['a'\]"):
        read_lengths(write(tmp_path, "lengths.csv", "a\n1\n"))
