"""The help text and the nearest name for a mistyped choice."""

import pytest

from framework.catalog import (
    HELP_WIDTH,
    MOVED,
    OVERRIDES,
    UNTOLD,
    about,
    check_choices,
    entry,
    groups,
    help_text,
    presets_of,
    study_and_preset,
)


def test_every_study_preset_and_override_has_one_line_that_says_what_it_is():
    lines = help_text("generate").splitlines()
    for study in groups()["experiment"]:
        assert about(study)[0].isupper()
        name, preset = study_and_preset(study)
        shown = [line.strip() for line in entry(f"  preset={preset}" if preset else name, about(study)).splitlines()]
        assert " ".join(shown) in " ".join(line.strip() for line in lines)
    for override, what in OVERRIDES.items():
        assert f"  {override:32}{what}" in lines
    assert len(OVERRIDES) == 5


def test_the_help_fits_a_terminal_and_names_presets_and_groups():
    lines = help_text("continuous_batching").splitlines()
    assert max(map(len, lines)) <= HELP_WIDTH == 100
    assert "Studies (without experiment=: continuous_batching)" in lines
    named = [line.split("  ")[1:3] for line in lines if line.startswith("  ")]
    assert named.index(["", "preset=course"]) > named.index(["batching", ""])
    [schedulers] = [line for line in lines if line.startswith("  scheduler ")]
    assert "continuous, " in schedulers


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("experiment=continuos_batching", "did you mean 'continuous_batching'"),
        ("trace=azure_con", "did you mean 'azure_conv'"),
        ("+scheduler@arms.x.scheduler=statik", "did you mean 'static'"),
        ("experiment=generate,generat", "experiment=generat: there is no such experiment"),
        ("quantization=int8_dynamc", "did you mean 'int8_dynamic'"),
        ("experiment=multi_lora/turn", r"did you mean 'multi_lora/turns'\?; allowed: multi_lora/llama_8b, multi_lora/"),
        ("experiment=lora/course", "there is no such experiment; allowed: lora$"),
        ("experiment=slora", "did you mean 'papers/slora'"),
        ("experiment=papers", "did you mean 'papers/"),
        (
            "experiment=papers/slora/lama_8b",
            r"did you mean 'papers/slora/llama_8b'\?; allowed: papers/slora/llama_8b, ",
        ),
        ("trace=_recorded", "there is no such trace"),
        ("model=", "model=: there is no such model"),
    ],
)
def test_an_unknown_choice_is_told_the_nearest(argument, message):
    with pytest.raises(ValueError, match=message):
        check_choices([argument])


def test_what_is_no_choice_is_left_to_hydra():
    check_choices(["-m", "model=tiny,gpt2", "rates=[1]", "model.path=x", "experiment=continuous_batching/course"])
    check_choices(
        [
            "model=glob(*)",
            "model=choice(tiny,gpt2)",
            "hydra/launcher=joblib",
            "--cfg",
            "job",
            "~arms.x",
            "+scheduler@arms.y.scheduler=continuous",
        ]
    )


def test_a_folder_has_presets_of_the_study_beside_it_and_else_studies():
    assert study_and_preset("papers/slora/llama_8b") == ("papers/slora", "llama_8b")
    assert study_and_preset("papers/slora") == ("papers/slora", "")
    assert study_and_preset("multi_lora/turns") == ("multi_lora", "turns")
    assert study_and_preset("multi_lora") == ("multi_lora", "")
    assert presets_of("multi_lora") == ["llama_8b", "turns"]
    assert presets_of("papers/punica") == ["llama_8b"]
    assert presets_of("papers") == []


def test_a_study_is_what_its_docstring_says_and_a_preset_what_its_first_comment_says():
    import experiments.papers.punica

    assert about("papers/punica") == experiments.papers.punica.__doc__
    assert about("papers/punica/llama_8b") == "For a GPU: the same on an 8B model."


def test_what_moved_is_told_where_to():
    for option, where in MOVED.items():
        assert option not in groups()["experiment"]
        with pytest.raises(ValueError, match=f"has moved: {where}$"):
            check_choices([f"experiment={option}"])


def test_shared_files_are_no_options():
    assert not [option for options in groups().values() for option in options if "_" in option.rpartition("/")[2][:1]]


@pytest.mark.parametrize(
    "text", ["rates: [1]", "_target_: 7", "_target_: nowhere.to.be", "_target_: framework.measure.run", "\udcff"]
)
def test_a_study_that_says_nothing_of_itself_is_no_error(tmp_path, monkeypatch, text):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(text.encode(errors="surrogateescape"))
    monkeypatch.setattr("framework.catalog.CONF", tmp_path)
    assert about("mine") == UNTOLD
