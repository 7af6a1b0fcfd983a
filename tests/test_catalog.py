"""The help text and the nearest name for a mistyped choice."""

import pytest

from framework.catalog import HELP_WIDTH, OVERRIDES, about, check_choices, groups, help_text


def test_every_study_preset_and_override_has_one_line_that_says_what_it_is():
    lines = help_text("generate").splitlines()
    for study in groups()["experiment"]:
        assert about(study)[0].isupper()
        name = study.rpartition("/")[2]
        assert [name, about(study)] in [line.strip().removeprefix("preset=").split(maxsplit=1) for line in lines]
    for override, what in OVERRIDES.items():
        assert f"  {override:32}{what}" in lines
    assert len(OVERRIDES) == 5


def test_the_help_fits_a_terminal_and_names_presets_and_groups():
    lines = help_text("continuous_batching").splitlines()
    assert max(map(len, lines)) <= HELP_WIDTH == 100
    assert "Studies (without experiment=: continuous_batching)" in lines
    named = [line.split("  ")[1:3] for line in lines if line.startswith("  ")]
    assert named.index(["", "preset=course"]) > named.index(["batching", ""])
    assert any(line.split() == ["scheduler", "continuous,", "static"] for line in lines)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("experiment=continuos_batching", "did you mean 'continuous_batching'"),
        ("trace=azure_con", "did you mean 'azure_conv'"),
        ("+scheduler@arms.x.scheduler=statik", "did you mean 'static'"),
        ("experiment=generate,generat", "experiment=generat: there is no such experiment"),
        ("quantization=int8", "did you mean 'int8_"),
        ("experiment=multi_lora/turn", r"did you mean 'multi_lora/turns'\?; allowed: multi_lora/llama_8b, multi_lora/"),
        ("experiment=lora/course", "there is no such experiment; allowed: lora$"),
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
