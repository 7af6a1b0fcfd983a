"""Recorded arms: the same replay is repeated bit by bit, any other has its steps from what was recorded."""

import json
import shutil
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest

from framework.core import StepResult
from framework.engine.modelled import ModelledEngine
from framework.engine.recorded import RecordedEngine
from framework.engine.torch_engine.engine import TorchEngine
from framework.lora.adapters import RandomAdapters
from framework.lora.loop import Loop
from framework.lora.pool import serve_adapters
from framework.models import loading
from framework.report.modelled import label
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from framework.study import points
from framework.study.arms import resolve_arms
from framework.trace.arrivals import poisson
from framework.trace.lengths import fixed, independent
from framework.trace.multi_turn import lognormal, multi_turn
from framework.trace.popularity import uniform
from framework.trace.synthetic import synthetic
from tests.cost_models import PARTS, write_model
from tests.fake_engine import FakeEngine
from tests.study.fake_study import DEFAULTS, run_fake_study

LENGTHS = partial(independent, prompt=partial(fixed, length=5), output=partial(fixed, length=9))
ARRIVALS = {"arrivals": partial(poisson), "lengths": LENGTHS, "num_requests": 8}
TRACE = partial(synthetic, **ARRIVALS)
SESSIONS = partial(
    multi_turn,
    **ARRIVALS,
    num_turns=partial(fixed, length=3),
    think_times=partial(lognormal, median=0.01, sigma=0.5),
)
ADAPTERS = partial(
    serve_adapters, strategy=partial(Loop), adapters=partial(RandomAdapters, ranks=[8]), num_slots=2, max_rank=8
)
WANTED = partial(synthetic, **ARRIVALS, adapters=partial(uniform, num_adapters=4))
RATE = 200.0


def stopping(*, stops: list[int], make=TRACE, rate: float | None = None, seed: int = 0):
    """A trace whose requests end at these tokens."""
    trace = make(rate=rate, seed=seed)
    requests = [replace(request, stop_token_ids=frozenset(stops)) for request in trace.requests]
    return replace(trace, requests=requests)


class AheadEngine(FakeEngine):
    """Measures the host's time, runs a step ahead, and waits for every adapter another time."""

    def __init__(self, model: object, *, num_steps: int = 1) -> None:
        rng = np.random.default_rng(0)
        super().__init__(lambda batch: float(rng.uniform(0.001, 0.01)), num_steps_ahead=num_steps)
        self.timer = time.perf_counter
        self.num_adapter_slots = 2
        self.rng = rng

    def launch(self, batch):
        super().launch(batch)
        waits = {slot: float(self.rng.uniform(0, 0.001)) for slot in batch.adapter_loads}
        result = self.in_flight[-1]
        self.in_flight[-1] = StepResult(result.token_ids, 0.0, 0.001, result.elapsed, waits, swap_wait=0.5)


TORCH = partial(TorchEngine, num_blocks=200, block_size=4)
EXECUTED = DEFAULTS | PARTS | {"engine": TORCH, "trace": TRACE}
ARMS = {
    "continuous": {},
    "static": {"scheduler": partial(StaticScheduler, max_num_seqs=4, max_wait=0.005)},
    "sessions": {"scheduler": partial(ContinuousScheduler, prefix_cache="lru"), "trace": SESSIONS},
    "stops": {"trace": partial(stopping, stops=list(range(0, 97, 5)))},
    "adapters": {"lora": ADAPTERS, "trace": WANTED},
    "unified": {"lora": partial(ADAPTERS, memory="unified"), "trace": WANTED},
    "swaps": {
        "scheduler": partial(ContinuousScheduler, preemption="swap", watermark=0.0),
        "engine": partial(TORCH, num_blocks=8, num_swap_blocks=30),
    },
    "ahead": {
        "engine": partial(AheadEngine),
        "lora": ADAPTERS,
        "trace": partial(stopping, stops=[6], make=WANTED),
    },
}


def recorded(folder, arms, **options):
    """The same arms, each of which repeats what is in the folder of the arm of its name."""
    engines = {name: partial(RecordedEngine, points=str(folder), arm=name, **options) for name in arms}
    return {name: parts | {"engine": engines[name], "clock": "virtual"} for name, parts in arms.items()}


def records(study):
    """point.json of every point, by its arm and rate."""
    found = [json.loads((study.folder(point) / "point.json").read_text()) for point in study.table()["point"]]
    assert not study.failures
    return {(record["arm"], record["rate"]): record for record in found}


def hashes(record):
    return {file: table["sha256"] for file, table in record["tables"].items()}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A folder with a point of each of ARMS, and their records."""
    folder = tmp_path_factory.mktemp("executed")
    return folder, records(run_fake_study(folder, ARMS, [RATE], defaults=EXECUTED))


def test_a_recorded_replay_is_the_executed_one_bit_by_bit_without_weights(executed, tmp_path, monkeypatch):
    folder, originals = executed
    monkeypatch.setattr(loading, "build_model", lambda *_: pytest.fail("weights were made"))
    study = run_fake_study(tmp_path, recorded(folder, ARMS), [RATE], defaults=EXECUTED)
    repeated = records(study)
    assert {key: hashes(record) for key, record in repeated.items()} == {
        key: hashes(record) for key, record in originals.items()
    }
    for key, record in repeated.items():
        found = record["engine"]["recorded"]
        assert found["num_replayed"] == found["num_steps"] == record["tables"]["steps.parquet"]["num_rows"]
        assert found["has_outputs"]
        for name in ("num_blocks", "num_cache_bytes", "num_adapter_bytes", "num_adapter_slots", "num_swap_blocks"):
            assert record["engine"][name] == originals[key]["engine"][name]


def test_the_arms_do_what_they_are_there_for(executed):
    """Else the test above would prove nothing."""
    folder, originals = executed
    tables = {
        arm: [pd.read_parquet(path / file) for file in ("requests.parquet", "steps.parquet")]
        for arm, _ in originals
        for path in [next(folder.glob(f"points/{arm}-*"))]
    }
    assert tables["sessions"][0]["num_cached_tokens"].sum() > 0
    assert len(set(tables["stops"][0]["num_output_tokens"])) > 1
    assert (tables["ahead"][0]["num_output_tokens"] == 7).all()
    assert tables["swaps"][1]["num_swapped_in_blocks"].sum() > 0
    assert tables["continuous"][1]["update"].gt(0).all()
    assert tables["ahead"][0]["adapter_load_wait"].nunique() > 2
    assert tables["adapters"][1]["adapter_waits"].notna().any()
    assert originals["unified", RATE]["engine"]["blocks_per_adapter"] > 0


def test_what_a_modelled_cluster_did_is_repeated_too(tmp_path):
    path = str(write_model(tmp_path))
    arms = {"a": {"engine": partial(ModelledEngine, path=path), "servers": 2}}
    originals = records(run_fake_study(tmp_path / "modelled", arms, [RATE], defaults=EXECUTED))
    repeated = records(
        run_fake_study(tmp_path / "out", recorded(tmp_path / "modelled", arms), [RATE], defaults=EXECUTED)
    )
    [(key, record)] = repeated.items()
    assert hashes(record) == hashes(originals[key])
    assert record["engine"]["recorded"]["num_replayed"] == record["tables"]["steps.parquet"]["num_rows"]
    assert record["environment"]["device"] == "A device (modelled) (recorded)"


def test_records_that_differ_only_in_what_routers_see_are_told_apart(tmp_path):
    path = str(write_model(tmp_path))
    for delay in (0.0, 0.05):
        arms = {"a": {"engine": partial(ModelledEngine, path=path), "servers": 2, "view_delay": delay}}
        run_fake_study(tmp_path / "modelled", arms, [RATE], defaults=EXECUTED)
    for delay in (0.0, 0.05):
        arms = {"a": {"servers": 2, "view_delay": delay}}
        study = run_fake_study(
            tmp_path / f"out {delay}", recorded(tmp_path / "modelled", arms), [RATE], defaults=EXECUTED
        )
        [record] = records(study).values()
        assert record["engine"]["recorded"]["num_replayed"] == record["tables"]["steps.parquet"]["num_rows"]


def test_another_rate_and_policy_have_their_steps_from_what_was_recorded(executed, tmp_path):
    """Of the same requests the tokens are known, so that they stop where they stopped."""
    folder, _ = executed
    arms = recorded(folder, {"stops": ARMS["stops"]})
    arms["static"] = arms["stops"] | ARMS["static"]
    study = run_fake_study(tmp_path, arms, [2 * RATE], defaults=EXECUTED)
    before = pd.read_parquet(next(folder.glob("points/stops-*/requests.parquet")))
    for key, record in records(study).items():
        found = record["engine"]["recorded"]
        assert found["has_outputs"]
        assert found["num_replayed"] == 0
        assert found["num_steps"] >= found["num_seen"] + found["num_outside"]
        [path] = tmp_path.glob(f"points/{key[0]}-*/requests.parquet")
        tokens = [one.tolist() for one in pd.read_parquet(path)["token_ids"]]
        assert tokens == [one.tolist() for one in before["token_ids"]]
    again = run_fake_study(tmp_path / "again", arms, [2 * RATE], defaults=EXECUTED)
    assert {key: hashes(one) for key, one in records(again).items()} == {
        key: hashes(one) for key, one in records(study).items()
    }


def test_points_are_labelled_and_depend_on_the_records_content_and_not_on_the_device(executed, tmp_path):
    folder, originals = executed
    arms = recorded(folder, {"continuous": {}})
    study = run_fake_study(tmp_path, arms, [RATE, 30.0], defaults=EXECUTED)
    found = records(study)
    device = f"{originals['continuous', RATE]['environment']['device']} (recorded)"
    assert {record["environment"]["device"] for record in found.values()} == {study.device_name} == {device}
    assert {record["environment"]["packages"]["torch"] for record in found.values()} == {None}
    assert label(study.arms) == " (recorded)"
    [content] = {record["config"]["engine"]["sha256"] for record in found.values()}
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    assert content_of(other) == content
    for path in other.glob("points/continuous-*"):
        shutil.rmtree(path)
    run_fake_study(other, {"continuous": {}}, [RATE], defaults=EXECUTED)  # measured again
    assert content_of(other) != content


def content_of(folder):
    arm = resolve_arms(recorded(folder, {"continuous": {}}), EXECUTED)["continuous"]
    return arm.config["engine"]["sha256"]


def test_rates_that_are_to_be_found_are_those_of_the_record(executed, tmp_path):
    study = run_fake_study(tmp_path, recorded(executed[0], {"continuous": {}}), "auto", defaults=EXECUTED)
    assert list(study.table()["rate"]) == [RATE]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clock": "wall"}, "clock=wall is real time, and engine=recorded executes nothing"),
        ({"model": {"dtype": "bfloat16"}}, "is of another arm: continuous has dtype 'float32', not 'bfloat16'"),
        ({"lora": ADAPTERS}, "is of another arm: continuous has lora serve_base, not Loop"),
        ({"engine": {"arm": "continous"}}, "engine.arm=continous: .* has no point of it; did you mean 'continuous'"),
        ({"engine": {"arm": None}}, "has several engines: num_blocks=.* choose one with engine.arm"),
        ({"engine": {"sha256": "0"}}, "holds .*, not engine.sha256=0"),
        ({"engine": {"points": "nowhere"}}, "engine.points=nowhere: there is no such folder"),
        ({"engine": {"points": "docs"}}, "engine.points=docs has no finished point: name a study's folder"),
    ],
)
def test_a_record_that_is_not_of_an_arm_is_told_in_one_line(executed, change, message):
    [arm] = recorded(executed[0], {"continuous": {}}).values()
    with pytest.raises(ValueError, match=f"arms.a: .*{message}|arms.a: {message}") as raised:
        resolve_arms({"a": change}, EXECUTED | arm)
    assert "\n" not in str(raised.value)


def without_steps(path):
    record = json.loads((path / "point.json").read_text())
    pd.read_parquet(path / "steps.parquet")[:0].to_parquet(path / "steps.parquet")
    record["tables"]["steps.parquet"] = dict(points.describe_table(path / "steps.parquet"))
    (path / "point.json").write_text(json.dumps(record))


def without_tokens(path):
    record = json.loads((path / "point.json").read_text())
    pd.read_parquet(path / "requests.parquet").drop(columns="token_ids").to_parquet(path / "requests.parquet")
    record["tables"]["requests.parquet"] = dict(points.describe_table(path / "requests.parquet"))
    (path / "point.json").write_text(json.dumps(record))


def cut_short(path):
    (path / "steps.parquet").write_bytes((path / "steps.parquet").read_bytes()[:-9])


def not_json(path):
    (path / "point.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_steps, "has no steps"),
        (without_tokens, "is of an earlier version, which kept no requests.parquet's token_ids: record it again"),
        (cut_short, "is no finished point: steps.parquet"),
        (not_json, "is no finished point: Expecting"),
    ],
)
def test_a_damaged_or_older_point_is_named(executed, tmp_path, spoil, message):
    original = next(executed[0].glob("points/continuous-*"))
    shutil.copytree(original, tmp_path / original.name)
    spoil(tmp_path / original.name)
    with pytest.raises(ValueError, match=f"arms.continuous: engine.points=.*{original.name} {message}|{message}"):
        resolve_arms(recorded(tmp_path, {"continuous": {}}), EXECUTED)


def test_points_that_repeat_others_and_those_in_real_time_are_no_record(executed, tmp_path):
    arms = recorded(executed[0], {"continuous": {}}) | {"wall": {"clock": "wall"}}
    run_fake_study(tmp_path, arms, [RATE], defaults=EXECUTED)
    with pytest.raises(ValueError, match="has only points of clock=wall and engine=recorded"):
        resolve_arms(recorded(tmp_path, {"continuous": {}}), EXECUTED)
