"""Bad trace files: each is one ValueError that names the place, the value and what is allowed."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from framework.core import Trace
from framework.trace import columns
from framework.trace.files import read_azure, read_burstgpt, read_mooncake, read_table, read_vidur

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n"
BURST = "Timestamp,Request tokens,Response tokens\n5,472,18\n"
MOONCAKE = '{"timestamp": 0, "input_length": 700, "output_length": 52, "hash_ids": [46, 47]}\n'
OWN = "arrival_time,num_prompt_tokens,num_output_tokens\n0,5,6\n"
PRIORITY = "arrival_time,num_prompt_tokens,num_output_tokens,priority\n0,5,6,"
PREFIX = "arrival_time,num_prompt_tokens,num_output_tokens,prefix_ids\n0,513,6,"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\n"

Reader = Callable[[Path], Trace]

BAD_FILES = [
    # what a number must be
    (read_azure, AZURE + "2023-11-16 18:17:04,abc,8", "row 2 (line 3), column 'ContextTokens': 'abc' is not a whole"),
    (read_azure, AZURE + "2023-11-16 18:17:04,7,0", "row 2 (line 3), column 'GeneratedTokens': '0' is not a whole"),
    (read_azure, AZURE + "2023-11-16 18:17:04,7", "row 2 (line 3), column 'GeneratedTokens': '' is not a whole"),
    (read_table, OWN + "1,12.5,6", "row 2 (line 3), column 'num_prompt_tokens': '12.5' is not a whole number of at"),
    (read_table, OWN + "1,1e300,6", "column 'num_prompt_tokens': '1e+300' is not a whole number of at least 1"),
    (read_table, OWN + "1,5,-3", "column 'num_output_tokens': '-3' is not a whole number of at least 1"),
    (read_table, OWN + "1,5,inf", "column 'num_output_tokens': 'inf' is not a whole number of at least 1"),
    (read_table, OWN + "1,,6", "column 'num_prompt_tokens': '' is not a whole number of at least 1"),
    (read_table, PRIORITY + "\n", "row 1 (line 2), column 'priority': '' is not a whole number"),
    (read_table, PREFIX + "1 x\n", "row 1 (line 2), column 'prefix_ids': '1 x' is not a list of whole numbers"),
    (read_table, PREFIX + "1 2 3\n", "column 'prefix_ids': 3 ids, but the prompt has only 2 block(s) of 512 tokens"),
    (read_vidur, VIDUR + "1,3.7,44\n", "row 2 (line 3), column 'num_prefill_tokens': '3.7' is not a whole number"),
    (read_burstgpt, BURST + "6,472,-1\n", "column 'Response tokens': '-1' is not a whole number of at least 0"),
    (read_burstgpt, BURST + "6,4,0\n7,0,3\n", "row 3 (line 4), column 'Request tokens': '0' is not a whole number"),
    (read_mooncake, MOONCAKE + MOONCAKE.replace("700", "0"), "row 2 (line 2), column 'input_length': '0' is not a"),
    (read_mooncake, MOONCAKE.replace("52", "null"), "row 1 (line 1), column 'output_length': 'None' is not a whole"),
    (read_mooncake, MOONCAKE.replace("46", "4.5"), "column 'hash_ids': '[4.5, 47]' is not a list of whole numbers"),
    (read_mooncake, MOONCAKE.replace("[46, 47]", "3"), "column 'hash_ids': '3' is not a list of whole numbers"),
    # what a time must be
    (read_table, OWN + "nan,5,6", "row 2 (line 3), column 'arrival_time': 'nan' is not a finite number of at least 0"),
    (read_table, OWN + "inf,5,6", "column 'arrival_time': 'inf' is not a finite number of at least 0"),
    (read_table, OWN + "1e18,5,6", "row 2 (line 3), column 'arrival_time': '1e+18' is not at most 8.59e+09 s"),
    (read_table, OWN.replace("0,", "-0.5,"), "row 1 (line 2), column 'arrival_time': '-0.5' is not a finite number"),
    (read_mooncake, MOONCAKE.replace("0,", "NaN,", 1), "column 'timestamp': 'nan' is not a finite number"),
    (read_azure, AZURE + "yesterday,7,8", "row 2 (line 3), column 'TIMESTAMP': 'yesterday' is not a date and time"),
    (read_azure, AZURE + ",7,8", "row 2 (line 3), column 'TIMESTAMP': '' is not a date and time"),
    (
        read_azure,
        AZURE + "2023-11-16 18:17:03,7,8",
        "row 2 (line 3), column 'TIMESTAMP': '2023-11-16 18:17:03' is earlier than '2023-11-16 18:17:03.9799600'",
    ),
    (read_vidur, VIDUR + "2,7,8\n1,7,8\n", "row 3 (line 4), column 'arrived_at': '1.0' is earlier than '2.0' in the"),
    (read_burstgpt, BURST + "4,7,8\n", "row 2 (line 3), column 'Timestamp': '4' is earlier than '5' in the row before"),
    # what a file must be
    (read_table, "", "not a readable CSV file: No columns to parse from file"),
    (read_table, OWN.splitlines()[0], "the trace is empty (no rows)"),
    (read_table, OWN + "\n1,5,6", "row 2 (line 3), column 'num_prompt_tokens': '' is not a whole number"),
    (read_table, OWN + "1,5,6,7", "not a readable CSV file"),
    (read_table, OWN.replace("0,", "0,1,"), "row 1 (line 2) has more values than the header has columns"),
    (read_table, OWN[:-2] + "4,7\n1,4,3,8\n2,9,4,5\n", "row 1 (line 2) has more values than the header has columns"),
    (read_table, OWN.replace("5", "\x00"), "row 1 (line 2), column 'num_prompt_tokens'"),
    (read_table, OWN.replace("num_output_tokens", "output"), "missing columns ['num_output_tokens']; found ['arrival"),
    (read_table, "adaptor_id," + OWN.replace("\n0", "\na,0"), "unknown columns ['adaptor_id']; allowed are ['arrival"),
    (read_azure, OWN, "missing columns ['TIMESTAMP', 'ContextTokens', 'GeneratedTokens']; found ['arrival_time'"),
    (read_mooncake, "", "the trace is empty (no rows)"),
    (read_mooncake, MOONCAKE + MOONCAKE[:-9], "line 2 is not JSON: Expecting"),
    (read_mooncake, MOONCAKE + "[1]\n", "line 2 is not a JSON object: '[1]'"),
    (read_mooncake, MOONCAKE + '{"timestamp": 0}\n', "line 2: missing columns ['input_length', 'output_length']"),
    (read_burstgpt, "Timestamp,Request tokens,Response tokens\n5,472,0\n", "all 1 requests failed"),
]


@pytest.mark.parametrize(("reader", "text", "message"), BAD_FILES, ids=[message for _, _, message in BAD_FILES])
def test_bad_file(tmp_path: Path, reader: Reader, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(text.encode())
    with pytest.raises(ValueError) as error:
        reader(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_parquet_has_rows_but_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    pd.DataFrame({"arrival_time": [0.0, None], "num_prompt_tokens": [1, 1], "num_output_tokens": 1}).to_parquet(path)
    with pytest.raises(ValueError, match=r"own.parquet: row 2, column 'arrival_time': 'nan' is not a finite number"):
        read_table(path)


def test_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "own.parquet").write_text(OWN)
    with pytest.raises(ValueError, match=r"own.parquet: not a readable Parquet file"):
        read_table(tmp_path / "own.parquet")


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ValueError, match=r"own.csv: not a readable CSV file"):
        read_table(tmp_path / "own.csv")
    with pytest.raises(ValueError, match=r"own.csv: line 1 is not JSON"):
        read_mooncake(tmp_path / "own.csv")


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"suffix '.txt' is not one of '.csv', '.csv.gz', '.parquet'"):
        read_table(tmp_path / "own.txt")


@pytest.mark.parametrize("reader", [read_azure, read_burstgpt, read_mooncake, read_table, read_vidur])
def test_no_file(tmp_path: Path, reader: Reader) -> None:
    with pytest.raises(FileNotFoundError, match=r"no trace file at .*trace.csv: check the path"):
        reader(tmp_path / "trace.csv")
    (tmp_path / "trace.csv").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no trace file at .*trace.csv"):
        reader(tmp_path / "trace.csv")


def test_ctrl_c_while_a_file_is_read_is_no_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slow.csv"
    os.mkfifo(path)
    monkeypatch.setattr(columns, "_require_file", lambda path: None)  # a pipe, so that reading lasts
    interrupted = threading.Event()

    def write() -> None:
        with path.open("w") as pipe:
            pipe.write(OWN)
            pipe.flush()
            interrupted.wait(timeout=30)

    writer = threading.Thread(target=write)
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)  # what Ctrl-C calls
    try:
        writer.start()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            columns.load_csv(path, ["arrival_time"])
    finally:
        interrupted.set()
        writer.join()
        signal.signal(signal.SIGALRM, handler)


def test_a_field_may_be_as_long_as_it_is(tmp_path: Path) -> None:
    ids = " ".join(str(number) for number in range(30_000))  # 168,889 characters; Python's csv stops at 131,072
    path = tmp_path / "long.csv"
    path.write_text(f"arrival_time,num_prompt_tokens,num_output_tokens,prefix_ids\n0,{30_000 * 512},1,{ids}\n")
    [request] = read_table(path).requests
    assert request.prefix_ids == tuple(range(30_000))


@pytest.mark.parametrize("column", ["arrival_time", "num_prompt_tokens", "prefix_ids"])
def test_a_message_shows_a_long_value_in_short(tmp_path: Path, column: str) -> None:
    row = {"arrival_time": "0", "num_prompt_tokens": "4", "num_output_tokens": "1", "prefix_ids": "1"} | {
        column: "x" * 9_000_000
    }
    path = tmp_path / "long.csv"
    path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    with pytest.raises(ValueError, match=f"row 1 .line 2., column '{column}': 'xxx") as raised:
        read_table(path)
    assert len(str(raised.value)) < len(str(path)) + 200
