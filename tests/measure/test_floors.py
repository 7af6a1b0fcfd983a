"""Work and floors against numbers computed by hand."""

from dataclasses import replace

import pytest
import torch
import yaml
from torch.testing._internal.two_tensor import TwoTensor

from framework.core import Batch, Request, Sequence
from framework.measure.floors import Costs, Work, attention_work, model_costs, num_bytes, step_work
from framework.models.config import parse_config
from framework.models.loading import build_model
from tests.models.loaded_models import LLAMA
from tests.test_config import CONF

COSTS = Costs(
    weight_bytes=1000, embedding_bytes=10, kv_bytes=3, layer_parameters=400, head_parameters=50, score_flops=8
)


def shape(name):
    config = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())["config"]
    return build_model(parse_config(config, 1024), torch.bfloat16, "meta")


def batch(starts, num_tokens):
    sequences = [Sequence(Request(index, 0.0, 1, 1)) for index in range(len(starts))]
    return Batch(sequences, starts, num_tokens, sum(num_tokens), 0)


def test_llama_8b():
    """32 layers of (4096·6144 + 4096² + 3·4096·14336) weights and two norms, a norm, and a head of 128256·4096."""
    matrices = 32 * (4096 * 6144 + 4096**2 + 3 * 4096 * 14336)
    head = 128256 * 4096
    assert model_costs(shape("llama_8b"), torch.bfloat16) == Costs(
        weight_bytes=2 * (matrices + 65 * 4096 + head),  # 15.0 GB: the embedding's 1.05 GB is looked up
        embedding_bytes=8192,
        kv_bytes=131_072,
        layer_parameters=matrices,
        head_parameters=head,
        score_flops=4 * 32 * 128 * 32,
    )
    costs = model_costs(shape("llama_8b"), torch.int8)
    assert round(1e-9 * costs.weight_bytes, 1) == 15.0
    assert costs.kv_bytes == 2 * 32 * 8 * (128 + 2)  # a float16 scale per head


def test_a_tied_embedding_is_read_as_the_head():
    """GPT-2 small: 124,439,808 parameters, of which 1024·768 positions are looked up."""
    costs = model_costs(shape("gpt2"), torch.bfloat16)
    assert costs.weight_bytes == 2 * (124_439_808 - 1024 * 768)
    assert costs.embedding_bytes == 2 * 2 * 768
    assert (costs.layer_parameters, costs.head_parameters) == (12 * 12 * 768**2, 50257 * 768)


def test_a_decode_step_reads_weights_and_contexts():
    work = step_work(COSTS, batch([4, 9], [1, 1]))
    assert work.num_bytes == 1000 + 2 * 10 + (5 + 10) * 3
    assert work.num_flops == 2 * 400 * 2 + 2 * 50 * 2 + 8 * (5 + 10)


def test_a_prefill_computes_a_triangle_of_scores_and_one_row_of_the_head():
    work = step_work(COSTS, batch([0, 2], [4, 3]))  # the second is a chunk behind two tokens: 3 + 4 + 5 scores
    assert work.num_bytes == 1000 + 7 * 10 + (4 + 5) * 3
    assert work.num_flops == 2 * 400 * 7 + 2 * 50 * 2 + 8 * (4 * 5 // 2 + 12)


def test_a_mixed_step_reads_the_weights_once_and_a_chunk_without_its_prompts_end_samples_nothing():
    work = step_work(COSTS, batch([9, 6], [1, 3]), num_sampled=1)  # a decode, and a chunk: 7 + 8 + 9 scores
    assert work.num_bytes == 1000 + 4 * 10 + (10 + 9) * 3
    assert work.num_flops == 2 * 400 * 4 + 2 * 50 * 1 + 8 * (10 + 24)


def test_attention_of_one_layer():
    work = attention_work(shape("llama_8b"), 256, 2048, torch.bfloat16)
    assert work == Work(num_bytes=256 * 2048 * 4096, num_flops=4 * 32 * 128 * 256 * 2048)
    work = attention_work(shape("llama_8b"), 256, 2048, torch.int8)
    assert work.num_bytes == 256 * 2048 * 2 * 8 * (128 + 2)


@pytest.mark.parametrize(("rate", "floor", "is_bandwidth_bound"), [(100.0, 5.0, True), (10.0, 20.0, False)])
def test_the_longer_of_both_is_the_floor(rate, floor, is_bandwidth_bound):
    work = Work(num_bytes=50.0, num_flops=200.0)
    assert work.floor(10.0, rate) == floor
    assert work.is_bandwidth_bound(10.0, rate) == is_bandwidth_bound


def test_a_tensor_made_of_others_counts_as_these():
    """As torchao's, whose own nbytes are those of the dtype it stands for."""
    parts = torch.zeros(3, 4), torch.zeros(3, 4)
    assert num_bytes([TwoTensor(*parts), torch.zeros(5)]) == 2 * 48 + 20


def test_a_sliding_window_bounds_what_a_token_sees():
    """Half of the layers see 3 tokens: 1 + 2 + 3 + 3 scores of a prompt of 4, 3 of a token behind 9 others."""
    half = replace(COSTS, windows=((None, 0.5), (3, 0.5)))
    work = step_work(half, batch([0, 9], [4, 1]))
    assert work.num_flops == 2 * 400 * 5 + 2 * 50 * 2 + 8 * ((10 + 10) / 2 + (9 + 3) / 2)
    assert work.num_bytes == 1000 + 5 * 10 + 3 * ((4 + 10) / 2 + (4 + 3) / 2)


def test_the_windows_of_a_model():
    config = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    model = build_model(parse_config(LLAMA | config), torch.float32, "meta")
    assert model_costs(model, torch.float32).windows == ((None, 1 / 3), (4, 2 / 3))
