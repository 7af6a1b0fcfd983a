"""Bytes by what they are for: each storage once, a tied head with the embeddings, a cache apart."""

import pytest

from framework.engine.torch_engine import TorchEngine
from framework.models.footprint import cache_footprint, footprint
from tests.quantization.small_models import CONFIGS, make_model

EMBEDDING_BYTES = 4 * 97 * 64


@pytest.mark.parametrize("family", CONFIGS)
def test_every_parameter_and_table_is_counted_once(family):
    model = make_model(family)
    sizes = footprint(model)
    parts = sum(size for name, size in sizes.items() if name != "total")
    assert sizes["total"] == parts == sum(one.nbytes for one in {*model.parameters(), *model.buffers()})
    is_tied = family == "llama"
    assert sizes["head"] == (0 if is_tied else EMBEDDING_BYTES)
    assert sizes["embeddings"] == EMBEDDING_BYTES + (0 if is_tied else 4 * 64 * 64)  # and GPT-2's positions
    assert sizes["scales"] == 0


@pytest.mark.parametrize(("kv_dtype", "bytes_per_head"), [(None, 4 * 16), ("int8", 16 + 2)])
def test_the_cache_is_what_its_blocks_take(kv_dtype, bytes_per_head):
    model = make_model("llama")
    assert cache_footprint(model) == 0
    engine = TorchEngine(model, block_size=4, num_blocks=10, kv_dtype=kv_dtype)
    engine.begin([], 1)
    keys_and_values, num_layers, num_kv_heads = 2, 2, 2
    assert cache_footprint(model) == keys_and_values * num_layers * 10 * 4 * num_kv_heads * bytes_per_head
    assert engine.num_cache_bytes == cache_footprint(model)
