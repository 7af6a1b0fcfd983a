"""Schedules by hand: joins sequences one step apart and deals shuffled blocks, or pads them into one static batch.

Also records logits, of a replay whose tokens may be given, and compares them.
"""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from framework.core import Batch, Request, Sequence


def make_requests(num_prompt_tokens, num_output_tokens, **keywords):
    pairs = zip(num_prompt_tokens, num_output_tokens, strict=True)
    return [Request(index, 0.0, *lengths, **keywords) for index, lengths in enumerate(pairs)]


def seat(engine, requests, blocks_each=8, is_static=False):
    """Sequences with block tables in shuffled order and, if static, padding on the left."""
    free = iter(np.random.default_rng(0).permutation(engine.num_blocks).tolist())
    sequences = [Sequence(request) for request in requests]
    for sequence in sequences:
        engine.add(sequence)
        sequence.block_table = [next(free) for _ in range(blocks_each)]
        if is_static:
            longest = max(request.num_prompt_tokens for request in requests)
            sequence.num_padding = longest - sequence.request.num_prompt_tokens
    return sequences


def generate(engine, requests, chunk=10**9, is_static=False):
    """Outputs of all requests; `engine.begin` was called."""
    sequences = seat(engine, requests, is_static=is_static)
    num_joined = 0
    while not all(sequence.is_finished for sequence in sequences):
        num_joined += 1
        seats = sequences if is_static else [one for one in sequences[:num_joined] if not one.is_finished]
        starts = [one.num_computed_tokens for one in seats]
        num_tokens = [min(chunk, max(one.num_tokens - one.num_computed_tokens, 1)) for one in seats]
        is_decode = all(one.output_token_ids for one in seats) and max(num_tokens) == 1
        num_decode_tokens = len(seats) if is_decode else 0
        result = engine.step(Batch(seats, starts, num_tokens, sum(num_tokens) - num_decode_tokens, num_decode_tokens))
        for sequence, num, token_id in zip(seats, num_tokens, result.token_ids, strict=True):
            sequence.num_computed_tokens += num
            assert (token_id is None) == (sequence.num_computed_tokens < sequence.num_tokens)
            if token_id is not None and not sequence.is_finished:
                sequence.append(token_id, 0.0)
    return [sequence.output_token_ids for sequence in sequences]


def generate_alone(engine, requests):
    """Outputs of all requests, computed one after the other."""
    engine.begin(requests, 1)
    return [output for request in requests for output in generate(engine, [request])]


def record_logits(engine):
    """Of a prefill of 40 + 7 tokens and a decode step with given tokens; sampling sees them outside the graph."""
    requests = make_requests([40, 7], [2, 2])
    seen = []
    sampler = engine._sampler
    sampler.sampling = replace(sampler.sampling, temperature=1.0)
    sampler.choose = lambda logits: seen.append(logits.clone()) or logits.argmax(-1)
    engine.begin(requests, 2)
    sequences = seat(engine, requests)
    engine.step(Batch(sequences, [0, 0], [40, 7], 47, 0))
    for sequence in sequences:
        sequence.output_token_ids = [3]
    fresh = [copy_of(sequence) for sequence in sequences]  # not seen before: their tokens come from the host
    engine.step(Batch(fresh, [40, 7], [1, 1], 0, 2))
    return seen[-2:]


@contextmanager
def told(engine, answers=None):
    """Steps inside give these tokens, by request id, whatever their logits; None: those of the largest logit.

    Yields the logits that sampling sees, outside the graphs, by request id and number of the token.
    """
    seen, due = {}, []
    sampler, launch = engine._sampler, engine.launch

    def launch_and_note(batch):
        for sequence, start, num in zip(batch.sequences, batch.starts, batch.num_tokens, strict=True):
            if start + num >= sequence.num_tokens:  # it samples
                number = start + num - sequence.num_padding - sequence.request.num_prompt_tokens
                due.append((sequence.request, number))
        launch(batch)
        assert not due

    def choose(logits):
        tokens = logits.argmax(-1)
        for row, (request, number) in enumerate(due):  # none of them while the engine warms up
            if number < request.num_output_tokens:  # a finished sequence stays in its static batch
                seen[request.request_id, number] = logits[row].float().cpu().clone()  # a graph writes there again
                if answers is not None:
                    tokens[row] = answers[request.request_id][number]
        due.clear()
        return tokens

    kept = sampler.sampling, sampler.choose
    sampler.sampling, sampler.choose = replace(sampler.sampling, temperature=1.0), choose
    engine.launch = launch_and_note
    try:
        yield seen
    finally:
        sampler.sampling, sampler.choose = kept
        del engine.launch


def in_order(seen):
    """The logits that `told` yields, (tokens of all requests, vocab_size)."""
    return torch.stack([seen[key] for key in sorted(seen)])


def copy_of(sequence):
    other = Sequence(sequence.request)
    other.block_table, other.output_token_ids = sequence.block_table, sequence.output_token_ids
    other.prompt_token_ids = sequence.prompt_token_ids
    return other


def relative_error(got, want):
    """Root mean square error over root mean square."""
    return float((got.double() - want.double()).square().mean().sqrt() / want.double().square().mean().sqrt())
