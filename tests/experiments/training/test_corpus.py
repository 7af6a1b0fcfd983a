"""The text of train_tiny: what is read, in which order, and that the parts never share anything."""

import pytest

from experiments.training.corpus import join, read_corpus, sample


def read(folder, suffixes=(".py",), exclude=("test",), held_out_share=0.3, max_held_out_bytes=10**6):
    return read_corpus(
        folder=str(folder),
        suffixes=list(suffixes),
        exclude=list(exclude),
        held_out_share=held_out_share,
        max_held_out_bytes=max_held_out_bytes,
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test/hidden.py").write_text("excluded")
    for index in range(40):
        (tmp_path / f"{index:02}.py").write_text(f"line {index}\n" * 20)
    (tmp_path / "copy.py").write_text("line 3\n" * 20)
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "zero.py").write_bytes(b"a\0b")
    (tmp_path / "notes.md").write_text("another suffix")
    return tmp_path


def test_what_is_read(folder):
    corpus = read(folder)
    names = sorted(document.name for document in corpus.train + corpus.held_out)
    assert names == [f"{index:02}.py" for index in range(40)]  # copy.py comes after 03.py
    assert [document.name for document in corpus.train] == sorted(document.name for document in corpus.train)
    assert join(corpus.train[:2]) == b"\0" + corpus.train[0].content + b"\0" + corpus.train[1].content


def test_a_file_stays_held_out_whatever_else_there_is(folder):
    before = {document.name for document in read(folder).held_out}
    for name in list(before)[:2]:
        (folder / name).write_text("changed\n" + name)
    (folder / "new.py").write_text("new")
    after = {document.name for document in read(folder).held_out}
    assert before == after - {"new.py"}
    assert read(folder).digest == read(folder).digest


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_the_standard_library_is_enough_and_never_overlaps(share):
    exclude = ["site-packages", "test", "tests", "encodings", "idlelib", "distutils", "pydoc_data"]
    corpus = read_corpus(
        folder=None, suffixes=[".py"], exclude=exclude, held_out_share=share, max_held_out_bytes=100_000
    )
    names = [{document.name for document in part} for part in (corpus.train, corpus.held_out)]
    contents = [{document.digest for document in part} for part in (corpus.train, corpus.held_out)]
    assert not names[0] & names[1]
    assert not contents[0] & contents[1]
    assert len(join(corpus.train)) > 3e6
    assert max(len(document.content) for document in corpus.held_out) <= 100_000
    assert len(corpus.held_out) == pytest.approx(share * (len(corpus.train) + len(corpus.held_out)), rel=0.7)


def test_sample_cuts_at_lines_and_has_many_documents(folder):
    held_out = read(folder).held_out
    assert all(len(sample(held_out, size)[0]) <= size for size in range(200))
    text, names = sample(held_out, 400)
    excerpts = text.split(b"\0")[1:]
    assert len(excerpts) == len(names) >= 8
    assert len(text) <= 400
    for name, excerpt in zip(names, excerpts, strict=True):
        assert (folder / name).read_bytes().startswith(excerpt)
        assert excerpt.endswith(b"\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out_share": 0.0}, "held_out_share 0.0"),
        ({"suffixes": [".rs"]}, "0 files"),
        ({"exclude": ["*"]}, "0 files"),
    ],
)
def test_bad_text(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        read(folder, **changes)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"no folder of text at .*nowhere"):
        read(tmp_path / "nowhere")
