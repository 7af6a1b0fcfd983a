"""What PEFT has beyond A and B on plain projections: ranks by pattern, adapters on tables, whole tables, DoRA."""

from functools import partial

import pytest
import torch

from framework.lora.adapter_file import save_adapter
from framework.lora.adapters import RandomAdapters, SavedAdapters
from framework.lora.attached import attached
from framework.lora.layout import make_layout
from framework.lora.merged import merge_adapter
from framework.lora.pool import serve_adapters
from framework.measure.perplexity import window_logits
from framework.quantization import int8_weight_only
from tests.engine.torch_engine.test_engine import load
from tests.lora.test_peft import PROMPT, STRATEGIES, engine_logits
from tests.models.checkpoints import make_hf_model

peft = pytest.importorskip("peft")
EMBEDDING = {"llama": "embed_tokens", "llama_biased": "embed_tokens", "gpt2": "wte"}
FAMILIES = [*EMBEDDING]  # tied, with a head of its own, tied
BATCHED = ("patterns", "tables")
ROWS = ["tables", None, "patterns", "patterns", None, "tables"]


def configs(family):
    """PEFT's configs by name; the first two are served in batches."""
    embedding = EMBEDDING[family]
    inner, wide = (
        (["c_attn", "mlp.c_proj"], "c_attn") if family == "gpt2" else (["q_proj", "v_proj", "up_proj"], "up_proj")
    )
    common = {"init_lora_weights": False, "task_type": "CAUSAL_LM", "fan_in_fan_out": family == "gpt2"}
    ranks = {wide: 7, "layers.1.self_attn.q_proj": 2, "h.1.mlp.c_proj": 2}
    patterns = {"rank_pattern": ranks, "alpha_pattern": {f".*1.*{wide}": 9, inner[0]: 2}}
    tables = {"target_modules": [*inner, embedding, "lm_head"]}
    return {
        "patterns": peft.LoraConfig(r=4, lora_alpha=8, target_modules=inner, **patterns, **common),
        "tables": peft.LoraConfig(r=8, lora_alpha=4, use_rslora=True, **tables, **common),
        "head": peft.LoraConfig(r=3, target_modules=["lm_head"], **common),
        "dora": peft.LoraConfig(r=4, use_dora=True, **tables, **common),
        "whole": peft.LoraConfig(r=4, target_modules=inner, modules_to_save=["lm_head", embedding], **common),
        "whole embedding": peft.LoraConfig(r=4, target_modules=inner, modules_to_save=[embedding], **common),
    }


def randomised(model):
    """Magnitudes and whole tables are those of the base model at first, which would hide that they are not read."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_magnitude_vector" in name or "modules_to_save" in name:
            parameter.data *= 1 + 0.3 * torch.rand(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    """A folder with a model and its adapters, PEFT's logits by name, and those of the mixed batch ROWS."""
    family, folder, prompt = request.param, tmp_path_factory.mktemp(request.param), torch.from_numpy(PROMPT)
    make_hf_model(family).save_pretrained(folder / "base")
    expected = {}
    torch.manual_seed(0)
    for name, config in configs(family).items():
        model = randomised(peft.get_peft_model(make_hf_model(family), config))
        model.save_pretrained(folder / "adapters" / name)
        with torch.no_grad():
            expected[name] = model(prompt).logits
    mixed = torch.stack([expected[name or "patterns"][row] for row, name in enumerate(ROWS)])
    with torch.no_grad():
        base = make_hf_model(family)(prompt).logits
    mixed[[row for row, name in enumerate(ROWS) if name is None]] = base[
        [row for row, name in enumerate(ROWS) if name is None]
    ]
    return family, folder, expected, mixed


def source(folder):
    return partial(SavedAdapters, path=str(folder / "adapters"))


def targets(family):
    blocks = ["c_attn", "mlp.c_proj"] if family == "gpt2" else ["q_proj", "v_proj", "up_proj"]
    return [*blocks, EMBEDDING[family], "lm_head"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_mixed_batches(saved, name):
    family, folder, _, expected = saved
    room = {"num_slots": 2, "max_rank": 9, "targets": targets(family)}
    model = serve_adapters(load(folder / "base"), strategy=STRATEGIES[name], adapters=source(folder), **room)
    logits = engine_logits(model, ROWS, 5, names=BATCHED)
    torch.testing.assert_close(logits, expected[:, 4:], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["patterns", "tables", "head", "dora", "whole", "whole embedding"])
def test_merged(saved, name):
    family, folder, expected, _ = saved
    named = targets(family) if name in ("tables", "head", "dora") else None
    model = merge_adapter(load(folder / "base"), adapters=source(folder), adapter_id=name, targets=named)
    logits = window_logits(model, torch.from_numpy(PROMPT))
    torch.testing.assert_close(logits, expected[name], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("name", "message"), [("dora", "use_dora=True"), ("whole", "a whole lm_head of its own")])
def test_what_only_a_merge_serves_is_refused_by_name(saved, name, message):
    family, folder, _, _ = saved
    layout = make_layout(load(folder / "base"), targets(family))
    for call in (source(folder)().check, lambda *arguments: source(folder)().load(*arguments, torch.float32)):
        with pytest.raises(ValueError, match=f"adapter '{name}'.*{message}.*lora=merged"):
            call(name, layout)


def test_tables_need_to_be_named(saved):
    _, folder, _, _ = saved
    with pytest.raises(ValueError, match=r"adapter 'tables' has .* of no layer that lora.targets names"):
        source(folder)().check("tables", make_layout(load(folder / "base"), None))


def test_quantized_tables(saved):
    """A quantized head takes adapters as the blocks do; a quantized embedding has none."""
    family, folder, _, _ = saved
    model = int8_weight_only.quantize(load(folder / "base"), embeddings=True, head=True)
    assert make_layout(model, ["lm_head"]).width
    with pytest.raises(ValueError, match=f"lora.targets names .'{EMBEDDING[family]}'.; the model has"):
        make_layout(model, [EMBEDDING[family]])


def test_what_is_saved_is_pefts_and_attached_is_the_same(saved, tmp_path):
    family, folder, _, _ = saved
    model, prompt = load(folder / "base"), torch.from_numpy(PROMPT)
    layout = make_layout(model, targets(family))
    rows = RandomAdapters(ranks=[6]).load("mine", layout, torch.float32) * 10
    save_adapter(tmp_path / "mine", rows, layout, alpha=9.0)
    with torch.no_grad(), attached(layout, rows):
        found = window_logits(model, prompt)
        theirs = peft.PeftModel.from_pretrained(make_hf_model(family), tmp_path / "mine").eval()(prompt).logits
    torch.testing.assert_close(found, theirs, rtol=2e-4, atol=2e-4)
