"""Mixed batches give the logits of PEFT's `adapter_names=` in float32, whatever the strategy."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from framework.build import make_scheduler, replay_trace
from framework.core import Batch, Request
from framework.engine.torch_engine import TorchEngine
from framework.engine.torch_engine.prompt_tokens import prompt_token_ids
from framework.lora.adapter_file import save_adapter
from framework.lora.adapters import RandomAdapters, SavedAdapters
from framework.lora.attached import attached
from framework.lora.gathered import Gathered
from framework.lora.layout import make_layout
from framework.lora.loop import Loop
from framework.lora.merged import merge_adapter
from framework.lora.pool import serve_adapters
from framework.lora.segmented import Segmented
from framework.measure.perplexity import window_logits
from tests.engine.torch_engine.hand_schedules import seat
from tests.engine.torch_engine.test_engine import load
from tests.models.checkpoints import greedy, make_hf_model
from tests.scheduler.shipped import shipped

peft = pytest.importorskip("peft")
STRATEGIES = {"loop": Loop, "gathered": Gathered, "segmented": Segmented}
LLAMA_ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {  # name: rank, alpha, rslora, target modules of Llama and of GPT-2
    "all": (4, 8, False, LLAMA_ALL, ["c_attn", "c_proj", "c_fc"]),
    "few": (8, 12, True, ["q_proj", "v_proj", "down_proj"], ["attn.c_proj"]),
    "wide": (6, 3, False, ["k_proj", "gate_proj"], ["c_attn", "c_fc"]),
}
ROWS = ["all", None, "few", "wide", "all", None]
LENGTHS = [(9, 14), (21, 8), (1, 20), (13, 9), (5, 16), (17, 11)]
PROMPT = np.random.default_rng(0).integers(97, size=(len(ROWS), 9))


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2"])
def saved(request, tmp_path_factory):
    """A folder with a model and its adapters, PEFT's logits (rows, tokens, vocabulary) of ROWS, and of "few" alone."""
    folder = tmp_path_factory.mktemp(request.param)
    base = make_hf_model(request.param)
    base.save_pretrained(folder / "base")
    model = None
    torch.manual_seed(0)
    for name, (rank, alpha, is_rs, *targets) in ADAPTERS.items():
        config = peft.LoraConfig(
            r=rank, lora_alpha=alpha, use_rslora=is_rs, target_modules=targets[request.param == "gpt2"],
            init_lora_weights=False, task_type="CAUSAL_LM", fan_in_fan_out=request.param == "gpt2",
        )  # fmt: skip
        if model is None:
            model = peft.get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    model.save_pretrained(folder / "adapters", selected_adapters=list(ADAPTERS))
    names = [name or "__base__" for name in ROWS]
    with torch.no_grad():
        mixed = model.eval()(torch.from_numpy(PROMPT), adapter_names=names).logits
        model.set_adapter("few")
        alone = model(torch.from_numpy(PROMPT)).logits
    return folder, mixed, alone


def engine_logits(model, adapter_ids, num_prompt_tokens, names=tuple(ADAPTERS)):
    """Logits of a prefill and of decode steps that are told the rest of PROMPT, (rows, tokens from the last, vocab)."""
    engine = TorchEngine(model, num_blocks=64, block_size=4)
    requests = [
        Request(
            index, 0.0, num_prompt_tokens, 9, adapter_id=adapter_id, prompt_token_ids=tuple(row[:num_prompt_tokens])
        )
        for index, (adapter_id, row) in enumerate(zip(adapter_ids, PROMPT.tolist(), strict=True))
    ]
    engine.begin(requests, len(requests))
    sequences, seen = seat(engine, requests, blocks_each=4), []
    loads = {}
    for sequence in sequences:
        if sequence.request.adapter_id is not None and engine.num_adapter_slots:
            sequence.adapter_slot = 1 + names.index(sequence.request.adapter_id)
            loads[sequence.adapter_slot] = sequence.request.adapter_id
    choose = engine._sampler.choose
    engine._sampler.choose = lambda logits: seen.append(logits) or choose(logits)
    rows = len(requests)
    engine.step(Batch(sequences, [0] * rows, [num_prompt_tokens] * rows, rows * num_prompt_tokens, 0, loads))
    for end in range(num_prompt_tokens, PROMPT.shape[1]):
        for sequence, row in zip(sequences, PROMPT.tolist(), strict=True):
            sequence.output_token_ids.append(row[end])
        engine.step(Batch(sequences, [end] * rows, [1] * rows, 0, rows))
    return torch.stack(seen, dim=1)


@pytest.mark.parametrize("name", STRATEGIES)
def test_mixed_batches(saved, name):
    folder, expected, _ = saved
    adapters = partial(SavedAdapters, path=str(folder / "adapters"))
    model = serve_adapters(load(folder / "base"), strategy=STRATEGIES[name], adapters=adapters, num_slots=3, max_rank=8)
    logits = engine_logits(model, ROWS, 5)
    torch.testing.assert_close(logits, expected[:, 4:], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def generated(saved):
    """A folder with a model and its adapters, requests, and the tokens that PEFT's generate gives to each."""
    folder, *_ = saved
    requests = [
        Request(index, 0.001 * index, *lengths, adapter_id=name)
        for index, (lengths, name) in enumerate(zip(LENGTHS, ROWS, strict=True))
    ]
    expected = []
    for request in requests:
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
        if request.adapter_id is not None:
            model = peft.PeftModel.from_pretrained(model, folder / "adapters" / request.adapter_id).eval()
        prompt = prompt_token_ids(request, model.config.vocab_size, seed=0).tolist()
        expected.append(greedy(model, prompt, request.num_output_tokens))
    return folder, requests, expected


@pytest.mark.parametrize(
    ("name", "budget", "num_blocks"),
    [
        ("continuous", 16, 64),
        pytest.param("mixed", 5, 64, marks=pytest.mark.nightly),
        ("mixed", 16, 12),
        pytest.param("hybrid_only", 24, 64, marks=pytest.mark.nightly),
        ("hybrid_only", 24, 12),
        ("chunk_only", 5, 64),
        pytest.param("chunk_only", 16, 12, marks=pytest.mark.nightly),
    ],
)
def test_replayed_tokens(generated, name, budget, num_blocks):
    """Under every scheduler, and with preemptions where there are 12 blocks of 4 tokens."""
    folder, requests, expected = generated
    adapters = partial(SavedAdapters, path=str(folder / "adapters"))
    model = serve_adapters(load(folder / "base"), strategy=Gathered, adapters=adapters, num_slots=2, max_rank=8)
    engine = TorchEngine(model, num_blocks=num_blocks, block_size=4)
    make = shipped(name, max_num_seqs=5, max_num_batched_tokens=budget, watermark=0.0)
    sequences, _ = replay_trace(requests, make_scheduler(make, engine), engine)
    assert [sequence.output_token_ids for sequence in sequences] == expected
    assert any(sequence.num_preemptions for sequence in sequences) == (num_blocks == 12)


def test_merged(saved):
    folder, mixed, expected = saved
    adapters = partial(SavedAdapters, path=str(folder / "adapters"))
    model = merge_adapter(load(folder / "base"), adapters=adapters, adapter_id="few")
    logits = engine_logits(model, [None] * len(ROWS), 5)
    torch.testing.assert_close(logits, expected[:, 4:], rtol=1e-4, atol=1e-4)
    assert (logits - mixed[:, 4:]).abs().max() > 0.1


def test_peft_reads_what_is_saved(saved, tmp_path):
    """Of GPT-2 too, whose Conv1D layers keep (in, out)."""
    model = load(saved[0] / "base")
    layout = make_layout(model, None)
    rows = RandomAdapters(ranks=[6]).load("mine", layout, torch.float32)
    save_adapter(tmp_path / "mine", rows, layout, alpha=9.0)
    base = AutoModelForCausalLM.from_pretrained(saved[0] / "base", dtype=torch.float32)
    prompt = torch.from_numpy(PROMPT[:2])
    with torch.no_grad():
        plain = base(prompt).logits
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "mine").eval()(prompt).logits
        with attached(layout, rows):
            torch.testing.assert_close(window_logits(model, prompt), theirs, rtol=1e-4, atol=1e-4)
    assert (theirs - plain).abs().max() > 1e-2
