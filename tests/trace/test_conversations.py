"""Chats as text: turns of tokens, what is left out and counted, and files that hold none."""

import json
import re
from functools import partial

import pytest

from framework.models.tokenizer import ByteTokenizer, tokenizer_of
from framework.paths import ROOT
from framework.trace.arrivals import constant
from framework.trace.conversations import UNANSWERED, read_conversations
from framework.trace.recorded import recorded

SAMPLE = ROOT / "traces" / "sample_conversations.json"
bytes_of = partial(read_conversations, tokenizer=ByteTokenizer)


def chat(*messages):
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in messages]}


def write(folder, *chats):
    path = folder / "chats.json"
    path.write_text(json.dumps(chats))
    return path


def text_of(request):
    return bytes(request.prompt_token_ids).decode()


def test_a_turn_is_an_answer_and_all_that_was_said_before_it(tmp_path):
    first = chat(("system", "S"), ("human", "ab"), ("gpt", "c"), ("user", "d"), ("human", "é"), ("assistant", "ef"))
    second = chat(
        ("gpt", "hi"), ("human", "x"), ("gpt", ""), ("human", "y"), ("gpt", "z"), ("gpt", "!"), ("human", "?")
    )
    trace = bytes_of(write(tmp_path, first, second, chat(("human", "x"))), think_time=2.0)
    assert [(one.session_id, one.turn, text_of(one), one.num_output_tokens) for one in trace.requests] == [
        ("chat-0", 1, "Sab", 1),
        ("chat-0", 2, "Sabcdé", 2),
        ("chat-1", 1, "hixy", 1),
    ]
    assert [one.num_prompt_tokens for one in trace.requests] == [3, 7, 4]
    assert [one.think_time for one in trace.requests] == [None, 2.0, None]
    assert trace.dropped == {UNANSWERED: 2}
    assert len(bytes_of(write(tmp_path, first, second), num_conversations=1).requests) == 2


class WithBegin:
    """Begins every text with a special token, as Llama's tokenizer does."""

    def encode(self, text):
        return [999, *text.encode()]


def test_only_the_first_text_keeps_the_tokens_that_begin_every_text(tmp_path):
    path = write(tmp_path, chat(("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")))
    first, second = read_conversations(path, WithBegin).requests
    assert first.prompt_token_ids == (999, 97)
    assert second.prompt_token_ids == (999, 97, 98, 99)
    assert (first.num_output_tokens, second.num_output_tokens) == (1, 1)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON"),
        ("{}", "is not a list of conversations: {}"),
        ('[{"id": 3}]', "conversation 1 has no list of conversations: {'id': 3}"),
        ('[{"conversations": [{"from": "human"}]}]', "conversation 1, message 1 is not {'from': …, 'value': text}"),
        (
            '[{"conversations": [{"from": "x", "value": "a"}]}]',
            "message 1: from='x' is not one of system, human, user,",
        ),
        ('[{"conversations": []}]', "no conversation has a question and an answer"),
    ],
)
def test_what_holds_no_conversation_is_refused(tmp_path, content, problem):
    path = tmp_path / "chats.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(problem)):
        bytes_of(path)


def test_a_negative_think_time_is_refused():
    with pytest.raises(ValueError, match=r"think_time=-1\.0 is not a finite number of at least 0"):
        bytes_of(SAMPLE, think_time=-1.0)


def test_the_sample_takes_its_times_from_a_law_and_the_models_tokenizer():
    reader = partial(read_conversations, tokenizer=partial(tokenizer_of, path="models/tiny"))
    trace = recorded(reader=reader, path=SAMPLE, arrivals=constant, rate=2.0)
    starts = [one.arrival_time for one in trace.requests if one.turn == 1]
    assert starts == [0.5 * index for index in range(11)]
    assert trace.dropped == {UNANSWERED: 1}
    assert text_of(trace.requests[0]).startswith("seven seven green cloud")
