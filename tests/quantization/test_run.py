"""quantization= on the command line: an arm's own, part of its point, never another arm's model."""

import json

import pytest

from tests.thinning import every_nth

ALL = ["none", "zero_point", "int8_weight_only", "int8_dynamic", "fp8"]


@pytest.fixture
def smallest(smallest):
    return ["experiment=continuous_batching", *smallest]


def test_arms_of_every_scheme_in_one_study(cli, smallest, tmp_path):
    arms = [f"+quantization@arms.{name}.quantization={name}" for name in ALL]
    scheduler = [f"+scheduler@arms.{name}.scheduler=continuous" for name in ALL]
    code, output = cli(*smallest, "~arms.static", "~arms.continuous", *arms, *scheduler, "rates=[2000]")
    assert code == 0, output
    points = [json.loads(path.read_text()) for path in tmp_path.rglob("point.json")]
    targets = {point["config"]["quantization"]["_target_"] for point in points}
    assert targets == {f"framework.quantization.{name}.quantize" for name in ALL}


@pytest.mark.parametrize("name", every_nth(3, ["int8", *ALL]))
def test_generate(cli, name):
    code, output = cli("experiment=generate", f"quantization={name}", "num_output_tokens=3", "device=cpu")
    assert code == 0, output


def test_a_wrong_option_is_one_line(cli, smallest):
    code, output = cli(*smallest, "quantization=int8_weight_only", "quantization.group_size=100", "rates=[4]")
    assert code == 1
    assert "group_size 100 must be null or a power of two" in output
    code, output = cli(*smallest, "quantization=int8_weight_only", "+quantization.grup_size=128")
    assert "did you mean 'group_size'" in output
