"""The shipped samples are what their script writes, byte for byte."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from framework.paths import ROOT
from framework.trace.files import read_table
from framework.trace.transforms import mean_rate

TRACES = ROOT / "traces"


def test_samples_are_reproducible(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_samples", TRACES / "make_samples.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in TRACES.glob("sample*")}
    assert len(written) == 12


def test_sample_is_as_described() -> None:
    trace = read_table(TRACES / "sample.csv")
    assert mean_rate(trace) == pytest.approx(4.0, rel=1e-6)
    gaps = np.diff([request.arrival_time for request in trace.requests])
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.1)
    assert np.median([request.num_prompt_tokens for request in trace.requests]) == pytest.approx(64, rel=0.1)
    assert np.median([request.num_output_tokens for request in trace.requests]) == pytest.approx(32, rel=0.1)
    assert max(request.num_prompt_tokens + request.num_output_tokens for request in trace.requests) <= 768
