"""Reader of JSON lines whose keys are yours: they are named in the config, with the unit of their times."""

from pathlib import Path

from framework.checks import shown, whole
from framework.core import PREFIX_BLOCK_SIZE, Trace
from framework.trace.columns import load_json_lines
from framework.trace.files import OPTIONAL, REQUIRED, TimeUnit, from_columns, units_per_second


def read_json_lines(
    path: str | Path, columns: dict[str, str], time_unit: TimeUnit = "s", block_size: int = PREFIX_BLOCK_SIZE
) -> Trace:
    """One JSON object per line; `columns` maps the columns of the project's own table to the file's keys.

    Times are in `time_unit`. Ids of a prompt's blocks stand for `block_size` tokens each. A key that is named has to be
    in every line; others are not read.
    """
    whole("block_size", block_size)
    allowed = [*REQUIRED, *OPTIONAL]
    for column in columns:
        if column not in allowed:
            raise ValueError(f"columns has {shown(column)}, which is not one of {', '.join(allowed)}")
    missing = [column for column in REQUIRED if column not in columns]
    if missing:
        raise ValueError(f"columns has no {', '.join(missing)}: name the file's keys for them")
    table = load_json_lines(Path(path), [*columns.values()])
    requests = from_columns(table, columns, units_per_second(time_unit), block_size)
    return Trace(requests, unread=table.unread)
