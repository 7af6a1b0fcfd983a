"""A relative path is looked for here, then in the repository."""

from framework.paths import ROOT, locate


def test_what_is_here_comes_before_the_repositorys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("run.py") == ROOT / "run.py"
    (tmp_path / "run.py").touch()
    assert locate("run.py").resolve() == tmp_path / "run.py"
    assert locate(str(tmp_path / "run.py")) == tmp_path / "run.py"


def test_what_is_nowhere_is_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not locate("nowhere/at all").exists()
