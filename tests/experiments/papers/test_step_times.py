"""Seconds of single steps by a cost model, reckoned by hand, and executed; what cannot be timed is refused."""

import pytest

from experiments.papers.step_times import chunked_seconds, decode_seconds, make_ready, mixed_seconds, timed
from framework.engine.modelled import ModelledEngine
from tests.cost_models import kind_cost, target, write_model
from tests.engine.torch_engine.test_engine import make_engine
from tests.fake_engine import FakeEngine


@pytest.mark.parametrize("num_steps_ahead", [0, 1])
def test_a_cost_model_tells_what_steps_take_on_the_device(tmp_path, num_steps_ahead):
    kinds = {
        "decode": kind_cost("decode", 0.01, per_row=0.001, per_context=1e-5, host=0.5),
        "prompt": kind_cost("prompt", 0.02, per_row=0.001, num_pairs=1e-6, is_first=0.3),
    }
    path = str(write_model(tmp_path, kinds=kinds, num_steps_ahead=num_steps_ahead))
    engine = timed(ModelledEngine(target(), path=path))
    make_ready(engine, 4, 40)
    assert decode_seconds(engine, 4, 100, 1) == pytest.approx(0.013 + 400e-5)
    together, alone = chunked_seconds(engine, 40, 10, 1)
    assert alone == pytest.approx(0.02 + 39e-3 + 820e-6)
    assert together == pytest.approx(4 * (0.02 + 9e-3) + 820e-6)  # the same pairs
    mixed, alone = mixed_seconds(engine, 8, 2, 100, 1)
    assert mixed == pytest.approx(0.02 + 9e-3 + 36e-6)  # of the prompt's rows alone
    assert alone == pytest.approx(0.02 + 9e-3 + 55e-6)


def test_steps_are_executed_where_the_engine_does_so():
    engine = timed(make_engine())
    make_ready(engine, 2, 16)
    times = [decode_seconds(engine, 2, 9, 1), *mixed_seconds(engine, 7, 1, 9, 1), *chunked_seconds(engine, 16, 8, 1)]
    assert all(0 < seconds < 10 for seconds in times)


def test_an_engine_without_times_of_its_own_is_refused():
    with pytest.raises(ValueError, match="FakeEngine computes no steps that could be timed"):
        timed(FakeEngine())
