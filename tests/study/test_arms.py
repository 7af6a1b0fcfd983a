"""What an arm is made of, what it may not be, and in which order points run."""

from dataclasses import replace
from functools import partial
from time import perf_counter
from types import SimpleNamespace

import pytest

from framework.engine.torch_engine import TorchEngine
from framework.lora.adapters import RandomAdapters
from framework.lora.loop import Loop
from framework.lora.pool import serve_adapters
from framework.router.shared_queue import shared_queue
from framework.study.arms import Arm, point_order, resolve_arms
from framework.study.engine_cache import takes_turns
from framework.study.load import Load
from tests.study.fake_study import DEFAULTS, load_fake_model

ADAPTERS = partial(serve_adapters, strategy=Loop, adapters=RandomAdapters, num_slots=8, max_rank=8)


def test_a_seed_is_served_by_all_arms_before_the_next_which_begins_with_the_model_at_hand():
    other = partial(load_fake_model, name="b")
    arms = {"first": {}, "second": {"model": other}, "third": {"scheduler": {"max_num_seqs": 2}}}
    low, high = Load(1.0), Load(2.0)
    assert point_order(resolve_arms(arms, DEFAULTS), [low, high], [0, 1]) == [
        *(("first", low, 0), ("third", low, 0), ("third", high, 0), ("first", high, 0)),
        *(("second", low, 0), ("second", high, 0)),
        *(("second", low, 1), ("second", high, 1)),
        *(("first", low, 1), ("third", low, 1), ("third", high, 1), ("first", high, 1)),
    ]


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"a": 5}, "arms.a is 5"),
        ({"a": {"engin": {}}}, "unknown component 'engin' in arms.a; did you mean 'engine'"),
        ({"a": {"engine": {"steptime": 1.0}}}, "unknown key 'steptime' in arms.a.engine"),
        ({"a": {"engine": {"num_blocks": "many"}}}, "arms.a.engine.num_blocks is 'many'"),
        ({"a": {"clock": "atomic"}}, "arms.a.clock is 'atomic': input should be 'virtual' or 'wall'"),
        ({"a": {"scheduler": "fifo"}}, "arms.a.scheduler is 'fifo': give another scheduler"),
        ({"a/b": {}}, "arm name 'a/b'"),
        (
            {"a": {"scheduler": {"max_num_batched_tokens": 0}}},
            "arms.a: scheduler.max_num_batched_tokens must be at least 1",
        ),
        (
            {"a": {"scheduler": {"steps": "mixed", "max_num_batched_tokens": 7, "max_num_seqs": 8}}},
            "arms.a: scheduler.max_num_batched_tokens=7 is less than one decode token for each of scheduler",
        ),
    ],
)
def test_bad_arms_are_named(arms, message):
    with pytest.raises(ValueError, match=message):
        resolve_arms(arms, DEFAULTS)


def test_an_arm_without_a_scheduler_is_named():
    with pytest.raises(ValueError, match=r"arms.a has no scheduler"):
        resolve_arms({"a": {}}, {name: value for name, value in DEFAULTS.items() if name != "scheduler"})


def test_a_prefix_cache_over_an_engine_without_a_cache_is_refused():
    changes = {"scheduler": {"prefix_cache": "lru"}, "engine": partial(TorchEngine, use_cache=False)}
    with pytest.raises(ValueError, match=r"arms.a: scheduler.prefix_cache=lru .* engine.use_cache=false"):
        resolve_arms({"a": changes}, DEFAULTS)
    resolve_arms({"a": changes | {"scheduler": {}}, "b": {"scheduler": {"prefix_cache": "lru"}}}, DEFAULTS)


def test_swapping_without_room_on_the_host_is_refused():
    changes = {"scheduler": {"preemption": "swap"}, "engine": partial(TorchEngine)}
    with pytest.raises(
        ValueError, match=r"arms.a: scheduler.preemption=swap .* set engine.num_swap_blocks, which is 0"
    ):
        resolve_arms({"a": changes}, DEFAULTS)
    resolve_arms({"a": changes | {"engine": partial(TorchEngine, num_swap_blocks=3)}}, DEFAULTS)


def test_an_arm_is_described_once_and_its_keys_tell_models_engines_and_warm_ups_apart():
    """Another scheduler shares the engine, another engine the model."""
    changes = {"same": {}, "scheduler": {"scheduler": {"max_num_seqs": 2}}, "engine": {"engine": {"num_blocks": 9}}}
    arms = resolve_arms({name: {**change} for name, change in changes.items()}, DEFAULTS)
    same = arms["same"]
    assert isinstance(same, Arm)
    assert same.config is same.config
    own = {"servers", "router", "view_delay", "placement", "decode_router", "link", "migrate"}
    assert set(same.config) == {*DEFAULTS, *own}
    shared = {
        name: (arm.model_key == same.model_key, arm.engine_key == same.engine_key, arm.warm_up_key == same.warm_up_key)
        for name, arm in arms.items()
    }
    assert shared == {"same": (True, True, True), "scheduler": (True, True, False), "engine": (True, False, True)}
    other = replace(same, model=partial(load_fake_model, name="b"))
    assert other.model_key != same.model_key
    assert other.config["model"]["name"] == "b"


def test_a_router_that_cannot_be_or_is_never_asked_is_refused_before_anything_is_measured():
    changes = {"router": partial(shared_queue), "view_delay": 0.5}
    with pytest.raises(ValueError, match=r"arms.a: router=shared_queue .* view_delay=0.5 must be 0"):
        resolve_arms({"a": changes}, DEFAULTS)
    with pytest.raises(ValueError, match=r"arms.a: clock=wall has one server and asks no router"):
        resolve_arms({"a": {"router": partial(shared_queue), "clock": "wall"}}, DEFAULTS)
    resolve_arms({"a": {"router": partial(shared_queue)}}, DEFAULTS)


def test_a_single_server_takes_turns_where_its_placement_says_so():
    with pytest.raises(ValueError, match=r"arms.a: placement=turns measures each step alone: set clock=virtual"):
        resolve_arms({"a": {"placement": "turns", "clock": "wall"}}, DEFAULTS)
    arms = resolve_arms({"alone": {}, "turns": {"placement": "turns"}, "two": {"servers": 2}}, DEFAULTS)
    engines = [SimpleNamespace(timer=timer) for timer in (perf_counter, None)]
    taken = {name: [takes_turns(arm, engine) for engine in engines] for name, arm in arms.items()}
    assert taken == {"alone": [False, False], "turns": [True, False], "two": [True, False]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"servers": 4, "engine": {"num_blocks": 3}}, r"servers=4 share 3 KV blocks \(engine\.num_blocks\)"),
        ({"servers": 3, "engine": partial(TorchEngine, num_swap_blocks=2)}, "servers=3 share 2 host blocks"),
        ({"servers": 9, "lora": ADAPTERS}, "servers=9 share 8 adapter slots"),
        (
            {"placement": "turns", "lora": partial(ADAPTERS, memory="unified")},
            "servers=1 cannot keep adapters in the KV",
        ),
    ],
)
def test_what_servers_cannot_have_shares_of_is_refused_before_an_engine_is_built(changes, message):
    with pytest.raises(ValueError, match=rf"arms\.a: {message}"):
        resolve_arms({"a": changes}, DEFAULTS)
