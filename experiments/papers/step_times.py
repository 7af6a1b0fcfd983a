"""Seconds of single steps and of prompts in chunks: executed, or by a cost model."""

from collections.abc import Sequence as Steps
from itertools import pairwise
from statistics import median

from framework.contracts import Engine
from framework.core import Batch, Request, Sequence
from framework.engine.measured import MeasuredEngine, measured
from framework.engine.modelled import ModelledEngine
from framework.measure.mixed_steps import measure_chunks, measure_mixed
from framework.measure.steps import get_ready, measure_decode

NUM_PASSES = 201  # of modelled steps, whose noise the median is taken over
TimedEngine = MeasuredEngine | ModelledEngine


def timed(engine: Engine) -> TimedEngine:
    """The same engine; ValueError for one that neither computes steps nor has a cost model of them."""
    return engine if isinstance(engine, ModelledEngine) else measured(engine)


def decode_seconds(engine: TimedEngine, num_seqs: int, context: int, num_steps: int) -> float:
    """On the device, of a step in which `num_seqs` sequences of `context` tokens each decode."""
    if not isinstance(engine, ModelledEngine):
        return measure_decode(engine, num_seqs, context, num_steps).device
    return modelled_seconds(engine, [decode_batch(num_seqs, context)])


def mixed_seconds(
    engine: TimedEngine, num_prompt_tokens: int, num_decodes: int, context: int, num_steps: int
) -> tuple[float, float]:
    """Of a prompt beside decodes of `context` tokens each, and of a prompt alone that has as many rows."""
    if not isinstance(engine, ModelledEngine):
        found = measure_mixed(engine, num_prompt_tokens, 0, num_decodes, context, num_steps)
        return found.device, found.alone.device
    decodes = decode_batch(num_decodes, context)
    sequences = [*decodes.sequences, Sequence(Request(num_decodes, 0.0, num_prompt_tokens, 0))]
    mixed = Batch(
        sequences, [*decodes.starts, 0], [*decodes.num_tokens, num_prompt_tokens], num_prompt_tokens, num_decodes
    )
    return modelled_seconds(engine, [mixed]), modelled_seconds(engine, chunks_of(num_prompt_tokens + num_decodes))


def chunked_seconds(
    engine: TimedEngine, num_prompt_tokens: int, num_chunk_tokens: int, num_steps: int
) -> tuple[float, float]:
    """Of a prompt in chunks, all steps together, and in one step."""
    if not isinstance(engine, ModelledEngine):
        found = measure_chunks(engine, num_prompt_tokens, num_chunk_tokens, num_steps)
        return found.device, found.alone.device
    together = modelled_seconds(engine, chunks_of(num_prompt_tokens, num_chunk_tokens))
    return together, modelled_seconds(engine, chunks_of(num_prompt_tokens))


def make_ready(engine: TimedEngine, max_num_seqs: int, longest_prompt: int) -> None:
    """Before the first step is timed."""
    if isinstance(engine, ModelledEngine):
        engine.begin([Request(0, 0.0, longest_prompt, 0)], max_num_seqs)
    else:
        get_ready(engine, max_num_seqs, longest_prompt)


def decode_batch(num_seqs: int, context: int) -> Batch:
    """The step that computes the last of the `context` tokens of each."""
    sequences = [Sequence(Request(index, 0.0, context - 1, 2)) for index in range(num_seqs)]
    for sequence in sequences:
        sequence.output_token_ids = [0]
    return Batch(sequences, [context - 1] * num_seqs, [1] * num_seqs, 0, num_seqs)


def chunks_of(num_prompt_tokens: int, num_chunk_tokens: int | None = None) -> list[Batch]:
    """The steps of a prompt in chunks; None: in one."""
    sequence = Sequence(Request(0, 0.0, num_prompt_tokens, 0))
    borders = [*range(0, num_prompt_tokens, num_chunk_tokens or num_prompt_tokens), num_prompt_tokens]
    return [Batch([sequence], [start], [end - start], end - start, 0) for start, end in pairwise(borders)]


def modelled_seconds(engine: ModelledEngine, batches: Steps[Batch]) -> float:
    """On the device, of all steps together, the median over NUM_PASSES; each is launched with another in flight."""
    num_all, taken = len(batches) * NUM_PASSES, []
    engine.launch(batches[-1])
    for index in range(num_all):
        engine.launch(batches[index % len(batches)])
        taken.append(engine.collect().device)
    taken = [*taken[1:], engine.collect().device]
    return median(sum(taken[first : first + len(batches)]) for first in range(0, num_all, len(batches)))
