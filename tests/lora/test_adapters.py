"""Sources of adapters: which ids there are, and that an id stays inside its folder."""

import pytest
import torch

from framework.lora.adapter_file import save_adapter
from framework.lora.adapters import RandomAdapters, SavedAdapters
from framework.lora.layout import make_layout
from tests.quantization.small_models import make_model


def test_random_adapters_depend_on_seed_and_id_alone():
    layout = make_layout(make_model("gpt2"), None)
    source = RandomAdapters(ranks=[2, 8], seed=1)
    rows = {f"adapter-{index}": source.load(f"adapter-{index}", layout, torch.float32) for index in range(20)}
    assert {len(one) for one in rows.values()} == {2, 8}
    assert len({one[0, 0].item() for one in rows.values()}) == 20
    again = RandomAdapters(ranks=[2, 8], seed=1)
    assert torch.equal(again.load("adapter-7", layout, torch.float32), rows["adapter-7"])
    assert again.check("adapter-7", layout) == len(rows["adapter-7"])
    other = RandomAdapters(ranks=[2, 8], seed=2).load("adapter-7", layout, torch.float32)
    assert not torch.equal(other[:2], rows["adapter-7"][:2])


def test_the_names_of_adapters(tmp_path):
    for name in ("b", "adapter-10", "adapter-2", "7", "A"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").touch()
    (tmp_path / "heldout").mkdir()
    saved = SavedAdapters(path=str(tmp_path))
    assert saved.names(5) == ["7", "A", "adapter-2", "adapter-10", "b"]
    assert saved.names(2) == ["7", "A"]
    with pytest.raises(ValueError, match=r"6 adapters are asked for, and .* has 5: 7, A, adapter-2, adapter-10, b"):
        saved.names(6)
    assert RandomAdapters(ranks=[1]).names(2) == ["adapter-0", "adapter-1"]


def test_a_folder_that_is_not_there():
    with pytest.raises(ValueError, match=r"adapters.path='nowhere' is no folder"):
        SavedAdapters(path="nowhere")


def test_ids_stay_inside_the_folder(tmp_path):
    layout = make_layout(make_model("llama"), None)
    rows = RandomAdapters(ranks=[2]).load("one", layout, torch.float32)
    for folder in ("served/one", "served/of/two", "other"):
        save_adapter(tmp_path / folder, rows, layout, alpha=2.0)
    source = SavedAdapters(path=str(tmp_path / "served"))
    assert (source.check("one", layout), source.check("of/two", layout)) == (2, 2)
    for adapter_id in (str(tmp_path / "other"), "../other", "of/../../other", "", "x" * 9_000_000, "a\0b"):
        for call in (source.check, lambda *arguments: source.load(*arguments, torch.float32), source.load_whole):
            with pytest.raises(ValueError, match="is no name inside") as error:
                call(adapter_id, layout)
            assert len(str(error.value)) < 300


def test_ranks_are_whole_numbers():
    for ranks in ([], [0], [True], [1.5], ["8"]):
        with pytest.raises(ValueError, match=r"ranks.* whole number"):
            RandomAdapters(ranks=ranks)
