"""TorchEngine's greedy tokens equal transformers' generate, whatever the batching."""

import pytest
import torch
import yaml

from framework.core import Batch, Request, Sequence
from framework.engine.torch_engine import TorchEngine
from framework.engine.torch_engine.kv_cache import attach_cache, attention_modules, bytes_per_block
from framework.engine.torch_engine.prompt_tokens import prompt_token_ids
from framework.models.loading import load_model
from tests.engine.torch_engine.hand_schedules import (
    generate,
    generate_alone,
    make_requests,
    record_logits,
    relative_error,
    seat,
)
from tests.models.checkpoints import GPT2_SHAPE, MODEL_NAMES, greedy, make_hf_model
from tests.test_config import CONF

PROMPT_LENS, OUTPUT_LENS = [5, 23, 1, 37, 12], [9, 3, 14, 1, 11]
TINY_CONFIG = yaml.safe_load((CONF / "model" / "tiny.yaml").read_text())["config"]
GPT2_CONFIG = {"model_type": "gpt2", **GPT2_SHAPE, "tie_word_embeddings": False}


@pytest.fixture(scope="module", params=MODEL_NAMES)
def checkpoint(request, tmp_path_factory):
    """A folder, and the outputs that transformers gives for the prompts of PROMPT_LENS."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_hf_model(request.param)
    model.save_pretrained(folder)
    requests = make_requests(PROMPT_LENS, OUTPUT_LENS)
    prompts = [prompt_token_ids(one, model.config.vocab_size, seed=0).tolist() for one in requests]
    return folder, [greedy(model, *pair) for pair in zip(prompts, OUTPUT_LENS, strict=True)]


def load(path, device="cpu", dtype="float32"):
    keywords = {"weights": "pretrained", "config": None, "seed": 0, "max_model_len": None}
    return load_model(path=str(path), dtype=dtype, device=device, **keywords)


def make_engine(max_model_len=None, device="cpu", config=GPT2_CONFIG, dtype="float32", **keywords):
    given = {"path": None, "weights": "random", "config": config, "dtype": dtype, "seed": 0}
    model = load_model(**given, max_model_len=max_model_len, device=device)
    for parameter in model.parameters():
        parameter.mul_(10.0)  # else the model repeats one token, whatever came before
    return TorchEngine(model, **{"num_blocks": 64, "block_size": 8, **keywords})


def poison(engine):
    for module in attention_modules(engine.model):
        cache = module.cache
        for part in (cache.k, cache.v) if cache.scales is None else (cache.scales,):
            part.fill_(torch.nan)


@pytest.mark.parametrize("mode", ["ragged", "chunked", "static", "uncached", "static uncached"])
def test_tokens_equal_transformers(checkpoint, mode):
    folder, expected = checkpoint
    use_cache = "uncached" not in mode
    engine = TorchEngine(load(folder), block_size=7, num_blocks=64, use_cache=use_cache)
    requests = make_requests(PROMPT_LENS, OUTPUT_LENS)
    engine.begin(requests, 8)
    if use_cache:
        poison(engine)
    chunk = 4 if mode == "chunked" else 10**9
    assert generate(engine, requests, chunk=chunk, is_static="static" in mode) == expected


def test_static_batch_runs_past_the_positions_of_finished_sequences():
    """The short prompt's seat would reach position 42 of 40; the others' tokens must not notice."""
    engine = make_engine(max_model_len=40)
    requests = make_requests([30, 2], [3, 30])
    engine.begin(requests, 8)
    static = generate(engine, requests, is_static=True)
    engine.begin(requests, 8)
    assert static == generate(engine, requests)


def test_preempted_sequence_recomputes_prompt_and_output():
    engine = make_engine()
    requests = make_requests([9], [8])
    engine.begin(requests, 8)
    expected = generate(engine, requests)[0]
    assert len(set(expected)) > 4
    for chunk in (14, 5, 1):
        engine.begin(requests, 8)
        (sequence,) = seat(engine, requests)
        sequence.output_token_ids = expected[:5]
        for start in range(0, 14, chunk):
            num_tokens = min(chunk, 14 - start)
            token_ids = engine.step(Batch([sequence], [start], [num_tokens], num_tokens, 0)).token_ids
            assert token_ids == ([expected[5]] if start + num_tokens == 14 else [None])


def test_sampled_replays_repeat():
    engine = make_engine(temperature=1.0, top_k=50, top_p=0.9, seed=3)
    requests = make_requests([5, 9], [12, 12])
    outputs = []
    for _ in range(2):
        engine.begin(requests, 8)
        outputs.append(generate(engine, requests))
    assert outputs[0] == outputs[1]
    other = make_engine(temperature=1.0, top_k=50, top_p=0.9, seed=4)
    other.begin(requests, 8)
    assert generate(other, requests) != outputs[0]


def test_engines_share_a_model_one_after_the_other():
    first = make_engine()
    requests = make_requests([9, 4], [8, 8])
    first.begin(requests, 8)
    expected = generate(first, requests)
    second = TorchEngine(first.model, block_size=4, num_blocks=40)
    for engine in (second, first):
        engine.begin(requests, 8)
        assert generate(engine, requests) == expected


def test_without_cache_none_is_kept():
    engine = make_engine(use_cache=False)
    engine.begin([], 8)
    assert all(module.cache is None for module in attention_modules(engine.model))
    with pytest.raises(ValueError, match="kv_dtype=int8 needs a KV cache, and use_cache=false keeps none"):
        make_engine(use_cache=False, kv_dtype="int8")


@pytest.mark.parametrize("config", [TINY_CONFIG, GPT2_CONFIG], ids=["tiny", "gpt2"])
def test_an_int8_cache_gives_the_same_tokens_in_every_batch(config):
    engine = make_engine(config=config, block_size=7, kv_dtype="int8")
    requests = make_requests(PROMPT_LENS, OUTPUT_LENS)
    expected = generate_alone(engine, requests)
    assert len({token for output in expected for token in output}) > 8
    for chunk, is_static in ((10**9, False), (4, False), (10**9, True)):
        engine.begin(requests, 8)
        poison(engine)
        assert generate(engine, requests, chunk=chunk, is_static=is_static) == expected


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_int8_cache_changes_the_logits_a_little(name, tmp_path):
    make_hf_model(name).save_pretrained(tmp_path)
    exact, rounded = (
        record_logits(TorchEngine(load(tmp_path), num_blocks=64, kv_dtype=kv_dtype)) for kv_dtype in (None, "int8")
    )
    for got, want in zip(rounded, exact, strict=True):
        assert 0 < relative_error(got, want) < 0.02


def test_sizes():
    block_bytes = 2 * 3 * 48 * 4 * 8  # k and v, layers, hidden_size, float32, block_size
    assert make_engine(num_blocks=None).num_blocks == 512 * 2**20 // block_bytes
    assert make_engine(num_blocks=None, kv_cache_bytes=10 * block_bytes + 1).num_blocks == 10
    with pytest.raises(ValueError, match=r"0\.0 MiB holds no block of 0\.0 MiB \(8 tokens\)"):
        make_engine(num_blocks=None, kv_cache_bytes=1000)
    with pytest.raises(ValueError, match="kv_dtype 'int4' must be null or int8"):
        make_engine(kv_dtype="int4")
    with pytest.raises(ValueError, match="not both"):
        make_engine(num_blocks=1, kv_cache_bytes=1)
    with pytest.raises(ValueError, match="num_blocks 0"):
        make_engine(num_blocks=0)
    with pytest.raises(ValueError, match=r"engine\.block_size=0"):
        make_engine(block_size=0)
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match=f"seed {seed} must be at least 0"):
            make_engine(seed=seed)
    with pytest.raises(ValueError, match="num_threads 0"):
        make_engine(num_threads=0)
    make_engine(num_blocks=1, block_size=1).begin([], 8)  # warms up on the one slot there is


def test_an_int8_cache_holds_about_twice_the_tokens():
    """A head of 64 channels: 128 bytes in bfloat16, 64 and a scale of 2 in int8."""
    config = GPT2_CONFIG | {"n_embd": 128, "n_head": 2, "n_layer": 3}
    num_blocks = {}
    for dtype, kv_dtype in (("bfloat16", None), ("float32", None), ("bfloat16", "int8"), ("float32", "int8")):
        engine = make_engine(config=config, dtype=dtype, kv_dtype=kv_dtype, num_blocks=None, kv_cache_bytes=10**6)
        num_blocks[dtype, kv_dtype] = engine.num_blocks
        parts = [part for cache in engine._cache for part in (cache.k, cache.v, cache.scales) if part is not None]
        block_bytes = bytes_per_block(engine.model.config, 8, engine.kv_dtype)
        assert sum(part.nbytes for part in parts) == engine.num_blocks * block_bytes
    assert num_blocks == {
        ("bfloat16", None): 81, ("float32", None): 40, ("bfloat16", "int8"): 157, ("float32", "int8"): 157,
    }  # fmt: skip


def test_begin_refuses_requests_it_cannot_run():
    engine = make_engine(max_model_len=40)
    with pytest.raises(ValueError, match="request 1 has 30 prompt and 11 output tokens; together at most 40"):
        engine.begin(make_requests([30, 30], [10, 11]), 8)
    with pytest.raises(ValueError, match="two requests have the id 7"):
        engine.begin([Request(7, 0.0, 1, 1), Request(7, 0.0, 2, 1)], 8)


def test_prompts_are_taken_when_sequences_arrive():
    engine = make_engine()
    requests = make_requests([5, 3], [2, 2])
    engine.begin(requests, 8)
    later, sooner = Sequence(requests[1]), Sequence(requests[0], arrival_time=4.0)
    assert (later.prompt_token_ids, later.arrival_time, sooner.arrival_time) == (None, 0.0, 4.0)
    for sequence in (later, sooner):
        engine.add(sequence)
        expected = prompt_token_ids(sequence.request, engine.model.config.vocab_size, seed=0)
        assert sequence.prompt_token_ids.tolist() == expected.tolist()


def test_a_sequence_that_was_not_added_is_an_error():
    engine = make_engine()
    requests = make_requests([5], [2])
    engine.begin(requests, 8)
    sequence = Sequence(requests[0])
    sequence.block_table = [0]
    with pytest.raises(AssertionError, match=r"Sequence\(0\) was not added to the engine"):
        engine.step(Batch([sequence], [0], [5], 5, 0))


def test_bad_requests_are_refused_before_the_warm_up(monkeypatch):
    engine = make_engine()
    monkeypatch.setattr(engine, "_warm_up", lambda max_num_seqs: pytest.fail("the warm-up began"))
    with pytest.raises(ValueError, match="prompt token 999"):
        engine.begin([Request(0, 0.0, 1, 1, prompt_token_ids=(999,))], 8)


def test_block_table_too_short():
    engine = make_engine()
    requests = make_requests([20], [2])
    engine.begin(requests, 8)
    sequence = Sequence(requests[0])
    engine.add(sequence)
    sequence.block_table = [0, 1]
    with pytest.raises(AssertionError, match=r"Sequence\(0\) needs 3 blocks and has 2"):
        engine.step(Batch([sequence], [0], [20], 20, 0))


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["ragged", "chunked", "static", "uncached"])
def test_tokens_equal_transformers_on_cuda(checkpoint, mode):
    folder, expected = checkpoint
    engine = TorchEngine(load(folder, device="cuda"), block_size=7, num_blocks=64, use_cache=mode != "uncached")
    requests = make_requests(PROMPT_LENS, OUTPUT_LENS)
    engine.begin(requests, 8)
    assert generate(engine, requests, chunk=4 if mode == "chunked" else 10**9, is_static=mode == "static") == expected


@pytest.mark.gpu
def test_default_cache_takes_most_of_the_gpu():
    attach_cache(make_engine(device="cuda").model, [])
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info()
    engine = make_engine(device="cuda", num_blocks=None)
    engine.begin([], 8)
    cache_bytes = sum(2 * module.cache.k.nbytes for module in attention_modules(engine.model))
    assert 0.85 * (free_bytes - 2 * 2**30) < cache_bytes <= 0.9 * free_bytes


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("step", ["prompt", "decode"])
def test_logits_that_are_not_finite_end_the_replay_with_step_and_request(options, device, step):
    engine = make_engine(device=device, dtype="float16" if device == "cuda" else "float32", **options)
    requests = make_requests([5, 3], [4, 4])
    engine.begin(requests, 2)
    sequences = seat(engine, requests, blocks_each=4)
    engine.model.lm_head.weight[7].fill_(torch.nan if step == "prompt" else 1.0)
    prompt = Batch(sequences, [0, 0], [5, 3], 8, 0)
    if step == "prompt":
        with pytest.raises(
            ValueError, match=r"^step 1: the logits of request 0 are NaN or infinite, with the model in"
        ):
            engine.step(prompt)
        with pytest.raises(ValueError, match=r"^warm-up step 1: the logits"):
            engine.begin(requests, 2)
        return
    for sequence, token in zip(sequences, engine.step(prompt).token_ids, strict=True):
        sequence.output_token_ids.append(token)
    engine.model.embed_positions.weight[3].fill_(torch.inf)  # of the second's next token
    with pytest.raises(ValueError, match=r"^step 2: the logits of request 1 are NaN or infinite, with the model in"):
        engine.step(Batch(sequences, [5, 3], [1, 1], 0, 2))
