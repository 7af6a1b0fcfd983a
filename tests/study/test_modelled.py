"""Arms that are modelled: they find their cost model, load nothing, and their points say what they are."""

import json
from functools import partial

import pandas as pd
import pytest
import torch

from framework.engine.modelled import ModelledEngine
from framework.lora.gathered import Gathered
from framework.lora.loop import Loop
from framework.lora.pool import serve_adapters
from framework.lora.segmented import Segmented
from framework.measure.intervals import estimate
from framework.models import loading
from framework.study import modelled
from framework.study.arms import resolve_arms
from framework.study.engine_cache import EngineCache
from framework.trace.popularity import uniform
from tests.cost.test_subject import ADAPTERS
from tests.cost_models import MODEL, PARTS, kind_cost, target, write_model
from tests.study.fake_study import DEFAULTS, run_fake_study

PARTS_OF_STUDY = DEFAULTS | PARTS | {"engine": partial(ModelledEngine)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where a cost model of PARTS is looked for."""
    place = tmp_path / "models"
    place.mkdir()
    write_model(place)
    monkeypatch.setattr(modelled, "FOLDER", place)
    return place


def test_an_arm_without_a_path_gets_the_cost_model_that_fits(folder):
    arms = resolve_arms({"a": {}}, PARTS_OF_STUDY)
    assert arms["a"].config["engine"]["path"] == str(folder / "test.json")
    write_model(folder.parent, name="other", device="Another")
    arms = resolve_arms({"a": {"engine": {"path": str(folder.parent)}}}, PARTS_OF_STUDY)
    assert arms["a"].config["engine"]["path"] == str(folder.parent / "other.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clock": "wall"}, "arms.a: clock=wall is real time, and engine=modelled executes nothing"),
        ({"placement": "turns"}, "arms.a: placement=turns measures each step alone"),
        ({"model": {"dtype": "bfloat16"}}, r"arms.a: .*\(test has dtype 'float32', not 'bfloat16'"),
        ({"engine": {"device": "TPU"}}, "arms.a: engine.device=TPU"),
        ({"engine": {"path": "nowhere.json"}}, "arms.a: engine.path=.*there is no such file"),
    ],
)
def test_an_arm_without_a_cost_model_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        resolve_arms({"a": change}, PARTS_OF_STUDY)


def test_points_are_labelled_and_depend_on_the_cost_model_and_not_on_the_device(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(loading, "build_model", lambda *_: pytest.fail("weights were made"))

    def run():
        study = run_fake_study(tmp_path / "out", {"a": {}}, [20.0], defaults=PARTS_OF_STUDY)
        [point] = study.table()["point"]
        return study, point, json.loads((study.folder(point) / "point.json").read_text())

    study, point, record = run()
    assert study.device_name == record["environment"]["device"] == "A device (modelled)"
    assert record["environment"]["packages"]["torch"] is None
    found = record["engine"]["modelled"]
    assert (found["name"], found["device"], found["git_commit"], found["is_older"]) == (
        "test",
        "A device",
        "abcdef123",
        True,
    )
    assert found["num_steps"] > 0
    assert found["num_outside"] == 0
    assert run()[1] == point
    write_model(folder, notes=["another"])
    assert run()[1] != point


def test_each_way_of_serving_adapters_has_its_cost_model_and_requests_wait_for_theirs(tmp_path, folder):
    arms, kinds = {"none": {}}, {kind: kind_cost(kind) for kind in ("decode", "prompt")}
    for cost in kinds.values():
        cost.beside["num_adapter_loads"] = 0.5
    for strategy in (Gathered, Loop, Segmented):
        lora = partial(serve_adapters, **ADAPTERS.keywords | {"strategy": partial(strategy)})
        arms[strategy.__name__] = {"lora": lora}
        write_model(folder, name=strategy.__name__, subject=target(lora=lora).subject, kinds=kinds)
    trace = partial(DEFAULTS["trace"].func, **DEFAULTS["trace"].keywords, adapters=partial(uniform, num_adapters=3))
    study = run_fake_study(tmp_path / "out", arms, [20.0], defaults=PARTS_OF_STUDY | {"trace": trace})
    for point, arm in study.table()[["point", "arm"]].itertuples(index=False):
        record = json.loads((study.folder(point) / "point.json").read_text())
        assert record["engine"]["modelled"]["name"] == ("test" if arm == "none" else arm)
        steps, requests = (pd.read_parquet(study.folder(point) / f"{name}.parquet") for name in ("steps", "requests"))
        waited = requests[requests["adapter_load_wait"] > 0]
        assert sorted(waited["adapter_id"].unique()) == ([] if arm == "none" else sorted(set(requests["adapter_id"])))
        assert steps["adapter_wait"].sum() == (0 if arm == "none" else 1.5)


def test_every_server_draws_noise_of_its_own():
    arm = resolve_arms({"a": {"servers": 3}}, PARTS_OF_STUDY)["a"]
    engines = EngineCache(torch.device("cpu"), lambda message: None)
    seeds = [[server.engine.seed for server in engines.get_servers(arm, None, seed)] for seed in (0, 1)]
    assert seeds[0] == [0, 1, 2]
    assert not {*seeds[0]} & {*seeds[1]}


def test_seeds_over_the_same_arrivals_are_repeats_with_other_noise(tmp_path, folder):
    """A recorded trace is the same for every seed: what is left of the interval is how residuals are spread."""
    kinds = {kind: kind_cost(kind, ratios=(0.5, 1.5)) for kind in ("decode", "prompt")}
    write_model(folder, kinds=kinds)
    requests = partial(DEFAULTS["trace"].func, **DEFAULTS["trace"].keywords)(rate=20.0, seed=0)
    trace = partial(lambda rate, seed: requests)
    arms = {"noise": {"servers": 2}, "mean": {"engine": {"noise": False}}}
    study = run_fake_study(tmp_path / "out", arms, [20.0], seeds=(0, 1, 2), defaults=PARTS_OF_STUDY | {"trace": trace})
    points = study.table()
    ttft = {arm: rows["ttft_mean"].to_numpy() for arm, rows in points.groupby("arm")}
    assert len({*ttft["noise"]}) == 3
    assert len({*ttft["mean"]}) == 1
    _, low, high = estimate(ttft["noise"])
    assert 0 < low < high
    for point in points["point"]:
        record, steps = study.folder(point) / "point.json", pd.read_parquet(study.folder(point) / "steps.parquet")
        assert json.loads(record.read_text())["engine"]["modelled"]["num_steps"] == len(steps)


def test_a_modelled_arm_beside_an_executed_one(tmp_path):
    arms = {"executed": DEFAULTS, "modelled": {"engine": partial(ModelledEngine), "model": MODEL}}
    arms["executed"] = {name: DEFAULTS[name] for name in ("engine", "model")}
    study = run_fake_study(tmp_path / "out", arms, [20.0], defaults=PARTS_OF_STUDY)
    points = study.table()
    assert points["arm"].tolist() == ["executed", "modelled"]
    assert study.device_name.endswith(" and A device (modelled)")
    devices = [
        json.loads((study.folder(point) / "point.json").read_text())["environment"]["device"]
        for point in points["point"]
    ]
    assert devices[1] == "A device (modelled)" != devices[0]
