"""The tables of experiment=quantization, on small frames, and the bytes of the course."""

import pandas as pd
import pytest
import torch
import yaml

from experiments.quantization.tables import decode_table, footprint_notes, memory, part_tables, room_table
from framework.models.config import parse_config
from framework.models.footprint import footprint
from framework.models.loading import build_model
from framework.paths import ROOT
from framework.quantization import zero_point

CONF = ROOT / "conf"


@pytest.mark.slow
def test_gpt2s_bytes_are_the_lessons():
    """510,342,192 and 137,022,768 bytes with the causal masks, which this GPT-2 does not keep."""
    reference = yaml.safe_load((CONF / "experiment/quantization/course.yaml").read_text())["reference"]
    config = yaml.safe_load((CONF / "model/gpt2.yaml").read_text())["config"]
    model = build_model(parse_config(config), torch.float32, "cpu")
    for parameter in model.parameters():
        parameter.zero_()
    before = footprint(model)["total"]
    after = footprint(zero_point.quantize(model))["total"]
    assert before + reference["not_kept"] == reference["num_bytes"][0]
    assert after + reference["not_kept"] == reference["num_bytes"][1] + 148 * 8  # a scale and a zero point per tensor
    [line] = footprint_notes(pd.DataFrame({"arm": reference["arms"], "total": [before, after]}), **reference)
    assert line.count("497.8 MB → 124.4 MB = 4.00×") == 2


MODELS = pd.DataFrame({"arm": ["none", "int8"], "dtype": "float32", "total": [4e6, 1e6], "weight_error": [0.0, 0.01]})
NOTHING = {"text": None, "text_window": 32, "prompt": None, "memory_bytes": None}
ENGINES = pd.DataFrame({"arm": ["none", "int8"], "num_slots": [100, 300], "num_blocks": [10, 30], "text": ["a", "b"]})
ENGINES = ENGINES.assign(weight_bytes=[4e6, 1e6], kv_bytes=[1e6, 3e6])


def test_only_what_was_measured_has_a_table():
    models, quality = part_tables(MODELS, pd.DataFrame(), pd.DataFrame(), NOTHING).values()
    assert models.to_numpy().tolist() == [["none", "float32", 4.0], ["int8", "float32", 1.0]]
    assert quality.to_numpy().tolist() == [["none", 0.0], ["int8", 1.0]]  # %
    settings = NOTHING | {"prompt": "one", "memory_bytes": 5_000_000}
    *_, cache, texts = part_tables(MODELS, ENGINES, pd.DataFrame(), settings).values()
    assert cache.to_numpy().tolist() == [["none", 4.0, 1.0, 10, 100], ["int8", 1.0, 3.0, 30, 300]]
    assert texts["text"].tolist() == ["'a'", "'b'"]
    assert memory(5_000_000).startswith("5.0 MB")


def test_the_quality_says_how_many_tokens_it_is_of():
    models = MODELS.assign(kl=[0.0, 0.002], num_scored_tokens=199)
    captions = part_tables(models, pd.DataFrame(), pd.DataFrame(), NOTHING | {"text": "text.txt"})
    assert [caption for caption in captions if "text.txt, 200 tokens in windows of 32" in caption]


def test_steps_are_as_many_times_as_fast_as_the_first_arms():
    rows = [("none", 1, 0.004), ("none", 8, 0.008), ("int8", 1, 0.002), ("int8", 8, 0.016)]
    cases = pd.DataFrame(rows, columns=["arm", "num_seqs", "elapsed"])
    cases = cases.assign(case="decode " + cases["num_seqs"].astype(str), device=0.001, floor=0.0005, utilisation=0.5)
    table = decode_table(cases.assign(bound="MBU"))
    assert table["arm"].tolist() == ["none", "int8"] * 2
    assert table["step to step (ms)"].tolist() == [4.0, 2.0, 8.0, 16.0]
    assert table["× none"].tolist() == [1.0, 2.0, 1.0, 0.5]


def test_what_is_held_and_served_is_over_the_first_arms():
    rows = [("none", 1.0, 0.0, 1.0), ("none", 2.0, 1.0, 1.5), ("int8", 2.0, 0.0, 2.0), ("int8", 4.0, 1.0, 3.0)]
    points = pd.DataFrame(rows, columns=["arm", "rate", "waiting_growth", "sustained_throughput"])
    table = room_table(ENGINES, points.assign(offered_rate=points["rate"], num_completed=100, slo_attainment=1.0))
    assert table.columns[:4].tolist() == ["arm", "KV tokens", "rate within the SLOs (req/s)", "served at most (req/s)"]
    assert table.to_numpy().tolist() == [
        ["none", 100, 1.0, 1.5, 1.0, 1.0, 1.0],
        ["int8", 300, 2.0, 3.0, 3.0, 2.0, 2.0],
    ]


def test_a_source_has_no_note_where_its_arm_has_failed():
    reference = {"arms": ["none", "int8"], "num_bytes": [5_000_000, 2_000_000], "not_kept": 1_000_000, "source": "it"}
    [line] = footprint_notes(MODELS, **reference)
    assert line.count("4.0 MB → 1.0 MB = 4.00×") == 2
    assert "5.0 MB → 2.0 MB = 2.50×" in line
    assert footprint_notes(MODELS[:1], **reference) == []
