"""Files there and back, and every file that cannot be served is an error that names the adapter."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.lora.adapter_file import save_adapter
from framework.lora.adapters import RandomAdapters, SavedAdapters
from framework.lora.layout import make_layout
from framework.lora.loop import Loop
from framework.lora.pool import AdapterPool
from tests.quantization.small_models import CONFIGS, make_model

NAMES = {"llama": "layers.0.self_attn.k_proj", "gpt2": "h.0.mlp.c_proj"}


def random_rows(layout, name="one", ranks=(6,), seed=0):
    return RandomAdapters(ranks=list(ranks), seed=seed).load(name, layout, torch.float32)


@pytest.fixture(params=CONFIGS)
def saved(request, tmp_path):
    """A layout, a folder with the adapter "one" for it, and its rows."""
    layout = make_layout(make_model(request.param), None)
    rows = random_rows(layout)
    save_adapter(tmp_path / "one", rows, layout, alpha=12.0)
    return layout, tmp_path, rows


def test_what_is_saved_is_loaded(saved):
    layout, folder, rows = saved
    source = SavedAdapters(path=str(folder))
    assert source.check("one", layout) == 6
    loaded = source.load("one", layout, torch.float32)
    for name, factors in layout.parts(rows).items():
        for factor, other in zip(factors, layout.parts(loaded)[name], strict=True):
            torch.testing.assert_close(factor, other)
    assert json.loads((folder / "one/adapter_config.json").read_text())["lora_alpha"] == 12.0


def edit_config(folder, **changes):
    path = folder / "one/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, edit):
    path = folder / "one/adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "lacks the A, the B or the magnitudes of "),
        ({"rank_pattern": {"mlp.*_proj|c_proj": 4}}, "belongs to another base model: .* with rank 4 this model needs"),
        ({"rank_pattern": {"q_proj": True}}, "rank_pattern.q_proj=True; it should be a valid integer"),
        ({"rank_pattern": {"(q_proj": 4}}, "the pattern '.q_proj' is no regular expression"),
        ({"alpha_pattern": {"q_proj": "4"}}, "alpha_pattern.q_proj='4'; it should be a valid number"),
        ({"modules_to_save": ["norm"]}, "modules_to_save=.'norm'. is not supported, only lm_head, "),
        ({"ensure_weight_tying": True}, "ensure_weight_tying=True is not supported"),
        ({"bias": "all"}, "bias='all'; it should be 'none'"),
        ({"r": True}, "r=True; it should be a valid integer"),
        ({"r": 10**9}, "r=1000000000; it should be less than or equal to 65536"),
        ({"r": None}, "lacks 'r'"),
        ({"lora_alpha": 10**400}, "lora_alpha=10+…; it should be a "),
        ({"use_rslora": "x" * 9_000_000}, "use_rslora='x{78}…; it should be a valid boolean"),
        ({"x" * 9_000_000: 1}, "x{79}…=1 is not supported"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"invented_in_2027": 1}, "invented_in_2027=1"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model's weights too"),
        ({"peft_type": "IA3"}, "peft_type='IA3'; it should be 'LORA'"),
        ({"r": 0}, "r=0; it should be greater than or equal to 1"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan; it should be a finite number"),
        ({"r": 5}, "belongs to another base model: .* with rank 5 this model needs"),
    ],
)
def test_options_that_are_not_supported(saved, changes, message):
    layout, folder, _ = saved
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=f"adapter 'one'.*{message}"):
        SavedAdapters(path=str(folder)).check("one", layout)


def test_what_is_off_is_no_option(saved):
    layout, folder, _ = saved
    edit_config(folder, use_dora=False, rank_pattern={}, layer_replication=None, invented_in_2027=None)
    assert SavedAdapters(path=str(folder)).check("one", layout) == 6


def test_rslora_divides_by_the_root_of_the_rank(saved):
    layout, folder, rows = saved
    edit_config(folder, use_rslora=True)
    loaded = SavedAdapters(path=str(folder)).load("one", layout, torch.float32)
    (a, b), *_ = layout.parts(rows).values()
    (same_a, larger_b), *_ = layout.parts(loaded).values()
    torch.testing.assert_close(same_a, a)
    torch.testing.assert_close(larger_b, b * 6**0.5)


def test_a_broken_or_missing_file(saved):
    layout, folder, _ = saved
    source = SavedAdapters(path=str(folder))
    with pytest.raises(ValueError, match="there is no adapter 'two'"):
        source.check("two", layout)
    path = folder / "one/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"adapter 'one': .*adapter_model.safetensors is missing or broken"):
        source.check("one", layout)
    path.unlink()
    with pytest.raises(ValueError, match=r"adapter 'one': .*adapter_model.safetensors is missing or broken"):
        source.check("one", layout)
    path.with_name("adapter_model.bin").touch()
    with pytest.raises(
        ValueError, match=r"adapter 'one' has adapter_model.bin, a pickle.*convert it, python -c .*save_"
    ):
        source.check("one", layout)
    (folder / "one/adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"adapter 'one': .*adapter_config.json is nested too deeply"):
        source.check("one", layout)
    (folder / "one/adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter 'one': .*adapter_config.json is no JSON"):
        source.check("one", layout)
    (folder / "one/adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"adapter 'one': .*adapter_config.json holds \[\], and not a JSON object"):
        source.check("one", layout)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors, name: tensors.pop(f"{name}.lora_B.weight"), "lacks the A or the B of"),
        (lambda tensors, name: tensors.clear(), "lacks the A or the B of every layer"),
        (lambda tensors, name: tensors.update({"lm_head.lora_A.weight": torch.zeros(6, 64)}), "has 'lm_head.lora_A"),
        (
            lambda tensors, name: tensors.update({f"{name}.lora_magnitude_vector": torch.zeros(6)}),
            "has .*lora_magnitude",
        ),
    ],
)
def test_tensors_that_do_not_fit(saved, edit, message):
    layout, folder, rows = saved
    name = f"base_model.model.{layout.prefix}{next(iter(layout.parts(rows)))}"
    edit_tensors(folder, lambda tensors: edit(tensors, name))
    with pytest.raises(ValueError, match=f"adapter 'one' {message}"):
        SavedAdapters(path=str(folder)).check("one", layout)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_that_is_none_or_infinite_names_its_tensor(saved, value, dtype):
    layout, folder, rows = saved
    name = f"base_model.model.{layout.prefix}{list(layout.parts(rows))[-1]}.lora_B.weight"
    edit_tensors(folder, lambda tensors: tensors[name][-1:, -1:].fill_(value))
    edit_tensors(folder, lambda tensors: tensors.update({key: one.to(dtype) for key, one in tensors.items()}))
    with pytest.raises(ValueError, match=f"adapter 'one': '{name}' has values that are NaN or infinite"):
        SavedAdapters(path=str(folder)).check("one", layout)


def test_whole_numbers_are_no_weights(saved):
    layout, folder, _ = saved
    edit_tensors(folder, lambda tensors: tensors.update({key: one.to(torch.int8) for key, one in tensors.items()}))
    with pytest.raises(ValueError, match=r"adapter 'one': .* is of I8; weights are of F64, F32, F16, BF16"):
        SavedAdapters(path=str(folder)).check("one", layout)


def test_an_adapter_of_another_model_or_other_targets(saved):
    layout, folder, _ = saved
    family = "gpt2" if layout.prefix == "transformer." else "llama"
    with pytest.raises(ValueError, match=r"adapter 'one' has .* of no layer that lora.targets names"):
        SavedAdapters(path=str(folder)).check("one", make_layout(make_model(family), [NAMES[family]]))
    other = make_layout(make_model("llama" if family == "gpt2" else "gpt2"), None)
    with pytest.raises(ValueError, match="adapter 'one' has"):
        SavedAdapters(path=str(folder)).check("one", other)


def test_a_rank_above_the_maximum(saved):
    layout, folder, _ = saved
    source = SavedAdapters(path=str(folder))
    pool = AdapterPool(layout, source, Loop(), torch.zeros(2, 4, layout.width))
    with pytest.raises(ValueError, match=r"adapter 'one' has rank 6, more than lora.max_rank=4"):
        pool.check("one")
