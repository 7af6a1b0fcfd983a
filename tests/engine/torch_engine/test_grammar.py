"""Outputs under a JSON schema are documents of it; other requests of the same batch are as they were."""

import json
import sys
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from framework.build import replay_trace
from framework.core import Request, Sequence
from framework.engine.torch_engine import TorchEngine
from framework.engine.torch_engine.grammar import Grammars
from framework.models.config import parse_config
from framework.models.loading import load_model
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.models.checkpoints import GPT2_SHAPE

pytest.importorskip("llguidance")


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(max_length=6)]
    age: Annotated[int, Field(ge=0, le=120)]
    tags: Annotated[list[Literal["a", "b"]], Field(max_length=2)]


SCHEMA = json.dumps(Person.model_json_schema())
EOS = 0
MAX_NUM_TOKENS = 90  # a document of Person has fewer bytes, even where every letter of the name takes six
CONTINUOUS, STATIC = partial(ContinuousScheduler, max_num_seqs=50), partial(StaticScheduler, max_num_seqs=50)


@pytest.fixture(scope="module")
def model():
    """The shipped model: the byte 0 ends its outputs."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(
        path="models/tiny",
        weights="pretrained",
        config=None,
        dtype="float32",
        seed=0,
        max_model_len=None,
        device=device,
    )


def make_requests(num_requests, json_schema=SCHEMA):
    return [
        Request(index, 0.0, 8, MAX_NUM_TOKENS, stop_token_ids=frozenset({EOS}), json_schema=json_schema)
        for index in range(num_requests)
    ]


def outputs(model, requests, scheduler=CONTINUOUS, **options):
    engine = TorchEngine(model, num_blocks=500, **options)
    sequences, _ = replay_trace(requests, scheduler(num_blocks=engine.num_blocks, block_size=engine.block_size), engine)
    return [sequence.output_token_ids for sequence in sequences]


def is_valid(output):
    try:
        Person.model_validate_json(bytes(output).removesuffix(bytes([EOS])))
    except ValidationError:
        return False
    return True


@pytest.mark.slow
def test_200_sampled_outputs_are_documents_of_the_schema_and_without_it_none_is(model):
    sampled = outputs(model, make_requests(200), temperature=1.0)
    assert all(output[-1] == EOS for output in sampled)
    assert all(is_valid(output) for output in sampled)
    assert len({bytes(output) for output in sampled}) > 150
    assert not any(is_valid(output) for output in outputs(model, make_requests(20, None), temperature=1.0))


@pytest.mark.parametrize("options", [{"top_k": 3, "temperature": 0.5}, {"top_p": 0.5, "temperature": 2.0}, {}])
def test_whatever_the_sampling(model, options):
    assert all(is_valid(output) for output in outputs(model, make_requests(6), **options))


@pytest.mark.slow
def test_requests_without_a_schema_are_as_they_were(model):
    free, bound = outputs(model, make_requests(6, None)), outputs(model, make_requests(6))
    mixed = [replace(one, json_schema=SCHEMA if one.request_id % 2 else None) for one in make_requests(6)]
    for scheduler in (CONTINUOUS, STATIC):
        assert outputs(model, mixed, scheduler) == [(bound if index % 2 else free)[index] for index in range(6)]


def test_a_preempted_sequence_goes_on_with_its_document(model):
    engine = TorchEngine(model, num_blocks=14)
    scheduler = ContinuousScheduler(engine.num_blocks, engine.block_size, watermark=0.0, max_num_batched_tokens=20)
    sequences, _ = replay_trace(make_requests(6), scheduler, engine)
    assert sum(sequence.num_preemptions for sequence in sequences) > 0
    assert [sequence.output_token_ids for sequence in sequences] == outputs(model, make_requests(6))


@pytest.mark.gpu
def test_graphs_give_the_documents_of_eager_steps(model):
    eager = outputs(model, make_requests(20), fused=False, compile=False, cuda_graphs=False)
    assert outputs(model, make_requests(20)) == eager
    assert all(is_valid(output) for output in eager)
    engine = TorchEngine(model, num_blocks=500)
    for requests in (make_requests(4), make_requests(4, None), make_requests(4)):
        replay_trace(requests, CONTINUOUS(num_blocks=500, block_size=engine.block_size), engine)
        is_captured_with_sampling = engine._steps.decoder.sample is None
        assert is_captured_with_sampling == (requests[0].json_schema is None)
    with pytest.raises(ValueError, match=r"engine\.overlap=false"):
        outputs(model, make_requests(1), overlap=True)


CONFIG = parse_config({"model_type": "gpt2", **GPT2_SHAPE, "vocab_size": 300, "eos_token_id": 299})


def allowed(grammars, sequence, vocab_size):
    """The tokens that may come next."""
    grammars.set_step([sequence])
    return torch.isfinite(grammars.mask(torch.zeros(1, vocab_size)))[0].nonzero()[:, 0].tolist()


def test_the_mask_follows_the_output():
    grammars = Grammars(CONFIG, torch.device("cpu"))
    request = Request(0, 0.0, 1, 9, stop_token_ids=frozenset({299}), json_schema='{"enum": [12, "a"]}')
    grammars.begin([request])
    sequence = Sequence(request)
    seen = []
    for token in b"12":
        seen.append(allowed(grammars, sequence, 300))
        sequence.append(token, 0.0)
    assert [*seen, allowed(grammars, sequence, 300)] == [[ord('"'), ord("1")], [ord("2")], [299]]
    sequence.append(299, 0.0)
    assert len(allowed(grammars, sequence, 300)) == 300  # the seat of a finished sequence in a static batch
    grammars.begin([replace(request, json_schema=None)])
    assert not grammars.is_needed
    assert len(allowed(grammars, sequence, 300)) == 300


def test_a_checkpoints_tokens_may_span_what_the_grammar_tells_apart(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)} | {'"x': 256}
    words = Tokenizer(models.BPE(vocabulary, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words.add_special_tokens(["<end>"])
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(tmp_path)
    eos = words.token_to_id("<end>")
    config = replace(CONFIG, checkpoint=str(tmp_path), vocab_size=264, eos_token_ids=(eos,))
    grammars = Grammars(config, torch.device("cpu"))
    request = Request(0, 0.0, 1, 9, stop_token_ids=frozenset({eos}), json_schema='{"enum": ["xa", "xb", "y"]}')
    grammars.begin([request])
    sequence = Sequence(request)
    assert allowed(grammars, sequence, 264) == [vocabulary['"'], vocabulary['"x']]
    sequence.append(vocabulary['"x'], 0.0)
    assert allowed(grammars, sequence, 264) == [vocabulary["a"], vocabulary["b"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"json_schema": '{"type": "strin"}'}, "json_schema: Invalid type: strin"),
        ({"json_schema": '{"type": "array", "uniqueItems": true}'}, r'Unimplemented keys: \["uniqueItems"\]'),
        ({"json_schema": '{"type": '}, "json_schema cannot be read: EOF"),
        ({"json_schema": "7"}, "json_schema cannot be read: Expecting object"),
        ({"stop_token_ids": frozenset({5})}, r"request 0 has a json_schema, so its stop_token_ids \[5\] must have"),
    ],
)
def test_what_cannot_be_kept_is_refused(changes, message):
    request = Request(0, 0.0, 1, 9, stop_token_ids=frozenset({299}), json_schema=SCHEMA)
    with pytest.raises(ValueError, match=message):
        Grammars(CONFIG, torch.device("cpu")).begin([replace(request, **changes)])


def test_a_model_without_an_end_is_refused():
    request = Request(0, 0.0, 1, 9, json_schema=SCHEMA)
    with pytest.raises(ValueError, match="needs a model with an end-of-sequence token"):
        Grammars(replace(CONFIG, eos_token_ids=()), torch.device("cpu")).begin([request])


def test_without_the_library_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    request = Request(0, 0.0, 1, 9, stop_token_ids=frozenset({299}), json_schema=SCHEMA)
    with pytest.raises(ValueError, match=r"pip install 'llm-serving-replay\[structured\]'"):
        Grammars(CONFIG, torch.device("cpu")).begin([request])
