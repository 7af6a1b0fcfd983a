"""A relative path is looked for here, then in the repository; a study's folder is one that can be written."""

import pytest

from framework.paths import ROOT, check_writable, locate, output_folder


def test_what_is_here_comes_before_the_repositorys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("run.py") == ROOT / "run.py"
    (tmp_path / "run.py").touch()
    assert locate("run.py").resolve() == tmp_path / "run.py"
    assert locate(str(tmp_path / "run.py")) == tmp_path / "run.py"


def test_what_is_nowhere_is_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not locate("nowhere/at all").exists()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_folder("~/x") == tmp_path / "x"
    assert list(tmp_path.iterdir()) == []  # nothing is written yet
    with pytest.raises(ValueError, match="output_dir=~nobody-of-that-name/x: "):
        output_folder("~nobody-of-that-name/x")


@pytest.mark.parametrize("path", ["a/b", "x", "x/points", "x/figures"])
def test_a_file_where_a_folder_belongs_is_named(tmp_path, path):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).touch()
    output_dir = "a/b/c" if path == "a/b" else "x"
    with pytest.raises(ValueError, match=f"{path} is a file, where a folder belongs"):
        output_folder(str(tmp_path / output_dir))


@pytest.mark.parametrize("name", [".lock", "points.csv", "report.json", "report.html"])
def test_a_folder_where_a_file_belongs_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is a folder, where a file belongs"):
        output_folder(str(tmp_path))


def test_what_cannot_be_written_is_named_unless_points_are_finished_there(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # a test may run as root
    for path in (tmp_path, tmp_path / "new" / "x"):
        with pytest.raises(ValueError, match=f"{tmp_path} cannot be written"):
            output_folder(str(path))
    (tmp_path / "points.csv").touch()
    assert output_folder(str(tmp_path)) == tmp_path
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be written"):
        check_writable(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be written"):
        check_writable(tmp_path / "not there")
