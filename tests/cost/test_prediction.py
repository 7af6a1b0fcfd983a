"""A prediction draws by its seed, and counts what it has seen and what is outside."""

import pytest

from framework.core import Batch, Request, Sequence, StepResult
from framework.cost.load import Load
from framework.cost.prediction import Prediction
from tests.cost_models import cost_model, kind_cost

BATCH = Batch([Sequence(Request(0, 0.0, 8, 4))], [8], [1], 0, 1)  # of 9 context tokens


def predict(kinds=None, **options):
    model = cost_model(**({} if kinds is None else {"kinds": kinds}))
    return Prediction(model, **{"has_adapters": False, "noise": False, "seed": 0} | options)


def test_the_step_before_waits_for_the_hosts_work():
    cost = kind_cost("decode", 0.01)
    cost.host["constant"] = 0.004
    prediction = predict({"decode": cost})
    before = StepResult([], 0.003, device=0.003)
    assert prediction.step(BATCH, 1, None).elapsed == pytest.approx(0.014)
    assert prediction.step(BATCH, 1, before).elapsed == pytest.approx(0.01)
    assert before.elapsed == pytest.approx(0.004)


def test_noise_is_of_the_seed():
    kinds = {"decode": kind_cost("decode", ratios=(0.5, 1.5))}
    first, again, other, mean = (
        predict(kinds, **options).step(BATCH, 0, None).elapsed
        for options in ({"noise": True}, {"noise": True}, {"noise": True, "seed": 1}, {})
    )
    assert first == again != other
    assert mean == pytest.approx(0.01)


def test_a_prompt_behind_another_takes_longer_until_decodes_let_the_device_rest():
    prediction = predict({"prompt": kind_cost("prompt", 0.02, loaded_rows=1e-6), "decode": kind_cost("decode")})
    prompt = Batch([Sequence(Request(0, 0.0, 8, 4))], [0], [8], 8, 0)
    load = Load()
    for batch in (prompt, prompt, BATCH, BATCH, prompt):
        step = prediction.step(batch, 0, None)
        expected = 0.01 if batch is BATCH else 0.02 + 1e-6 * 8 * load.rate
        assert step.elapsed == pytest.approx(expected)
        if batch is BATCH:
            load.decode(step.elapsed)
        else:
            load.prompt(8, step.elapsed)


def test_what_was_seen_is_not_outside():
    kinds = {"decode": kind_cost("decode", most=2.0)}
    seen = {("decode", 1, 1, 9, 9, 0, 0.0, 0, 0, 0, 0, 0.0)}
    for known, counts in ((seen, (1, 1, 0)), (frozenset(), (1, 0, 1))):
        prediction = predict(kinds, seen=known)
        prediction.step(BATCH, 0, None)
        assert (prediction.outside.num_steps, prediction.num_seen, prediction.outside.num_outside) == counts
