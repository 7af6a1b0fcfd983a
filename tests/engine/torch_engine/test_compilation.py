"""The compiled parts of a block are whole graphs, few of them, whatever the weights are kept as."""

import warnings
from functools import partial

import pytest
import torch

from framework.engine.torch_engine.compilation import compile_blocks, configure_model, hints_ignored
from framework.quantization import fp8, int8_dynamic, int8_weight_only, none, zero_point
from tests.models.loaded_models import logits
from tests.quantization.small_models import CONFIGS, make_model
from tests.thinning import mostly_nightly

SCHEMES = [
    none.quantize,
    zero_point.quantize,
    int8_weight_only.quantize,
    partial(int8_weight_only.quantize, group_size=32),
    int8_dynamic.quantize,
    partial(int8_dynamic.quantize, weight_only_rows=0),
    fp8.quantize,
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantize", "family"),
    [
        pytest.param(*one.values, marks=[*one.marks, *([pytest.mark.nightly] if index % 5 else [])])
        for index, one in enumerate(mostly_nightly(SCHEMES, [*CONFIGS]))
    ],
)
def test_blocks_compile_without_graph_breaks_or_a_graph_per_size(monkeypatch, quantize, family):
    """fullgraph=True raises at a graph break, and so does dynamo at its ninth graph of one method."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    model = quantize(make_model(family))
    sizes = [torch.arange(num_tokens) % 90 for num_tokens in (40, 1, 16, 64)]
    plain = [logits(model, tokens) for tokens in sizes]
    configure_model(model, fused=False, compiled=compile_blocks(model))
    for tokens, expected in zip(sizes, plain, strict=True):
        torch.testing.assert_close(logits(model, tokens), expected)
    assert 0 < len(graphs) <= 6  # of `project` and `finish` one each, one more for a single row, or for few rows


@pytest.mark.nightly
def test_models_that_take_turns_keep_what_was_compiled_and_count_against_no_common_limit(monkeypatch):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    tokens = torch.arange(40) % 90
    models = [none.quantize(make_model(family)) for family in CONFIGS for _ in range(4)]
    compiled = [compile_blocks(model) for model in models]
    with torch._dynamo.config.patch(recompile_limit=3):  # monkeypatch would leave the setting hidden
        for turn in range(2):
            for model, blocks in zip(models, compiled, strict=True):
                configure_model(model, fused=False, compiled=blocks)
                logits(model, tokens)
            if turn == 0:
                num_graphs = len(graphs)
    assert len(graphs) == num_graphs == 2 * len(models)


def test_torchs_hints_do_not_reach_the_user_and_other_warnings_do():
    hint = {"filename": "compile_fx.py", "lineno": 1, "registry": {}}
    with warnings.catch_warnings(record=True) as caught, hints_ignored():
        warnings.warn_explicit("use TF32", UserWarning, module="torch._inductor.compile_fx", **hint)
        warnings.warn_explicit("mine", UserWarning, module="framework.engine", **hint)
    assert [str(warning.message) for warning in caught] == ["mine"]


@pytest.mark.gpu
def test_the_residual_stream_stays_where_it_is():
    """A copy for every product that is added to it is what torch.compile would make."""
    model = make_model("llama", "bfloat16", "cuda")
    configure_model(model, fused=False, compiled=compile_blocks(model))
    block = model.layers[0]
    with torch.inference_mode():
        x = torch.randn(40, block.o_proj.out_features, device="cuda", dtype=torch.bfloat16)
        attended = torch.randn(40, block.o_proj.in_features, device="cuda", dtype=torch.bfloat16)
        expected = type(block).finish(block, x.clone(), attended)
        output = block.finish(x, attended)
    assert output.data_ptr() == x.data_ptr()
    assert (output - expected).norm() / expected.norm() < 0.02
