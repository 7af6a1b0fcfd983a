"""Servers by role: what they may be, which arm in small each is, and a replay of them with cost models."""

import math
from functools import partial

import pandas as pd
import pytest
import torch

from framework.engine.modelled import ModelledEngine
from framework.link import Link
from framework.router.migrate import migrate
from framework.router.shared_queue import shared_queue
from framework.scheduler.static import StaticScheduler
from framework.study import modelled
from framework.study.arms import resolve_arms
from framework.study.engine_cache import EngineCache
from framework.study.roles import with_role
from framework.trace.lengths import fixed, independent
from tests.cost_models import PARTS, kind_cost, write_model
from tests.study.fake_study import DEFAULTS, load_fake_model, run_fake_study
from tests.thinning import every_nth

PARTS_OF_STUDY = DEFAULTS | PARTS | {"engine": partial(ModelledEngine, noise=False)}
LINK = partial(Link, bandwidth=1e6)
BY_ROLE = {"servers": {"prefill": {"num": 2}, "decode": {"num": 1}}, "link": LINK}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where a cost model of PARTS is looked for."""
    place = tmp_path / "models"
    place.mkdir()
    write_model(place)
    monkeypatch.setattr(modelled, "FOLDER", place)
    return place


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"servers": {}}, r"arms.a.servers is empty: give a number of servers, or servers by role"),
        ({"servers": {"prefill": 2}}, r"arms.a.servers.prefill is 2: give a mapping of num, role, scheduler"),
        ({"servers": {"prefill": {"num": 0}}}, r"arms.a.servers.prefill.num=0 is not a whole number of at least 1"),
        ({"servers": {"prefil": {}}}, r"arms.a.servers.prefil is of role 'prefil'; did you mean 'prefill'\?"),
        ({"servers": {"h200": {"role": "both"}}}, r"arms.a.servers.h200 is of role 'both'; allowed: prefill, decode"),
        ({"servers": {"mixed": {"numb": 1}}}, r"unknown component 'numb' in arms.a.servers.mixed; did you mean 'num'"),
        ({"servers": {"prefill": {}}, "link": LINK}, r"arms.a.servers has prefill servers and no decode servers"),
        ({"servers": {"mixed": {}, "decode": {}}}, r"arms.a.servers has decode servers and no prefill servers"),
        (
            {"servers": {"prefill": {}, "decode": {"scheduler": partial(StaticScheduler)}}, "link": LINK},
            r"arms.a.servers.decode: StaticScheduler has no release and accept",
        ),
        (
            {"servers": {"prefill": {}, "decode": {"scheduler": {"max_num_seqs": 0}}}, "link": LINK},
            r"arms.a.servers.decode: max_num_seqs must be at least 1",
        ),
        (
            {"servers": {"prefill": {}, "decode": {"model": partial(load_fake_model, name="b")}}, "link": LINK},
            r"arms.a.servers: prefill and decode servers need one model",
        ),
        (
            {"servers": {"mixed": {}, "other": {"role": "mixed", "engine": DEFAULTS["engine"]}}},
            r"arms.a.servers: all servers have engine=modelled, or all a measured one",
        ),
        ({"servers": BY_ROLE["servers"]}, r"arms.a: its sequences move between servers on a link: add \+link@arms.a"),
        (
            {"servers": 2, "migrate": partial(migrate)},
            r"arms.a: its sequences move between servers on a link: add \+link@arms.a",
        ),
        ({"servers": 1, "migrate": partial(migrate), "link": LINK}, r"arms.a: migrate needs two servers that decode"),
        (
            {"servers": 2, "migrate": partial(migrate), "link": LINK, "scheduler": partial(StaticScheduler)},
            r"arms.a: StaticScheduler has no release and accept",
        ),
        (
            {"servers": 2, "migrate": partial(migrate, min_ratio=0), "link": LINK},
            r"arms.a: migrate.min_ratio=0 is not a finite number above 0",
        ),
        (BY_ROLE | {"link": partial(Link, bandwidth=0)}, r"arms.a: link.bandwidth=0 is not a finite number above 0"),
        (
            BY_ROLE | {"decode_router": partial(shared_queue), "view_delay": 1.0},
            r"arms.a.decode_router: router=shared_queue .* view_delay=1.0 must be 0",
        ),
        ({"link": LINK}, r"arms.a has neither prefill servers nor migrate, so no sequence moves: leave out link"),
        ({"decode_router": partial(shared_queue)}, r"arms.a has no prefill servers, so nothing is handed over"),
        (BY_ROLE | {"clock": "wall", "placement": "gpus"}, r"arms.a: with placement=gpus all servers are alike"),
        (BY_ROLE | {"clock": "wall"}, r"arms.a: clock=wall serves one server, not 3"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_measured(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        resolve_arms({"a": change}, PARTS_OF_STUDY)
    assert "\n" not in str(caught.value)


def test_each_is_an_arm_in_small_and_the_arm_has_the_parts_of_the_first():
    servers = {
        "prefill": {"num": 2, "scheduler": {"max_num_seqs": 3}, "engine": {"num_blocks": 50}},
        "fast": {"role": "decode", "scheduler": {"steps": "mixed"}},
    }
    arm = resolve_arms({"a": {"servers": servers, "link": LINK}}, PARTS_OF_STUDY)["a"]
    assert [(group.num, group.role) for group in arm.groups] == [(2, "prefill"), (1, "decode")]
    assert arm.num_servers == 3
    assert (arm.scheduler, arm.engine) == (arm.groups[0].scheduler, arm.groups[0].engine)
    assert arm.config["servers"]["fast"]["scheduler"]["steps"] == "mixed"
    assert arm.config["servers"]["prefill"]["engine"]["num_blocks"] == 50
    made = EngineCache(torch.device("cpu"), lambda message: None).get_servers(arm, None)
    assert [server.index for server in made] == [0, 1, 2]
    assert [server.scheduler.max_num_seqs for server in made] == [3, 3, 64]
    assert [server.engine.num_blocks for server in made][:2] == [50, 50]
    assert with_role(arm.groups, made, "decode") == made[2:]


def test_a_number_of_servers_is_one_group_of_mixed_ones():
    arm = resolve_arms({"a": {"servers": 4}}, PARTS_OF_STUDY)["a"]
    assert arm.config["servers"] == 4
    [group] = arm.groups
    assert (group.num, group.role, group.scheduler, group.engine) == (4, "mixed", arm.scheduler, arm.engine)


def tables_of(study, arm):
    [point] = study.table().loc[lambda table: table["arm"] == arm, "point"]
    return [pd.read_parquet(study.folder(point) / f"{name}.parquet") for name in ("requests", "steps")]


def test_prefill_servers_compute_prompts_and_decode_servers_the_rest(tmp_path):
    study = run_fake_study(tmp_path / "out", {"a": BY_ROLE, "b": {"servers": 3}}, [20.0], defaults=PARTS_OF_STUDY)
    requests, steps = tables_of(study, "a")
    assert set(steps.loc[steps["phase"] == "prefill", "server"]) == {0, 1}
    assert set(steps.loc[steps["phase"] == "decode", "server"]) == {2}
    assert set(steps["phase"]) == {"prefill", "decode"}
    assert requests["num_output_tokens"].tolist() == [4] * 48
    assert set(requests["prefill_server"]) == {0, 1}
    assert set(requests["server"]) == {2}
    assert (requests["transfer_time"] > 0).all()
    gaps = requests["token_times"].map(lambda times: times[1] - times[0])
    assert (gaps > requests["transfer_wait"] + requests["transfer_time"]).all()
    requests, _ = tables_of(study, "b")
    assert requests["prefill_server"].isna().all()
    assert requests["transfer_time"].isna().all()


def test_with_migrate_running_sequences_leave_the_busiest_server(tmp_path):
    arms = {"a": {"servers": 2, "router": partial(only_the_first), "migrate": partial(migrate), "link": LINK}}
    study = run_fake_study(tmp_path / "out", arms, [200.0], defaults=PARTS_OF_STUDY)
    requests, _ = tables_of(study, "a")
    assert requests["num_output_tokens"].tolist() == [4] * 48
    moved = requests[requests["num_moves"] > 0]
    assert 0 < len(moved) < 48
    assert set(moved["prefill_server"]) == {0}
    assert set(moved["server"]) == {1}


def only_the_first(servers):
    return lambda sequence: servers[0]


@pytest.mark.parametrize(
    "changes", every_nth(2, [{}, {"migrate": partial(migrate)}, {"decode_router": partial(shared_queue)}])
)
def test_many_decode_steps_at_once_leave_what_one_by_one_does(tmp_path, changes, monkeypatch):
    lengths = partial(independent, prompt=partial(fixed, length=8), output=partial(fixed, length=40))
    trace = partial(DEFAULTS["trace"].func, **DEFAULTS["trace"].keywords | {"lengths": lengths, "num_requests": 24})
    servers = {"prefill": {}, "decode": {"num": 2, "scheduler": {"max_num_seqs": 4}}}
    arms = {"a": {"servers": servers, "link": LINK} | changes}
    tables = []
    for is_quiet in (True, False):
        if not is_quiet:
            monkeypatch.setattr("framework.replay.knows_beforehand", lambda scheduler, engine: False)
        folder = tmp_path / str(is_quiet)
        study = run_fake_study(folder, arms, [20.0], defaults=PARTS_OF_STUDY | {"trace": trace})
        tables.append(tables_of(study, "a"))
    for quiet, one_by_one in zip(*tables, strict=True):
        pd.testing.assert_frame_equal(quiet, one_by_one, check_exact=True)


def test_what_a_decode_server_has_no_room_for_is_refused_by_role(tmp_path):
    servers = {"prefill": {}, "decode": {"engine": {"num_blocks": 2, "block_size": 4}}}
    servers["prefill"] = {"engine": {"block_size": 4}}
    with pytest.raises(Exception, match=r"none of 48 requests can be served: decode servers: longer than the KV cache"):
        run_fake_study(tmp_path / "out", {"a": {"servers": servers, "link": LINK}}, [20.0], defaults=PARTS_OF_STUDY)


def test_servers_of_other_devices_stand_beside_each_other(tmp_path, folder):
    slow = {kind: kind_cost(kind) for kind in ("decode", "prompt")}
    for cost in slow.values():
        cost.beside["num_adapter_loads"] = 0.0
    write_model(folder, name="slow", device="Another")
    servers = {
        "first": {"role": "mixed", "engine": {"device": "A device"}},
        "second": {"role": "mixed", "engine": {"device": "Another"}},
    }
    study = run_fake_study(tmp_path / "out", {"a": {"servers": servers}}, [20.0], defaults=PARTS_OF_STUDY)
    _, steps = tables_of(study, "a")
    assert set(steps["server"]) == {0, 1}
    assert study.device_name == "A device and Another (modelled)"
    assert math.isfinite(study.table()["ttft_mean"].iloc[0])
