"""A cost model on disk, between the entries of its table, and beyond what it was fitted on."""

import json
from dataclasses import replace
from math import inf

import numpy as np
import pytest

from framework.cost.features import Features
from framework.cost.model import Outside, Seconds, look_up, read_cost_model, write_cost_model
from tests.cost_models import cost_model, kind_cost, write_model

STEP = Features(1, 1, 10, 10, 0, 0, 0, 0, 0, 0)


def test_a_model_comes_back_as_it_was_written(tmp_path):
    path = write_model(tmp_path, sizes={"decode": [1, 2]}, notes=["a note"], error={"all": {"bias": 0.1}})
    assert read_cost_model(path) == cost_model(sizes={"decode": [1, 2]}, notes=["a note"], error={"all": {"bias": 0.1}})


def test_an_older_model_has_no_load(tmp_path):
    path = write_model(tmp_path)
    older = json.loads(path.read_text()) | {"version": 2}
    del older["kinds"]["prompt"]["device"]["loaded_rows"]
    path.write_text(json.dumps(older))
    prompt = read_cost_model(path).of_kind("prompt")
    assert prompt.seconds(STEP._replace(loaded_rows=1e9)) == prompt.seconds(STEP)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no cost model: "),
        ("[]", "has version None of cost models, and this is version 3"),
        ('{"version": 0}', "has version 0 of cost models, and this is version 3: calibrate again"),
        ('{"version": 2}', "is no cost model: name: "),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_cost_model(tmp_path / "x.json")
    with pytest.raises(ValueError, match="there is no such file"):
        read_cost_model(tmp_path / "y.json")


def test_a_model_that_is_too_large_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="has at most 200,000"):
        write_cost_model(tmp_path / "x.json", cost_model(notes=["x" * 200_000]))


def test_the_table_is_linear_between_its_entries_and_beyond_the_last():
    cost = kind_cost("decode", seconds=1.0, per_row=0.1)
    assert [cost.seconds_of_rows(num) for num in (1, 6, 11, 21)] == pytest.approx([1.0, 1.5, 2.0, 3.0])


def test_beyond_the_last_entry_it_goes_on_as_over_the_last_half_of_the_rows():
    table = [(1, 1.0), (8, 2.0), (15, 1.0), (16, 4.0)]  # whose last entry is told by few steps
    assert look_up(table, 24) == pytest.approx(4.0 + (4.0 - 2.0))


def test_what_falls_does_not_fall_below_zero():
    assert [look_up([(1, 3.0), (2, 1.0)], num) for num in (1, 2, 9)] == [3.0, 1.0, 0.0]


def test_terms_add_up():
    cost = kind_cost("decode", seconds=1.0, beside=0.25, host=0.5, per_context=0.01)
    assert cost.seconds(STEP) == pytest.approx((1.1, 0.25, 0.5))
    longest = replace(cost, longest=[(1, 4.0)], long_tokens=20)
    assert longest.seconds(STEP) == pytest.approx((1.1 + 4.0 * 10 / 20, 0.25, 0.5))
    several = longest.seconds_of_longest(1, np.array([10, 20, 300]))
    assert several.tolist() == [longest.seconds_of_longest(1, num) for num in (10, 20, 300)] == [2.0, 4.0, 4.0]


def test_the_host_is_waited_for_by_the_step_before_or_by_one_that_has_none_before():
    seconds = Seconds(1.0, 0.25, 0.5)
    assert [seconds.elapsed(launching) for launching in (0.0, 1.25, 3.0)] == [1.25, 1.25, 3.0]
    cost = kind_cost("decode", seconds=1.0, beside=0.25, host=0.5)
    assert cost.seconds(STEP._replace(is_first=1)) == (1.0, 0.75, 0.5)


def test_a_wait_is_what_its_term_adds():
    cost = kind_cost("decode")
    cost.beside["num_adapter_loads"], cost.host["num_adapter_loads"] = 0.1, 1.0
    loads = STEP._replace(num_adapter_loads=2)
    assert [cost.seconds_for("num_adapter_loads", loads, covered) for covered in (0.0, 1.5, 9.0)] == [2.2, 0.7, 0.2]


def test_ratios_are_between_their_quantiles():
    cost = kind_cost("decode", ratios=(0.5, 1.0, 3.0))
    assert [cost.ratio_at(quantile) for quantile in (0, 0.25, 0.5, 1.0)] == [0.5, 0.75, 1.0, 3.0]
    assert cost.mean_ratio == (0.75 + 2.0) / 2


def test_a_step_is_computed_as_the_next_graph():
    model = cost_model(sizes={"decode": [1, 8]})
    assert [model.computed("decode", STEP._replace(num_rows=num)).num_rows for num in (1, 2, 8, 9)] == [1, 8, 8, 9]
    assert model.computed("prompt", STEP._replace(num_rows=2)).num_rows == 2


def test_steps_beyond_what_was_fitted_are_counted_with_how_far_they_are():
    cost = kind_cost("decode", most=100.0)
    outside = Outside()
    for step in (STEP, STEP._replace(num_context_tokens=250), STEP._replace(num_rows=200, num_context_tokens=300)):
        outside.note("decode", *cost.distance(step))
    assert (outside.num_outside, dict(outside.furthest)) == (2, {"num_context_tokens of decode steps": 3.0})
    assert cost.distance(STEP._replace(num_rows=0.5)) == (2.0, "num_rows")
    assert kind_cost("decode", most=0).distance(STEP)[0] == inf


def test_a_kind_of_step_that_was_never_fitted_is_refused():
    with pytest.raises(ValueError, match=r"test was fitted on no prompt steps.*it knows decode"):
        cost_model(kinds={"decode": kind_cost("decode")}).of_kind("prompt")


def test_the_file_is_plain_json(tmp_path):
    assert json.loads(write_model(tmp_path).read_text())["subject"]["dtype"] == "float32"
