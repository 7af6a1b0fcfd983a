"""Event logs of continuous batching in an order: a step with a prompt takes 1 s, one of decodes 0.125 s."""

from dataclasses import replace
from typing import Any

from framework.core import Request
from framework.scheduler.continuous import ContinuousScheduler
from tests.scheduler.event_logs import run


def with_fields(requests: list[Request], **columns: list[Any]) -> list[Request]:
    """The requests with other values of some fields, one per request."""
    rows = zip(*columns.values(), strict=True)
    return [replace(one, **dict(zip(columns, row, strict=True))) for one, row in zip(requests, rows, strict=True)]


def served(requests, order, max_num_seqs=1, **options):
    """(start in s, ids) of every step, and the sequences."""
    sequences, _, log = run(requests, ContinuousScheduler, max_num_seqs=max_num_seqs, order=order, **options)
    return [(start, ids) for start, _, ids in log], sequences
