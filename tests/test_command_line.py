"""The command line before Hydra takes it: presets, sweeps, and one line for what cannot be read or composed."""

import shutil

import pytest

from framework.catalog import CONF
from framework.command_line import check_overrides, expand_preset, prepare, study_of


@pytest.mark.parametrize(
    ("arguments", "expanded"),
    [
        (["rates=[1]"], ["rates=[1]"]),
        (["experiment=lora", "rates=[1]"], ["experiment=lora", "rates=[1]"]),
        (["preset=turns", "-m"], ["experiment=multi_lora/turns", "-m"]),
        (["-m", "experiment=kv_cache,batching", "preset=course"], ["experiment=kv_cache/course,batching/course", "-m"]),
        (["preset=a,b", "experiment=one,two"], ["experiment=one/a,one/b,two/a,two/b"]),
    ],
)
def test_a_preset_is_a_file_beside_its_study(arguments, expanded):
    assert expand_preset(arguments) == expanded


def test_two_presets_are_one_too_many():
    with pytest.raises(ValueError, match="preset=a preset=b: a study takes one preset"):
        expand_preset(["preset=a", "preset=b"])


def test_the_last_experiment_counts_and_the_default_is_multi_lora():
    assert study_of(["rates=[1]"]) == "multi_lora"
    assert study_of(["experiment=lora", "experiment=batching/course"]) == "batching/course"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["experiment=kv_cache", "num_repeets=3"],
            "unknown key 'num_repeets' in the study; did you mean 'num_repeats'",
        ),
        (["rates={"], "rates={ cannot be read: "),
        (["rates"], "'rates' is no override: key=value"),
        (["experiment=cluster", "rates=[20]"], r"rates are multiples; give a list by '~rates' '\+rates=\["),
        (["output_dir=a b c ü"], "cannot be read: quote the value"),
        (["-m", "experiment=kv_cache,batching", "prompt=a"], "unknown key 'prompt' in the study"),  # batching's prompts
    ],
)
def test_what_cannot_be_composed_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_overrides(arguments)


def test_every_option_of_a_swept_group_is_composed():
    check_overrides(["-m", "experiment=kv_cache,batching", "num_repeats=1,2"])


def test_a_sweep_may_be_asked_for_anywhere():
    arguments = ["experiment=kv_cache", "num_repeats=1,2", "-m"]
    assert prepare(arguments) == ["-m", "experiment=kv_cache", "num_repeats=1,2"]


def test_what_is_wrong_ends_the_process_with_one_line(monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as raised:
        prepare(["experiment=kv_cach"])
    assert str(raised.value).startswith("error: ")
    assert "did you mean 'kv_cache'" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x:\ty", "bad.yaml, line 3, column 3: .*cannot start any token"),
        ("x: [1", r"bad.yaml, line 4, column 1: .*expected ',' or '\]'"),
        ("x: 1\nx: 2", "bad.yaml, line 4, column 1: .*found duplicate key x"),
        ("x: !!python/object/apply:os.getcwd []", "bad.yaml, line 3, column 4: could not determine a constructor"),
        ("x: *y", "bad.yaml, line 3, column 4: found undefined alias"),
        ("x: \x00", "unacceptable character"),
        ("x: \udcff", "is not UTF-8 text"),
    ],
)
def test_a_yaml_that_cannot_be_read_is_named_with_its_line(tmp_path, monkeypatch, line, message):
    shutil.copytree(CONF, tmp_path / "conf")
    text = f"# @package _global_\n_target_: experiments.report.run\n{line}\n"
    (tmp_path / "conf" / "experiment" / "bad.yaml").write_bytes(text.encode(errors="surrogateescape"))
    monkeypatch.setattr("framework.command_line.CONF", tmp_path / "conf")
    with pytest.raises(ValueError, match=message) as raised:
        check_overrides(["experiment=bad"])
    assert "\n" not in str(raised.value)


def test_a_folder_that_hydra_cannot_make_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for arguments in (["hydra.run.dir=file/x"], ["-m", "hydra.sweep.dir=file/x"]):
        with pytest.raises(SystemExit, match=r"error: hydra\.(run|sweep)\.dir=file/x cannot be made: "):
            prepare(arguments)
    assert prepare(["--cfg", "job", "hydra.run.dir=file/x"])  # where nothing runs, nothing is made
    assert prepare(["hydra.run.dir=new/x"])
    assert (tmp_path / "new" / "x").is_dir()
