"""What a sweep's page says of requests that were not served as the trace has them."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from framework.points import load_record
from framework.study import Study

Records = list[dict[str, Any]]  # what point.json says of an arm's points


def service_notes(study: Study, points: pd.DataFrame) -> list[str]:
    """Sentences on the points of `points`; arms of which one is true share it."""
    arms_of: dict[str, list[str]] = {}
    for arm, rows in points.groupby("arm", sort=False):
        folders = [study.folder(point) for point in rows["point"]]
        records = [record for folder in folders if (record := load_record(folder))]
        for note in dropped_notes(records):
            arms_of.setdefault(note, []).append(str(arm))
    return [f"{', '.join(arms)}: {note}" for note, arms in arms_of.items()]


def dropped_notes(records: Records) -> Iterator[str]:
    """One sentence per reason for which the trace's requests were left out."""
    dropped = [record["trace"]["dropped"] for record in records]
    for reason in dict.fromkeys(reason for counts in dropped for reason in counts):
        counts = [each.get(reason, 0) for each in dropped]
        low, high = min(counts), max(counts)
        yield f"{high if low == high else f'{low} to {high}'} requests of each point were dropped: {reason}"
