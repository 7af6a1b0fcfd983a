"""A case beside its floor: which ceiling binds, in a line, a row and a table."""

import math

import pandas as pd

from framework.measure.cases import Case, cases_table
from framework.measure.ceilings import Ceilings
from framework.measure.floors import Work

CEILINGS = Ceilings(read_bandwidth=100.0, copy_bandwidth=100.0, matmul_rate=1000.0)


def test_a_row_says_which_ceiling_binds():
    case = Case("decode", 2, 16, Work(num_bytes=50.0, num_flops=100.0), device=1.0, elapsed=1.5)
    row = case.row(CEILINGS)
    assert (row["floor"], row["bound"], row["utilisation"]) == (0.5, "MBU", 0.5)
    row = Case("prefill", 1, 16, Work(50.0, 900.0), device=1.0, elapsed=1.5).row(CEILINGS)
    assert (row["floor"], row["bound"], row["utilisation"]) == (0.9, "MFU", 0.9)
    line = case.line(CEILINGS)
    assert line == "decode 2 × 16: floor 500.000 ms, device 1000.000 ms, from step to step 1500.000 ms, MBU 50.0%"


def test_a_table_has_milliseconds_and_the_share_of_the_ceiling_that_binds():
    cases = [
        Case("decode", 2, 16, Work(num_bytes=50.0, num_flops=100.0), device=1.0, elapsed=1.5),
        Case("attention", 1, 16, Work(50.0, 900.0), device=1.8, elapsed=math.nan),
    ]
    assert cases[1].line(CEILINGS) == "attention 1 × 16: floor 900.000 ms, device 1800.000 ms, MFU 50.0%"
    table = cases_table(pd.DataFrame([case.row(CEILINGS) for case in cases]))
    assert table["case"].tolist() == ["decode 2 × 16", "attention 1 × 16"]
    assert table["floor (ms)"].tolist() == [500.0, 900.0]
    assert table["device (ms)"].tolist() == [1000.0, 1800.0]
    assert table["MBU (%)"].dropna().to_dict() == {0: 50.0}
    assert table["MFU (%)"].dropna().to_dict() == {1: 50.0}
