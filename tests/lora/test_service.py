"""What each way of serving adapters says of itself, as conf/lora has it."""

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from framework.lora.adapters import RandomAdapters, SavedAdapters
from framework.lora.gathered import Gathered
from framework.lora.loop import Loop
from framework.lora.segmented import Segmented
from framework.lora.service import AdapterService, service_of
from framework.paths import ROOT


def service(name, adapters="random", **changes):
    config = OmegaConf.load(ROOT / f"conf/lora/{name}.yaml")
    config.pop("defaults", None)
    if name != "none":
        config.adapters = OmegaConf.load(ROOT / f"conf/adapters/{adapters}.yaml")
    return service_of(instantiate(OmegaConf.merge(config, changes)))


@pytest.mark.parametrize(("name", "strategy"), [("loop", Loop), ("gathered", Gathered), ("segmented", Segmented)])
def test_adapters_beside_the_weights_have_a_strategy(name, strategy):
    found = service(name, max_rank=6, targets=["q_proj"])
    assert found.strategy is strategy
    assert (found.merged, found.max_rank, found.targets) == (None, 6, ["q_proj"])
    assert found.adapters.func is RandomAdapters
    assert found.are_random


def test_a_merged_adapter_has_an_id():
    found = service("merged", "saved", adapter_id="mine")
    assert (found.merged, found.strategy, found.are_random) == ("mine", None, False)
    assert found.adapters.func is SavedAdapters


def test_the_base_model_serves_none():
    assert service("none") == AdapterService()
    assert not service("none").are_random
