"""Results → HTML that opens from disk without a network; the only importer of jinja2.

A study leaves `report.json` in its folder; `write_page` adds what run.py knows, the command and the whole config, and
renders it with the figures beside it. So a page is made of what is on disk, and can be made again from it.
"""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from framework.measure.definitions import defined_in
from framework.paths import is_writable
from framework.report.records import PAGE_RECORD
from framework.report.tables import cell, with_intervals
from framework.study.files import locked, write_atomically, write_json
from framework.study.records import check_record

RECORD, PAGE, INDEX = "report.json", "report.html", "index.html"
DATA = ("*.csv", "*.json", "*.jsonl")  # linked from the page
SCALE = 1.4  # of a figure on a wide screen; on a narrow one it keeps its own size, and scrolls


def write_record(
    folder: Path,
    *,
    title: str,
    environment: Mapping[str, Any],
    figures: Mapping[str, str],
    tables: Mapping[str, pd.DataFrame],
    notes: Sequence[str] = (),
    definitions: Mapping[str, str] | None = None,
) -> None:
    """Leave in `folder` what its page shows.

    `figures` maps a name, of `figures/<name>.svg`, to its caption; `tables` maps captions to tables, where the columns
    `X_low` and `X_high` are the interval of X. `notes` are sentences, shown first. `definitions` are of the study's own
    terms, which come before those that every study shares.
    """
    record = {
        "title": title,
        "environment": environment,
        "figures": figures,
        "tables": [table_record(caption, frame) for caption, frame in tables.items()],
        "notes": notes,
        "definitions": definitions or {},
    }
    write_json(folder / RECORD, record)


def table_record(caption: str, frame: pd.DataFrame) -> dict[str, Any]:
    """Each cell is a text, a number, null, or a number with its interval, as a list of three."""
    names, rows = with_intervals(frame)
    return {"caption": caption, "columns": names, "rows": rows}


def write_page(folder: Path, run: Mapping[str, str]) -> Path | None:
    """Complete the record that a study has just left in `folder` with `run`, and render it; None if it left none.

    `run` has the study's `name`, what it is `about`, the `command`, the `config` as YAML and when it was `finished`.
    A record that is damaged, as an earlier run may have left it, is ignored with a warning. A folder that is read only
    stays as it is.
    """
    path = folder / RECORD
    if not path.exists() or not is_writable(folder):
        return None
    with locked(folder):
        try:
            record = read_record(path)
        except ValueError as error:
            warnings.warn(f"{path} is damaged: {error}; ignored", stacklevel=2)
            return None
        if "run" not in record:  # else it is an earlier one's, or a job beside this one was quicker
            record["run"] = dict(run)
            write_json(path, record)
            return render_page(folder, record)
    return None


def read_record(path: Path) -> dict[str, Any]:
    """The record at `path`; ValueError if it is none."""
    record = json.loads(path.read_bytes())
    check_record(PAGE_RECORD, record)
    return dict(record)


def render_page(folder: Path, record: Mapping[str, Any]) -> Path:
    texts = [record["title"], *record["notes"], *record["figures"].values()]
    for table in record["tables"]:
        texts += [table["caption"], *table["columns"]]
    if any(isinstance(cell, list) for table in record["tables"] for row in table["rows"] for cell in row):
        texts.append("[low, high]")
    html = (
        templates()
        .get_template(PAGE)
        .render(
            record,
            drawings=[inline_svg(figure_path(folder, name), name, text) for name, text in record["figures"].items()],
            shared=defined_in(texts),
            files=sorted(path.name for pattern in DATA for path in folder.glob(pattern)),
        )
    )
    write_atomically(folder / PAGE, html)
    return folder / PAGE


def write_index(root: Path) -> list[str]:
    """Render every study's page under `root` again, and one that shows them all; what was done, a line each.

    A study whose record or figures lack something is left out. Raises ValueError where no study has ended.
    """
    studies, lines = [], []
    for path in sorted(root.rglob(RECORD), key=lambda path: path.parent):
        try:
            studies.append(study_entry(root, path))
            is_new = is_writable(path.parent)
            lines.append(f"wrote {path.parent / PAGE}" if is_new else f"{path.parent} is read only: its page stays")
        except (ValueError, OSError) as error:
            lines.append(f"{path} is left out: {error}")
    if not studies:
        raise ValueError("\n".join([f"no study has ended in {root}: run one first, such as python run.py", *lines]))
    with locked(root):
        write_atomically(root / INDEX, templates().get_template(INDEX).render(studies=studies, page=PAGE))
    return [*lines, f"wrote {root / INDEX}"]


def study_entry(root: Path, path: Path) -> dict[str, Any]:
    """What the index shows of the record at `path`, whose page is rendered; ValueError or OSError if it is damaged."""
    record = read_record(path)
    if "run" not in record:
        raise ValueError("its study has not ended")
    if is_writable(path.parent):
        with locked(path.parent):
            render_page(path.parent, record)
    place = path.parent.relative_to(root).as_posix()
    first = next(iter(record["figures"].items()), None)
    prefix = re.sub(r"\W", "-", place)
    thumbnail = inline_svg(figure_path(path.parent, first[0]), prefix, first[1]) if first else ""
    return {"place": place, "thumbnail": thumbnail, **record}


def figure_path(folder: Path, name: str) -> Path:
    return folder / "figures" / f"{name}.svg"


def inline_svg(path: Path, prefix: str, label: str) -> Markup:
    """Matplotlib's <svg> to stand in a page beside others: its ids begin with `prefix`, its style is the page's."""
    _, start, rest = path.read_text(encoding="utf-8").partition("<svg")
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", start + rest, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    size = re.search(r'width="([\d.]+)pt" height="[\d.]+pt"', svg)
    if size is None:
        raise ValueError(f"{path} is no figure with a size in points")
    width = float(size[1])
    style = f'style="min-width:{width:.0f}pt;width:{SCALE * width:.0f}pt" role="img"'
    return Markup(svg.replace(size[0], f'{style} aria-label="{escape(label)}"', 1))


def templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell
    return environment
