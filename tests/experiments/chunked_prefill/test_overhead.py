"""The cost of chunks beside reported values."""

import pandas as pd
import pytest

from experiments.chunked_prefill.overhead import (
    COLUMNS,
    SAME,
    check_ratios,
    measure_overhead,
    overhead_table,
    reported_chunks,
)
from tests.engine.torch_engine.test_engine import GPT2_CONFIG, make_engine

REPORTED = {"2048 in chunks of 512": 1.2, "mixed 4 behind 0 + 2 × 16": 1.002, "4096 in chunks of 512": 1.0}


def test_chunks_and_mixed_steps_of_a_real_engine():
    said = []
    sizes = {"mixed": [[4, 8, 2, 24]], "chunks": [[16, 4], [9999, 4]]}
    engine = make_engine(config=GPT2_CONFIG | {"n_embd": 32, "n_head": 2, "n_layer": 2})
    overhead = measure_overhead(engine, sizes, 4, 3, said.append)
    assert list(overhead) == COLUMNS
    assert overhead["alone"].tolist() == ["prefill 1 × 6", "prefill 1 × 16"]
    assert overhead["num_chunk_tokens"].fillna(0).tolist() == [0, 4]
    assert (overhead["ratio"] > 0).all()
    assert [line.partition(":")[0] for line in said] == [*overhead["case"], "9999 in chunks of 4"]


def test_only_chunks_are_drawn_as_reported():
    table = reported_chunks(REPORTED)
    assert table.to_numpy().tolist() == [[2048, 512, 1.2], [4096, 512, 1.0]]


@pytest.mark.parametrize(
    ("name", "ratio", "message"),
    [
        (
            "2048 in chunk of 512",
            1.0,
            "has '2048 in chunk of 512', which names no comparison; write it like '2048 in chun",
        ),
        ("mixed 4 behind 0 + 2 x 16", 1.0, "names no comparison; .* or 'mixed 448 behind 2048 \\+ 64 × 1024'"),
        ("2048 in chunks of 512", 0.0, "reported_ratios.2048 in chunks of 512=0.0 is not a finite number above 0"),
    ],
)
def test_what_is_reported_is_checked(name, ratio, message):
    with pytest.raises(ValueError, match=message):
        check_ratios(REPORTED | {name: ratio})
    check_ratios(REPORTED)


def test_a_measured_ratio_stands_beside_the_reported_one():
    rows = [("2048 in chunks of 512", 0.3, 0.25, 1.2), ("2048 in chunks of 256", 0.5, 0.25, 2.0)]
    overhead = pd.DataFrame(rows, columns=["case", "device", "alone_device", "ratio"])
    table = overhead_table(overhead, REPORTED)
    assert table["measured ÷ reported"].fillna(0).tolist() == [1.0, 0.0]
    assert table["same quantity"].fillna("").tolist() == [SAME, ""]
    assert table["device (ms)"].tolist() == [300, 500]
    assert list(overhead_table(overhead, {})) == ["steps", "device (ms)", "one step alone (ms)", "measured"]
