"""Where a study runs: its device, its folder and its words."""

import pytest

from framework.study.place import open_place


def test_a_place_has_a_device_and_says_lines_as_they_are(tmp_path, capsys):
    place = open_place("cpu", str(tmp_path / "later"))
    assert place.device.type == "cpu"
    assert place.device_name == place.environment["device"]
    line = "[bold]100%[/bold] of /a/folder/" + "x" * 200
    place.say(line)
    assert capsys.readouterr().out == f"{line}\n"
    assert not place.output_dir.exists()


def test_a_device_that_there_is_none_of_is_refused(tmp_path):
    with pytest.raises(ValueError, match="device=tpu is not one of auto, cpu, cuda"):
        open_place("tpu", str(tmp_path))
