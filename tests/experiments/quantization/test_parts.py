"""The parts of experiment=quantization: failures stay apart, and memory is weights and KV cache."""

import json
from functools import partial

import pandas as pd
import pytest

from experiments.quantization.parts import Session, measure_cache, measure_model, within
from framework.engine.torch_engine import TorchEngine
from framework.errors import StudyError
from framework.models.footprint import footprint
from framework.quantization.int8_weight_only import quantize
from framework.study.arms import resolve_arms
from framework.study.place import open_place
from tests.quantization.small_models import make_model
from tests.study.fake_study import DEFAULTS

BLOCK_BYTES = 2 * 2 * 16 * 32 * 4  # 2 layers, keys and values, 16 tokens, 2 heads of 16 channels, float32


def load_small(*, device, dtype="float32"):
    return make_model("llama", dtype, device)


@pytest.fixture
def session(tmp_path):
    parts = {**DEFAULTS, "model": partial(load_small), "engine": partial(TorchEngine, kv_cache_bytes=10 * BLOCK_BYTES)}
    arms = resolve_arms({"none": {}, "int8": {"quantization": partial(quantize)}}, parts)
    return Session(**vars(open_place("cpu", str(tmp_path / "out"))), arms=arms)


def test_an_arms_error_does_not_stop_the_others_and_is_raised_at_the_end(session, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    for arm in ("one", "other", "one"):
        with session.attempt(arm):
            if arm == "one":
                raise ValueError("no room")
            session.write_json("found.json", {"arm": arm})
    assert json.loads((session.output_dir / "found.json").read_text()) == {"arm": "other"}
    with pytest.raises(StudyError, match="one: no room"):
        session.conclude()
    assert len(session.failures) == 1


def test_an_empty_table_is_not_written(session):
    with session.table("empty.csv"), session.table("full.csv") as full:
        full.add([{"arm": "one"}])
    session.conclude()
    assert [path.name for path in session.written] == ["full.csv"]
    assert pd.read_csv(session.output_dir / "full.csv")["arm"].tolist() == ["one"]


def test_the_memory_is_of_weights_and_cache_together(session):
    arm = session.arms["none"]
    assert within(arm, None) is arm
    limited = within(arm, 400_000).engine.keywords
    assert (limited["memory_bytes"], limited["kv_cache_bytes"], limited["num_blocks"]) == (400_000, None, None)


def test_the_cache_takes_what_the_weights_leave(session):
    loaded = session.load("none")
    weight_bytes = footprint(loaded)["total"]
    measure = partial(measure_cache, session, session.arms["none"])
    as_it_is = measure(None, loaded)
    assert (as_it_is["num_blocks"], as_it_is["num_slots"], as_it_is["kv_bytes"]) == (10, 160, 10 * BLOCK_BYTES)
    beside = measure(weight_bytes + 3 * BLOCK_BYTES + 5, loaded)
    assert (beside["weight_bytes"], beside["num_blocks"]) == (weight_bytes, 3)
    none = measure(weight_bytes, loaded)
    assert (none["weight_bytes"], none["num_blocks"], none["kv_bytes"]) == (weight_bytes, 0, 0)


def test_a_model_is_measured_against_itself_in_float32(session):
    reference = load_small(device=session.device)
    exact, _ = measure_model(session, "none", reference, None)
    row, matrices = measure_model(session, "int8", reference, None)
    assert (exact["dtype"], exact["weight_error"]) == ("float32", 0)
    assert row["total"] < exact["total"]
    assert 0 < row["weight_error"] < 0.05
    assert matrices["relative_error"].max() < 0.05
