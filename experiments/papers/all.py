"""All papers on disk on one page: what each reports beside what was measured. Nothing is replayed."""

import json
from pathlib import Path

import pandas as pd

from experiments.papers.comparison import CAPTION, DEFINITIONS, FILE
from experiments.papers.figures import ratios_of_all
from framework.report.finish import Findings, finish
from framework.report.pages import RECORD
from framework.study.place import open_place

DRAWN = (
    "Ratios between arms, measured over reported: a point for each value, a colour for each paper, hollow where the "
    "quantity is not the same; in the grey band the two differ by 15% at most."
)


def run(*, papers_dir: str, device: str, output_dir: str) -> None:
    """Print and draw every comparison in `papers_dir`; ValueError where there is none."""
    place = open_place(device, output_dir)
    tables = read_comparisons(Path(papers_dir))
    if not tables:
        raise ValueError(f"no paper's study has ended in {papers_dir}: run one first, such as experiment=papers/orca")
    every = pd.concat([table.assign(paper=name) for name, table in tables.items()], ignore_index=True)
    captions = {f"{CAPTION}: {name}": table for name, table in tables.items()}
    figures = {"papers": (ratios_of_all(every), DRAWN)}
    finish(place, "papers", Findings(figures, captions, definitions=DEFINITIONS, files={"papers.csv": every}))


def read_comparisons(folder: Path) -> dict[str, pd.DataFrame]:
    """The comparison of every study in `folder`, by its place there and the device that it is of."""
    tables = {}
    for path in sorted(folder.rglob(FILE)):
        title = json.loads((path.parent / RECORD).read_bytes())["title"]
        name = path.parent.relative_to(folder).as_posix()
        tables[f"{name}, {title}"] = pd.read_csv(path, keep_default_na=False, na_values=[""])
    return tables
