"""check() over hand-made configs and over every YAML of the project; describe() there and back."""

from functools import partial
from typing import Literal, NotRequired

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf
from typing_extensions import TypedDict, Unpack

from framework.catalog import CONF, groups
from framework.config import MOVED, check, describe, import_target, parameters_of
from framework.scheduler.continuous import ContinuousScheduler
from tests.thinning import every_nth


def options() -> list[str]:
    """Every `group=option` there is; the presets of a study count as its options."""
    return [f"{group}={option}" for group, options in groups().items() for option in options]


def lacking(group: str, name: str) -> list[str]:
    """A value for each key that the user has to give, such as the `path` of trace=csv."""
    config = OmegaConf.load(CONF / group / f"{name}.yaml")
    return [f"{group}.{key}=x" for key in config if OmegaConf.is_missing(config, key)]


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        OmegaConf.set_readonly(config.hydra, False)
        config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


@pytest.mark.slow
@pytest.mark.parametrize("option", options())
def test_every_yaml_fits_what_it_calls(option):
    group, _, name = option.partition("=")
    if group == "scheduler":  # an arm's
        check(composed("experiment=continuous_batching", f"+scheduler@arms.x.scheduler={name}"))
    elif group == "order":  # a scheduler's
        check(composed("experiment=continuous_batching", f"order@arms.continuous.scheduler.order={name}"))
    elif group == "slo":  # what a capacity is of
        check(composed("experiment=capacity", f"slo={name}"))
    elif group in ("adapters", "popularity", "predictions", "router", "link", "migrate"):  # parts of other components
        check(OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml")))
    elif group == "arrivals":  # those of a trace
        needed = ["trace.arrivals.trace.path=x"] if name == "file" else []
        check(composed("experiment=continuous_batching", "trace=sample", f"+arrivals@trace.arrivals={name}", *needed))
    elif group == "lengths":  # those of a synthetic trace
        needed = ["trace.lengths.trace.path=x"] if name == "file" else []
        check(composed("experiment=continuous_batching", f"lengths@trace.lengths={name}", *needed))
    else:
        check(composed(option, *lacking(group, name)))


@pytest.mark.slow
@pytest.mark.parametrize("option", every_nth(6, [one for one in options() if one.startswith("experiment=")]))
def test_every_study_takes_tracking_none(option):
    config = composed(option, "tracking=none")
    assert "tracking" not in config
    check(config)


def target(
    *,
    size: int,
    rate: float = 1.0,
    mode: Literal["stretch", "thin"] = "thin",
    rates: list[float] | None = None,
    limits: dict[str, list[float]] | None = None,
):
    return size


TARGET = {"_target_": f"{__name__}.target"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {**TARGET, "size": 1, "ratt": 2},
            r"unknown key 'ratt' in .*target; did you mean 'rate'\?; allowed: size, rate",
        ),
        ({"trace": {**TARGET, "_partial_": True, "sise": 1}}, r"unknown key 'sise' in trace \("),
        ({"arms": {"a": {"scheduler": {**TARGET, "_partial_": True, "x": 1}}}}, "unknown key 'x' in arms.a.scheduler"),
        ({**TARGET}, "missing size in"),
        ({**TARGET, "size": "many"}, "size is 'many': input should be a valid integer"),
        ({**TARGET, "size": 1, "mode": "shrink"}, "mode is 'shrink': input should be 'stretch' or 'thin'"),
        ({**TARGET, "size": 1, "rates": [1.0, "fast"]}, r"rates\[1\] is 'fast': input should be a valid number"),
        ({**TARGET, "size": 1, "limits": {"a": [], "b": [1.0, None]}}, r"limits\.b\[1\] is None: input should be a"),
        ({"model": {"_target_": "framework.modles.x"}}, "model: cannot import 'framework.modles.x'"),
        ({"model": {"_target_": 7}}, "model: _target_ is 7: name a class or a function"),
        ({"model": {"_target_": None}}, "model: _target_ is None"),
        ({"model": {"_target_": ["os"]}}, r"model: _target_ is \['os'\]"),
        ({"model": {"_target_": "os.sep"}}, "model: os.sep is '/': name a class or a function"),
        ({"model": {"_target_": "builtins.print", "x": 1}}, r"unknown key 'x' in model \(builtins.print\)"),
        ({"model": {"_target_": "builtins.int"}}, "<class 'int'> does not tell what it takes"),
    ],
)
def test_a_wrong_key_or_type_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        check(config)


class Sweep(TypedDict):
    rates: list[float | None]
    tracking: NotRequired[str | None]


def study(*, size: int = 1, **sweep: Unpack[Sweep]):
    return size, sweep


STUDY = {"_target_": f"{__name__}.study"}


def test_unpacked_keywords_are_those_of_the_typed_dict():
    parameters = parameters_of(study)
    assert list(parameters) == ["size", "rates", "tracking"]
    assert [name for name, parameter in parameters.items() if parameter.is_required] == ["rates"]
    assert parameters["tracking"].hint == str | None
    check({**STUDY, "rates": [1, None]})
    check({**STUDY, "rates": [1.5], "tracking": "there", "size": 2})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {**STUDY, "rates": [], "rate": 1},
            r"unknown key 'rate' in .*study; did you mean 'rates'\?; allowed: size, ra",
        ),
        ({**STUDY, "size": 2}, "missing rates in"),
        ({**STUDY, "rates": ["fast"]}, r"rates\[0\] is 'fast': input should be a valid number"),
        ({**STUDY, "rates": [], "tracking": 3}, "tracking is 3: input should be a valid string"),
    ],
)
def test_unpacked_keywords_are_checked_like_others(config, message):
    with pytest.raises(ValueError, match=message):
        check(config)


@pytest.mark.parametrize("key", ["rates", "model"])
def test_a_key_of_a_sweep_is_missed_before_the_study_runs(key):
    config = composed("experiment=continuous_batching")
    del config[key]
    with pytest.raises(ValueError, match=f"missing {key} in"):
        check(config)


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_what_has_moved_is_named_and_is_there(old, new):
    import_target(new, "")
    with pytest.raises(ValueError, match=rf"text: {old} has moved to {new}$"):
        check({"text": {"_target_": old}})


def test_partials_may_lack_arguments_and_whole_numbers_are_floats():
    check({**TARGET, "_partial_": True})
    check({**TARGET, "size": 1, "rate": 2})


def test_describe_fills_in_defaults_and_is_what_instantiate_takes():
    described = describe({"scheduler": partial(ContinuousScheduler, max_num_seqs=3), "rates": (1.0, None)})
    assert described["rates"] == [1.0, None]
    assert described["scheduler"] == {
        "_target_": "framework.scheduler.continuous.ContinuousScheduler",
        "_partial_": True,
        "max_num_seqs": 3,
        "max_num_batched_tokens": 2048,
        "steps": "prompts_first",
        "whole_prompts": True,
        "watermark": 0.01,
        "max_loras": None,
        "prefetch": True,
        "adapter_cycle_time": None,
        "prefix_cache": None,
        "reservation": "paged",
        "preemption": "recompute",
        "order": {"_target_": "framework.scheduler.orders.fcfs.FirstCome", "_partial_": True},
        "num_swap_blocks": 0,
        "num_adapter_slots": 0,
        "blocks_per_adapter": 0,
        "max_model_len": None,
    }
    rebuilt = instantiate(described["scheduler"])
    assert describe(rebuilt) == described["scheduler"]
    assert rebuilt(num_blocks=5, block_size=2).max_num_seqs == 3
