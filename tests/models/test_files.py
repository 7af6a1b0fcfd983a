"""Files that are no JSON, no safetensors or elsewhere: one line with the path and what to do."""

import json

import pytest
import torch
from safetensors.torch import save_file

from framework.models.files import inside, opened_tensors, read_json
from tests.models.loaded_models import load


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; correct it or copy it again"),
        (b'{"model_type": "llama",', r"is no JSON .*line 1 column 24 "),
        (b'{\n"a": 1,\n}', r"is no JSON .*line [23] column \d+ "),
        (b"[1, 2]", r"holds \[1, 2\], and not a JSON object"),
        (b'"' + 9_000_000 * b"x" + b'"', "holds 'x{78}…, and not a JSON object"),
        (b"\xef\xbb\xbf{}", "begins with a byte order mark: save it as UTF-8 without one"),
        (b"\x80\x02}q\x00.", r"is no text in UTF-8 \(byte 0\)"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": 1' + 5000 * b"0" + b"}", "is no JSON .*digits"),
    ],
)
def test_what_is_no_json_object_names_its_file(folder, content, message):
    path = folder / "config.json"
    path.write_bytes(content)
    for call in (lambda: read_json(path), lambda: load(folder)):
        with pytest.raises(ValueError, match=f"{path} {message}"):
            call()


def test_a_truncated_or_missing_file_of_tensors(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(9)}, path)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b"", b"PK\x03\x04" + 99 * b"x", None):
        path.write_bytes(content) if content is not None else path.unlink()
        with pytest.raises(ValueError, match=f"{path} is missing or broken"), opened_tensors(path):
            pass


def test_names_stay_inside_their_folder(tmp_path):
    assert inside(tmp_path, "a/b.c") == tmp_path / "a/b.c"
    for name in ("/etc/passwd", "../a", "a/../../b", "", "x" * 256, "a\0b", str(tmp_path)):
        with pytest.raises(ValueError, match=f"is no name inside {tmp_path}"):
            inside(tmp_path, name)


def test_links_of_the_hubs_cache_are_followed(folder, tmp_path_factory):
    blobs = tmp_path_factory.mktemp("blobs")
    (folder / "model.safetensors").rename(blobs / "0")
    (folder / "model.safetensors").symlink_to(blobs / "0")
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == load(folder).config.num_layers
