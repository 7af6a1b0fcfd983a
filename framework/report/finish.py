"""The end of a study: write its figures, files and what its page shows; print what it found and where it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from framework.errors import StudyError
from framework.measure.rates import aggregate
from framework.paths import is_writable
from framework.report.capacity import DEFINITIONS, capacity_figures, capacity_notes, capacity_tables, probe_rows
from framework.report.gpu import gpu_table
from framework.report.modelled import label
from framework.report.notes import limits, service_notes
from framework.report.pages import write_record
from framework.report.plots import Drawn, save
from framework.report.servers import server_findings
from framework.report.tables import overview, print_frame, print_overview
from framework.study.arguments import Tracker
from framework.study.arms import configs_of
from framework.study.files import locked, write_atomically, write_json
from framework.study.place import Place
from framework.study.points import write_table
from framework.study.sweep import Study


@dataclass(frozen=True, slots=True)
class Findings:
    """What a study has to show.

    `figures` maps names to a figure and its caption, `tables` captions to tables; `notes` are sentences, and
    `definitions` are of the study's own terms. `files` maps names to tables, written as CSV, and other data, as JSON.
    """

    figures: Mapping[str, Drawn] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    notes: Sequence[str] = ()
    definitions: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, pd.DataFrame | dict[str, object]] = field(default_factory=dict)


def finish(place: Place, title: str, findings: Findings) -> None:
    """Write what a study found, and the record that its page is made of; print its tables, notes and where they are."""
    with locked(place.output_dir):
        figures = write_findings(place, title, findings)
    print_findings(place, findings, figures)


def finish_sweep(study: Study, name: str, find: Callable[[pd.DataFrame], Findings]) -> None:
    """As `finish`, of what `find` makes of every finished point in the folder, beside what every sweep shows.

    Jobs that share a folder take turns, so the last one to end draws every point. The study's tracker is given the
    points when all else is on disk. Where the folder is read only, what is finished there is printed.
    """
    title = f"{name} on {study.device_name}"
    with study.points() as points:
        csv = write_table(study.output_dir, points)
        print_overview(study.console, aggregate(points), title)
        own = find(points)
        findings = replace(own, notes=[*own.notes, *service_notes(study, points), *limits(study, points)])
        if study.capacities:
            findings = with_capacities(study, findings)
        findings = with_servers(study, points, findings)
        caption = f"Every arm at every rate{label(study.arms)}"
        page = replace(
            findings,
            tables={caption: overview(points, study.price_per_gpu_hour), **findings.tables, **gpu_table(study, points)},
            notes=[*findings.notes, *(f"Failed: {message}" for message in study.failures)],
        )
        if not is_writable(study.output_dir):
            print_findings(study, replace(findings, files={}), [])
            study.say(f"{study.output_dir} is read only: nothing was written")
            return
        figures = write_findings(study, title, page)
    print_findings(study, findings, [csv, study.output_dir / "points", *figures])
    if study.tracking is not None:
        track(study, study.tracking, name, points, figures)


def with_capacities(study: Study, findings: Findings) -> Findings:
    """What a search found stands before the rest."""
    return replace(
        findings,
        figures={**capacity_figures(study), **findings.figures},
        tables={**capacity_tables(study), **findings.tables},
        notes=[*capacity_notes(study), *findings.notes],
        definitions={**DEFINITIONS, **findings.definitions},
        files={"probes.csv": probe_rows(study), **findings.files},
    )


def with_servers(study: Study, points: pd.DataFrame, findings: Findings) -> Findings:
    """Behind the rest, what each server of an arm had to do, where there are several."""
    figures, tables = server_findings(study, points)
    return replace(findings, figures={**findings.figures, **figures}, tables={**findings.tables, **tables})


def track(study: Study, tracking: Tracker, name: str, points: pd.DataFrame, figures: list[Path]) -> None:
    """StudyError if the points could not be logged; it says what is on disk. Jobs that share a folder take turns."""
    try:
        with locked(study.output_dir):
            group = name + label(study.arms)
            tracking(points, configs_of(study.arms), figures, study=group, output_dir=study.output_dir)
    except Exception as error:  # whatever the tracker's library raises
        kept = f"{len(points)} points, the tables and the figures are in {study.output_dir}"
        raise StudyError(f"{error} (tracking failed: {kept}; the same command logs them)") from error


def write_findings(place: Place, title: str, findings: Findings) -> list[Path]:
    """Write the files, the figures and the record that the page is made of; return the figures' paths."""
    write_files(place.output_dir, findings.files)
    figures = save({name: figure for name, (figure, _) in findings.figures.items()}, place.output_dir / "figures")
    write_record(
        place.output_dir,
        title=title,
        environment=place.environment,
        figures={name: caption for name, (_, caption) in findings.figures.items()},
        tables=findings.tables,
        notes=findings.notes,
        definitions=findings.definitions,
    )
    return figures


def print_findings(place: Place, findings: Findings, paths: list[Path]) -> None:
    """Print the tables, the notes and what was written: the findings' own files and `paths`."""
    for caption, table in findings.tables.items():
        print_frame(place.console, table, caption)
    for line in findings.notes:
        place.say(line)
    for path in (*(place.output_dir / name for name in findings.files), *paths):
        place.say(f"wrote {path}")


def write_files(folder: Path, files: Mapping[str, pd.DataFrame | dict[str, object]]) -> None:
    """Each whole or not at all, as `Findings.files` says."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, pd.DataFrame):
            write_atomically(folder / name, content.to_csv(index=False))
        else:
            write_json(folder / name, content)
