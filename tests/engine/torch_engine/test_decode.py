"""On a real GPU: graphs, fused kernels, compiled blocks and overlap change how long a step takes, not its tokens."""

from functools import partial

import numpy as np
import pytest
import torch

from framework.build import replay_trace
from framework.core import Batch
from framework.engine.torch_engine import TorchEngine
from framework.engine.torch_engine.compilation import compilation_refused
from framework.kernels.decode_step import begin_rows
from framework.models.loading import load_model
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.engine.torch_engine.hand_schedules import generate, make_requests, record_logits, relative_error, seat

pytestmark = pytest.mark.gpu

LLAMA = {
    "model_type": "llama", "vocab_size": 503, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "vocab_size": 503, "n_embd": 256, "n_layer": 3, "n_head": 4, "n_positions": 512}
MODELS = {"llama": LLAMA, "gpt2": GPT2}
EAGER = {"fused": False, "compile": False, "cuda_graphs": False}
# Together as many rows as a graph has: others would be summed in another order
PROMPT_LENS, OUTPUT_LENS = [5, 70, 2, 37, 12, 130], [9, 3, 40, 1, 11, 25]
LOGIT_ERROR = 0.03  # relative, bfloat16 against float32
INT8_LOGIT_ERROR = 0.05  # the same with an int8 KV cache


def make_model(name, dtype="bfloat16", seed=0):
    given = {"path": None, "weights": "random", "config": MODELS[name], "max_model_len": None, "device": "cuda"}
    model = load_model(**given, dtype=dtype, seed=seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(3.0)  # else the model repeats one token, whatever came before
    return model


def tokens(model, scheduler=ContinuousScheduler, **options):
    engine = TorchEngine(model, block_size=16, num_blocks=64, **options)
    requests = make_requests(PROMPT_LENS, OUTPUT_LENS)
    sequences, steps = replay_trace(requests, scheduler(engine.num_blocks, engine.block_size), engine)
    assert all(step.device > 0 for step in steps)
    return [sequence.output_token_ids for sequence in sequences]


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_graphs_and_overlap_give_the_tokens_of_eager_steps(name, kv_dtype):
    model = make_model(name)
    for options in ({"kv_dtype": kv_dtype}, {"kv_dtype": kv_dtype, "fused": False, "compile": False}):
        eager = tokens(model, **options | {"cuda_graphs": False})
        assert tokens(model, **options) == eager
        assert tokens(model, **options, overlap=True) == eager
    assert len({token for output in eager for token in output}) > 20


SCHEDULERS = {
    "preemptions": partial(ContinuousScheduler, max_num_seqs=6, watermark=0.0),
    "split prompts": partial(ContinuousScheduler, max_num_seqs=4, max_num_batched_tokens=32),
    "static": partial(StaticScheduler, max_num_seqs=4, max_wait=0.0),
    "mixed": partial(ContinuousScheduler, max_num_seqs=4, max_num_batched_tokens=20, steps="mixed", watermark=0.0),
    "alternate": partial(ContinuousScheduler, max_num_seqs=4, max_num_batched_tokens=20, steps="alternate"),
    "hybrid": partial(ContinuousScheduler, max_num_seqs=4, steps="mixed", whole_prompts=True),
}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_float32_tokens_do_not_depend_on_schedule_or_kernels(scheduler, overlap):
    model = make_model("llama", dtype="float32")
    assert tokens(model, SCHEDULERS[scheduler], overlap=overlap) == tokens(model, **EAGER)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_int8_cache_gives_the_same_tokens_under_every_schedule(scheduler):
    """But where a key or value that lies between two int8 numbers is rounded the other way: in one request at most."""
    model = make_model("llama", dtype="float32")
    scheduled = tokens(model, SCHEDULERS[scheduler], kv_dtype="int8")
    alone = tokens(model, partial(ContinuousScheduler, max_num_seqs=1), kv_dtype="int8", **EAGER)
    assert sum(one != other for one, other in zip(scheduled, alone, strict=True)) <= 1
    assert len({token for output in alone for token in output}) > 20


@pytest.mark.parametrize(("kv_dtype", "most"), [(None, LOGIT_ERROR), ("int8", INT8_LOGIT_ERROR)])
@pytest.mark.parametrize("options", [{}, EAGER], ids=["fast", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_logits_are_close_to_float32(name, options, kv_dtype, most):
    """Of a prefill and a decode step; only the bfloat16 model has the int8 cache."""
    logits = {}
    for dtype, kept in (("float32", None), ("bfloat16", kv_dtype)):
        model = make_model(name, dtype="float32").to(getattr(torch, dtype))
        logits[dtype] = record_logits(TorchEngine(model, block_size=16, num_blocks=64, kv_dtype=kept, **options))
    for exact, rounded in zip(logits["float32"], logits["bfloat16"], strict=True):
        assert 0 < relative_error(rounded, exact) < most


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_engines_with_graphs_take_turns_on_one_model(dtype):
    """Also when a later replay wants larger batches, which bfloat16 may round the other way."""
    model = make_model("llama", dtype=dtype)
    requests = make_requests(PROMPT_LENS, OUTPUT_LENS)
    engines = [TorchEngine(model, block_size=16, num_blocks=num_blocks) for num_blocks in (64, 80)]
    outputs = []
    for max_num_seqs in (2, 6):
        for engine in (*engines, *engines):
            scheduler = ContinuousScheduler(engine.num_blocks, engine.block_size, max_num_seqs=max_num_seqs)
            outputs.append([one.output_token_ids for one in replay_trace(requests, scheduler, engine)[0]])
    assert all(output == outputs[0] for output in outputs[: 8 if dtype == "float32" else 4])
    assert all(output == outputs[4] for output in outputs[4:])


@pytest.mark.parametrize("name", MODELS)
def test_prompts_from_graphs_are_close_to_eager_ones(name):
    """Whatever the number of rows that are nobody's, and with pads."""
    model = make_model(name)
    engine = TorchEngine(model, block_size=16, num_blocks=256)
    hidden = {}
    for is_replayed in (True, False):
        engine.begin(make_requests([1], [2]), 8)
        steps = engine._steps.mixed
        assert steps.is_replayed
        steps.is_replayed = is_replayed
        for lens in ([1], [16], [17, 3], [70, 70, 70], [5, 130, 1, 300], [508, 508], [9] * 8):
            for is_static in (False, True):
                requests = make_requests(lens, [2] * len(lens))
                sequences = seat(engine, requests, blocks_each=32, is_static=is_static)
                num_tokens = [max(lens)] * len(lens) if is_static else lens
                for sequence, length in zip(sequences, lens, strict=True):
                    sequence.prompt_token_ids = np.arange(length, dtype=np.int32) % 503
                batch = Batch(sequences, [0] * len(lens), num_tokens, sum(num_tokens), 0)
                inputs, missing = engine._steps._inputs(batch, engine._own.share)
                with torch.inference_mode():
                    laid_out = steps.lay_out(inputs, missing | {"rows": inputs.sampled_rows})
                    sent = laid_out.send()
                    engine._steps.seats.write(sent)
                    rows = laid_out.compute(sent).index_select(0, sent["rows"])
                hidden.setdefault((*lens, is_static), []).append(rows.clone())
    for replayed, eager in hidden.values():
        assert relative_error(replayed, eager) < LOGIT_ERROR


def test_a_kernel_compiled_inside_the_window_is_an_error():
    rows = torch.zeros(4, 8, dtype=torch.int32, device="cuda")
    tables, last_tokens = rows.new_zeros(3, 4), torch.zeros(3, dtype=torch.int64, device="cuda")
    options = {"block_size": 11, "max_position": 5}  # a block size that nobody else has
    with compilation_refused(), pytest.raises(RuntimeError, match="inside the measured window"):
        begin_rows(rows, tables, last_tokens, **options)
    begin_rows(rows, tables, last_tokens, **options)
    with compilation_refused():
        begin_rows(rows[:, :5], tables, last_tokens, **options)


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_every_eager_decode_batch_is_warm(kv_dtype):
    """Tiles and splits change with the batch size; a model with few key heads changes late."""
    config = LLAMA | {"num_attention_heads": 4, "num_key_value_heads": 1}
    given = {"path": None, "weights": "random", "config": config, "max_model_len": 64, "device": "cuda", "seed": 0}
    engine = TorchEngine(load_model(**given, dtype="bfloat16"), num_blocks=700, cuda_graphs=False, kv_dtype=kv_dtype)
    requests = make_requests([3] * 140, [2 + index % 40 for index in range(140)])
    sequences, _ = replay_trace(requests, ContinuousScheduler(700, 16, max_num_seqs=140), engine)
    assert all(sequence.is_finished for sequence in sequences)


def test_a_compilation_inside_the_window_is_an_error():
    compiled = torch.compile(lambda x: x * 2 + 1, dynamic=True)
    compiled(torch.ones(8, device="cuda"))
    with compilation_refused():
        compiled(torch.ones(9, device="cuda"))
        with pytest.raises(RuntimeError):
            compiled(torch.ones(8, 8, device="cuda"))


def test_sampling_is_seeded_with_graphs():
    model = make_model("llama")
    options = {"temperature": 1.0, "top_k": 50, "seed": 3}
    assert tokens(model, **options) == tokens(model, **options) == tokens(model, **options, cuda_graphs=False)
    assert tokens(model, **options) != tokens(model, **options | {"seed": 4})


def test_uncached_tokens_equal_cached_ones():
    model = make_model("llama", dtype="float32")
    engine = TorchEngine(model, block_size=16, num_blocks=64, use_cache=False)
    requests = make_requests([9, 30], [5, 7])
    engine.begin(requests, 2)
    uncached = generate(engine, requests)
    cached = TorchEngine(model, block_size=16, num_blocks=64)
    cached.begin(requests, 2)
    assert generate(cached, requests) == uncached


def test_seats_of_many_requests_are_reused():
    model = make_model("llama", dtype="float32")
    rng = np.random.default_rng(0)
    requests = make_requests(rng.integers(1, 60, 80).tolist(), rng.integers(1, 20, 80).tolist())
    outputs = []
    for max_num_seqs in (3, 17):
        engine = TorchEngine(model, num_blocks=200)
        scheduler = ContinuousScheduler(engine.num_blocks, engine.block_size, max_num_seqs=max_num_seqs)
        outputs.append([one.output_token_ids for one in replay_trace(requests, scheduler, engine)[0]])
    assert outputs[0] == outputs[1]


def test_a_long_sequence_among_many_gets_the_tokens_of_small_batches():
    """With so many rows attention splits the long one by a plan, with few any."""
    config = LLAMA | {"num_key_value_heads": 8, "max_position_embeddings": 2048}
    given = {"path": None, "weights": "random", "config": config, "max_model_len": None, "device": "cuda", "seed": 0}
    model = load_model(**given, dtype="float32")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(3.0)
    requests = make_requests([1500, *range(3, 102)], [20] * 100)
    outputs = []
    for max_num_seqs in (8, 100):
        engine = TorchEngine(model, num_blocks=1000)
        scheduler = ContinuousScheduler(engine.num_blocks, engine.block_size, max_num_seqs=max_num_seqs)
        sequences, steps = replay_trace(requests, scheduler, engine)
        assert max(step.num_decode_tokens for step in steps) == max_num_seqs
        outputs.append([sequence.output_token_ids for sequence in sequences])
    assert outputs[0] == outputs[1]


def test_a_cache_that_does_not_fit_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"a KV cache of \d+\.\d GiB .* does not fit: cuda:0 has \d+\.\d GiB"):
        TorchEngine(make_model("llama"), kv_cache_bytes=10**13)
