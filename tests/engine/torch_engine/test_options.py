"""What the nulls of an engine's options become, by device, dtype, head_dim and adapters."""

from types import SimpleNamespace

import pytest
import torch

from framework.engine.torch_engine.options import MIN_COMPILED_WEIGHTS, EngineOptions, num_block_weights
from framework.models.loading import load_model
from tests.models.checkpoints import MODEL_NAMES, make_hf_model

NULLS = {
    "block_size": 16, "kv_dtype": None, "use_cache": True, "fused": None, "compile": None, "cuda_graphs": None,
    "overlap": None, "num_threads": 1,
}  # fmt: skip


def resolve(device="cuda", head_dim=64, has_window=False, has_static_adapters=True, num_layers=12, **options):
    weight = SimpleNamespace(device=torch.device(device), dtype=torch.bfloat16)
    width = 12 * head_dim
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "qkv_sizes": [width] * 3, "num_layers": num_layers}
    config = SimpleNamespace(model_type="gpt2", num_heads=12, head_dim=head_dim, has_window=has_window, **shape)
    model = SimpleNamespace(norm=SimpleNamespace(weight=weight), config=config)
    return EngineOptions.resolve(model, has_static_adapters, **NULLS | options)


def switches(options):
    return options.fused, options.compile, options.cuda_graphs, options.num_steps_ahead, options.has_decoder


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (True, True, True, 1, True)),
        ({"device": "cpu"}, (False, False, False, 0, False)),
        ({"head_dim": 80}, (True, True, False, 0, False)),
        ({"has_window": True}, (True, True, True, 1, True)),
        ({"use_cache": False}, (True, True, False, 0, False)),
        ({"has_static_adapters": False}, (True, False, False, 1, True)),
        ({"head_dim": 16, "num_layers": 120}, (True, True, True, 1, True)),
        ({"head_dim": 16, "num_layers": 120, "kv_dtype": "int8"}, (True, True, False, 0, False)),
        ({"num_layers": 7}, (True, False, True, 1, True)),  # too few weights to gain from torch.compile
        ({"num_layers": 7, "compile": True}, (True, True, True, 1, True)),
        ({"fused": False, "compile": False, "cuda_graphs": False, "overlap": False}, (False, False, False, 0, True)),
    ],
)
def test_null_is_on_wherever_it_can_be(given, expected):
    assert switches(resolve(**given)) == expected


def test_only_an_overlap_that_was_asked_for_by_name_gives_way_to_nothing():
    assert [resolve(overlap=overlap).must_overlap for overlap in (None, False, True)] == [False, False, True]


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_weights_of_the_blocks_are_counted(tmp_path, name):
    make_hf_model(name).save_pretrained(tmp_path)
    keywords = {"weights": "random", "config": None, "dtype": "float32", "seed": 0, "max_model_len": None}
    model = load_model(path=str(tmp_path), device="cpu", **keywords)
    matrices = [parameter for parameter in model.layers.parameters() if parameter.dim() == 2]
    assert num_block_weights(model.config) == sum(matrix.numel() for matrix in matrices) < MIN_COMPILED_WEIGHTS


def test_keys_and_values_have_the_models_dtype_or_int8():
    assert [resolve(kv_dtype=kv_dtype).kv_dtype for kv_dtype in (None, "int8")] == [torch.bfloat16, torch.int8]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "cpu", "fused": True}, "engine.fused=true needs a GPU"),
        ({"has_static_adapters": False, "compile": True}, "engine.compile=true needs a GPU, and another lora"),
        ({"use_cache": False, "cuda_graphs": True}, "engine.cuda_graphs=true needs a GPU, a KV cache"),
        ({"head_dim": 80, "overlap": True}, "engine.overlap=true .* head_dim of 16"),
        (
            {"head_dim": 16, "kv_dtype": "int8", "cuda_graphs": True},
            r"engine.cuda_graphs=true .* \(not with kv_dtype=int8",
        ),
        ({"block_size": 0}, "engine.block_size=0 is not a whole number of at least 1"),
        ({"kv_dtype": "int4"}, "kv_dtype 'int4' must be null or int8"),
        ({"use_cache": False, "kv_dtype": "int8"}, "kv_dtype=int8 needs a KV cache"),
        ({"num_threads": 5000}, "engine.num_threads 5000 must be from 1 to"),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        resolve(**given)
