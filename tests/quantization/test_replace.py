"""Which layers are replaced, and which weights are refused."""

import pytest

from tests.quantization.schemes import SCHEMES
from tests.quantization.small_models import CONFIGS, make_model


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "none"])
def test_weights_that_are_no_numbers_are_refused_by_name(name, family):
    model = make_model(family)
    model.layers[1].o_proj.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"layers.1.o_proj.weight has values that are NaN"):
        SCHEMES[name][0](model)


@pytest.mark.parametrize("name", ["zero_point", "int8_whole"])
def test_so_are_those_of_the_embedding(name):
    model = make_model("gpt2")
    model.embed_positions.weight[1, 1] = float("inf")
    with pytest.raises(ValueError, match=r"embed_positions.weight has values"):
        SCHEMES[name][0](model)
