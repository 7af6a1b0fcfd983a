"""experiment=scaling: its arms, and as a user calls it, on a modelled engine."""

import json
from functools import partial

import pandas as pd
import pytest

from experiments.scaling.study import make_arms
from framework.config import describe
from framework.router.random import random
from tests.study.fake_study import DEFAULTS

ROUTERS = {"random": partial(random)}


def test_every_arm_has_as_many_requests_for_each_of_its_servers():
    arms = make_arms(DEFAULTS, ROUTERS, [2, 8])
    assert {name: arm.servers for name, arm in arms.items()} == {"one": 1, "random-2": 2, "random-8": 8}
    assert [describe(arm.trace)["num_requests"] for arm in arms.values()] == [48, 96, 384]


def test_one_server_is_not_asked_for_again():
    with pytest.raises(ValueError, match="num_servers=1 is not a whole number of at least 2"):
        make_arms(DEFAULTS, ROUTERS, [1, 2])
    with pytest.raises(ValueError, match="give at least one of each"):
        make_arms(DEFAULTS, ROUTERS, [])
    with pytest.raises(ValueError, match="servers is none of the study's keys"):
        make_arms(DEFAULTS | {"servers": 3}, ROUTERS, [2])


@pytest.mark.nightly
def test_capacities_of_one_and_two_servers(cli, tmp_path):
    code, output = cli(
        "experiment=scaling", "engine=modelled", "tracking=none", "num_servers=[2]",
        "trace.num_requests=84", "~routers.round_robin",
    )  # fmt: skip
    assert code == 0, output
    folder = tmp_path / "outputs/scaling"
    rows = pd.read_csv(folder / "scaling.csv")
    assert rows["servers"].tolist() == [1, 2]
    assert 0.5 < rows["efficiency"][1] < 1.5
    assert "scaling" in json.loads((folder / "report.json").read_text())["figures"]
