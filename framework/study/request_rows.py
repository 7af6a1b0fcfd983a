"""The rows of `requests.parquet`, written while the replay goes on: token times that are on disk take no memory.

Rows are in the order of arrival. Those that are written are always the first, and their requests are over.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from framework.contracts import Source
from framework.core import Request, Sequence
from framework.measure.replay_tables import OF_REQUEST, request_table
from framework.study import parquet
from framework.study.parquet import parquet_writer, schema_of, write_rows


class RequestRows:
    """The rows of all `requests`, those included that are `refused`, for a file; ROWS of them are written together."""

    def __init__(self, writer: pq.ParquetWriter, requests: list[Request], refused: Mapping[int, str]) -> None:
        self.writer, self.requests, self.refused = writer, requests, refused
        self.num_written = 0
        self.pending: list[Sequence] = []  # what has begun or is refused, and is not written
        self.over = set(refused)  # ids of those that will not change any more
        self.num_over = 0  # the first of the pending

    def begin(self, sequences: Iterator[Sequence]) -> Iterator[Sequence]:
        """The sequences of the requests that are not refused, in the order of arrival."""
        for request in self.requests:
            if request.request_id in self.refused:
                self.pending.append(Sequence(request))
            else:
                self.pending.append(next(sequences))
                yield self.pending[-1]

    def finish(self, sequence: Sequence) -> None:
        """Nobody asks for its tokens any more: it forgets them once they are written."""
        self.over.add(sequence.request.request_id)
        while self.num_over < len(self.pending) and self.pending[self.num_over].request.request_id in self.over:
            self.num_over += 1
        while self.num_over >= parquet.ROWS:
            rows, self.pending = self.pending[: parquet.ROWS], self.pending[parquet.ROWS :]
            self.num_over -= parquet.ROWS
            self.write(rows)
            for one in rows:
                one.output_token_ids, one.token_times = [], []

    def write_rest(self, sequences: list[Sequence]) -> None:
        """Of all `sequences`, in the order of arrival."""
        for first in range(self.num_written, len(sequences), parquet.ROWS):
            self.write(sequences[first : first + parquet.ROWS])

    def write(self, sequences: list[Sequence]) -> None:
        write_rows(self.writer, request_table(sequences, self.refused))
        self.num_written += len(sequences)
        self.over.difference_update(one.request.request_id for one in sequences)


class WrittenSource:
    """A source of sequences that follow from no others, and that arrive in the order of the rows."""

    def __init__(self, source: Source, rows: RequestRows) -> None:
        self.source, self.rows, self.requests, self.follows = source, rows, source.requests, False

    def begin(self) -> Iterator[Sequence]:
        return self.rows.begin(iter(self.source.begin()))

    def follow(self, finished: Sequence, now: float) -> Iterator[Sequence]:
        yield from self.source.follow(finished, now)
        self.rows.finish(finished)


def write_replay(
    file: IO[bytes],
    source: Source,
    serve: Callable[[Source], list[Sequence]],
    requests: list[Request],
    refused: Mapping[int, str],
    *,
    may_forget: bool,
) -> list[Sequence]:
    """Serve what comes from the source, and write the rows of all `requests` to `file`; these, in the same order.

    If they `may_forget` their tokens once they have finished, rows are written meanwhile, where it is known from the
    start in which order they come.
    """
    with parquet_writer(file, schema_for(requests, refused)) as writer:
        rows = RequestRows(writer, requests, refused)
        is_known = may_forget and not source.follows and come_in_order(requests)
        offered = with_refused(serve(WrittenSource(source, rows) if is_known else source), requests, refused)
        rows.write_rest(offered)
    return offered


def with_refused(served: list[Sequence], offered: list[Request], refused: Mapping[int, str]) -> list[Sequence]:
    """What was served, and among it what never arrived at a server, in the order of arrival."""
    sequences = [*served, *(Sequence(request) for request in offered if request.request_id in refused)]
    return sorted(sequences, key=lambda sequence: (sequence.arrival_time, sequence.request.request_id))


def come_in_order(requests: list[Request]) -> bool:
    """Whether they are in the order of the rows."""
    keys = ((request.arrival_time, request.request_id) for request in requests)
    return all(before < after for before, after in pairwise(keys))


def schema_for(requests: list[Request], refused: Mapping[int, str]) -> pa.Schema:
    """Of the table of all these: what a column is depends on whether anybody has it."""
    firsts = [next((one for one in requests if getattr(one, name) is not None), requests[0]) for name in OF_REQUEST]
    firsts.append(next((one for one in requests if one.request_id in refused), requests[0]))
    samples = {one.request_id: Sequence(one) for one in firsts}
    table = request_table(samples.values(), refused)
    return schema_of(table.iloc[np.arange(len(requests)) % len(samples)].reset_index(drop=True))
