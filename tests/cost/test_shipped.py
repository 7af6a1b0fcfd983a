"""Which cost model an arm gets, and why it gets none."""

from dataclasses import replace

import pytest

from framework.cost.model import read_cost_model
from framework.cost.shipped import FOLDER, UNKNOWN, Options, check_cost_model, choose_cost_model, differences
from tests.cost_models import cost_model, target, write_model

OTHER = replace(target().subject, dtype="bfloat16")


def test_the_one_that_fits_is_chosen(tmp_path):
    write_model(tmp_path, name="a", subject=OTHER)
    path = write_model(tmp_path, name="b")
    assert choose_cost_model(target().subject, None, tmp_path) == path


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"there is no cost model in .*: make one with experiment=calibrate"):
        choose_cost_model(target().subject, None, tmp_path)


def test_several_that_fit_are_told_apart_by_their_device(tmp_path):
    write_model(tmp_path, name="a", device="GPU 1")
    path = write_model(tmp_path, name="b", device="GPU 2")
    with pytest.raises(ValueError, match=r"a.json \(GPU 1\), b.json \(GPU 2\): choose one with engine.device, "):
        choose_cost_model(target().subject, None, tmp_path)
    assert choose_cost_model(target().subject, "2", tmp_path) == path
    with pytest.raises(
        ValueError, match=r"engine.device=TPU: no cost model is of such a device; those there are: GPU 1, GPU 2"
    ):
        choose_cost_model(target().subject, "TPU", tmp_path)


def test_where_none_fits_the_nearest_say_what_they_have_otherwise(tmp_path):
    write_model(tmp_path, name="a", subject=OTHER)
    with pytest.raises(
        ValueError, match=r"a has dtype 'bfloat16', not 'float32'\). Make one with experiment=calibrate"
    ):
        choose_cost_model(target().subject, None, tmp_path)


def test_a_model_of_another_arm_is_refused_naming_both_sides():
    with pytest.raises(
        ValueError, match=r"engine.path=x.json is of another arm: it has dtype 'bfloat16', not 'float32'"
    ):
        check_cost_model(cost_model(subject=OTHER), target().subject, "x.json")


def test_keys_and_values_of_another_dtype_and_another_overlap_are_told():
    subject, model = target().subject, cost_model(num_steps_ahead=1)
    int8 = replace(model, engine=replace(model.engine, kv_dtype="int8"))
    assert differences(model, subject, Options(overlap=True)) == []
    assert differences(model, subject, Options(overlap=False)) == ["overlap True, not False"]
    assert differences(model, subject, Options(kv_dtype="int8")) == ["kv_dtype 'float32', not 'int8'"]
    assert differences(int8, subject, Options()) == ["kv_dtype 'int8', not 'float32'"]
    assert differences(int8, subject, Options(kv_dtype="int8")) == []
    unknown = replace(model, engine=replace(model.engine, kv_dtype=UNKNOWN))
    assert differences(unknown, subject, Options(kv_dtype="int8")) == []


def test_every_shipped_model_can_be_read_and_says_how_far_it_is():
    for model in map(read_cost_model, FOLDER.glob("*.json")):
        assert model.error["all"]["num_steps"] > 0
        assert model.environment["git_commit"]
