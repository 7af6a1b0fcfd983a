"""What a sweep's page says of requests that were not served as the trace has them, and of the memory beside them."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from framework.study.points import load_record
from framework.study.records import PointRecord
from framework.study.sweep import Study

Records = dict[Path, PointRecord]  # by the folder of the point


def service_notes(study: Study, points: pd.DataFrame) -> list[str]:
    """Sentences on the arms of `points`; those of which one is true share it."""
    arms_of: dict[str, list[str]] = {}
    for arm, rows in points.groupby("arm", sort=False):
        folders = [study.folder(point) for point in rows["point"]]
        records = {folder: record for folder in folders if (record := load_record(folder))}
        merged = study.arms[str(arm)].lora.keywords.get("adapter_id")
        for note in (*dropped_notes(records), *unserved_notes(records, merged), *memory_notes(records)):
            arms_of.setdefault(note, []).append(str(arm))
    return [f"{', '.join(arms)}: {note}" for note, arms in arms_of.items()]


def dropped_notes(records: Records) -> Iterator[str]:
    """One sentence per reason for which the trace's requests were left out."""
    dropped = [record["trace"]["dropped"] for record in records.values()]
    for reason in dict.fromkeys(reason for counts in dropped for reason in counts):
        counts = [each.get(reason, 0) for each in dropped]
        low, high = min(counts), max(counts)
        yield f"{high if low == high else f'{low} to {high}'} requests of each point were dropped: {reason}"


def unserved_notes(records: Records, merged: str | None) -> Iterator[str]:
    """Whether requests name an adapter and get the base model, or that with the one that is `merged` into it."""
    without_slots = [folder for folder, record in records.items() if not record["engine"]["num_adapter_slots"]]
    if not without_slots:
        return
    asked = pd.concat([pd.read_parquet(folder / "requests.parquet")["adapter_id"] for folder in without_slots])
    num_unserved = int((asked.notna() & (asked != merged)).sum())
    if num_unserved:
        instead = "the base model" if merged is None else f"the one with {merged!r} merged into it"
        some = f"{num_unserved:,} of {len(asked):,} requests"
        yield f"{some} name an adapter that this arm does not serve; all requests get {instead}"


def memory_notes(records: Records) -> Iterator[str]:
    """How the arm's adapter slots and KV cache share the memory."""
    for engine in [record["engine"] for record in records.values()][:1]:
        if engine["num_adapter_slots"]:
            slots, cache = (engine[name] / 1e6 for name in ("num_adapter_bytes", "num_cache_bytes"))
            yield f"adapter slots take {slots:,.1f} MB beside {cache:,.1f} MB of KV cache"
