"""Requests that begin alike, drawn at random, and an engine that finds in its memory what a sequence would read."""

from collections import Counter
from dataclasses import replace

from hypothesis import strategies as st

from framework.core import Request, Sequence
from tests.fake_engine import FakeEngine
from tests.scheduler.offline_cache import tokens_of


def named(request_id, arrival_time, num_prompt_tokens, num_output_tokens, *prefix_ids, size=4, **keywords):
    """A request whose prompt begins with these blocks of `size` tokens."""
    keywords |= {"prefix_ids": prefix_ids, "prefix_block_size": size}
    return Request(request_id, arrival_time, num_prompt_tokens, num_output_tokens, **keywords)


class Memory(FakeEngine):
    """Remembers of every slot the tokens up to its own; each sequence must find its own behind it, and writes alone."""

    def __init__(self, *args, **options):
        super().__init__(lambda batch: 0.01 * sum(batch.num_tokens), *args, **options)
        self.slots, self.chains = {}, {}

    def begin(self, *args):
        super().begin(*args)
        self.slots.clear()

    def add(self, sequence):
        request = sequence.request
        outputs = range(request.num_output_tokens)
        chain = [hash(request.adapter_id if self.num_adapter_slots else None)]
        for token in [*tokens_of(sequence).tolist(), *outputs]:
            chain.append(hash((chain[-1], token)))
        self.chains[sequence] = chain[1:]

    def launch(self, batch):
        super().launch(batch)
        written = Counter()
        for sequence, start, num_tokens in zip(batch.sequences, batch.starts, batch.num_tokens, strict=True):
            slots = [
                block * self.block_size + offset for block in sequence.block_table for offset in range(self.block_size)
            ]
            chain = self.chains[sequence]
            assert [self.slots[slot] for slot in slots[:start]] == chain[:start], f"{sequence} finds others' tokens"
            written.update(slots[start : start + num_tokens])
            self.slots.update(zip(slots[start : start + num_tokens], chain[start:], strict=False))
        assert max(written.values()) == 1


@st.composite
def workloads(draw):
    """Requests with a tree of prefixes, or of texts, that come while others run; with adapters and stop tokens.

    Some are the next turns of others.
    """
    size, has_text = draw(st.sampled_from([1, 3, 4, 16])), draw(st.booleans())
    requests, now = [], 0.0
    for index in range(draw(st.integers(1, 20))):
        now += draw(st.sampled_from([0.0, 0.01, 0.3]))
        prompt, output = draw(st.integers(1, 40)), draw(st.integers(1, 12))
        ids = draw(st.lists(st.integers(0, 1), max_size=-(-prompt // size)))
        adapter, stop = draw(st.sampled_from([None, "a", "b"])), draw(st.integers(0, 20))
        request = named(index, now, prompt, output, *ids, size=size, adapter_id=adapter)
        request = replace(request, stop_token_ids=frozenset({stop}))
        if has_text:  # some of it what another one may have answered
            text = tuple(tokens_of(Sequence(request)).tolist())
            text = text[: draw(st.integers(0, prompt))] + tuple(range(10))
            request = replace(request, num_prompt_tokens=len(text), prompt_token_ids=text)
        requests += [replace(request, session_id=str(index)), *next_turns(draw, request)]
    return requests


def next_turns(draw, request):
    """Up to two more turns of a session, whose new text is of 1 to 6 tokens."""
    turns = [request]
    for turn in range(2, draw(st.sampled_from([2, 2, 3, 4]))):
        before, think_time = turns[-1], draw(st.sampled_from([0.0, 0.2]))
        num_history_tokens = before.num_prompt_tokens + before.num_output_tokens
        num_prompt_tokens = num_history_tokens + draw(st.integers(1, 6))
        text = before.prompt_token_ids  # what is new of it are sevens
        text = text and text + (7,) * (num_prompt_tokens - len(text))
        session = {"session_id": str(request.request_id), "turn": turn, "think_time": think_time, "prefix_ids": ()}
        lengths = {"num_prompt_tokens": num_prompt_tokens, "prompt_token_ids": text}
        turns.append(replace(before, request_id=before.request_id + 100, **session, **lengths))
    return turns[1:]
