"""What a paper reports beside what was measured: one file per paper in `reported/`, one table on every page.

Hardware differs, so what is compared are ratios between arms or, where a paper's value is a ratio itself, the values.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NotRequired

import pandas as pd
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from framework.report.finish import Findings

FOLDER = Path(__file__).parent / "reported"
FILE = "comparison.csv"  # in the folder of a study: what papers/all reads
CAPTION = "Reported and measured"
SPREAD = "± of repeats"
Value = float | list[float]  # [lowest, highest]: the paper gives a range
Values = Mapping[str, Mapping[str, float]]  # quantity → arm, or another case → value

DEFINITIONS = {
    "Reported": "by the paper. Raw: read from its authors' files; text: in its text; transcribed: by others from it; "
    "digitised: off a plot; a range is all that it says",
    "Ratio of ratios": "measured ratio / reported ratio. A ratio is that of a value to the value of the case named "
    "behind ÷, or a value that is a ratio already. 1 within a reported range, else to its nearer end",
    "Same quantity": "whether measured and reported are of the same definition and the same load",
}


class Quantity(TypedDict):
    """What a paper reports of one thing, by arm or by another case; `place` is where: a figure, a table, a section.

    Ratios are to the case `base`; without one the values are ratios. `why` says why ours differ, in a sentence.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    name: str
    unit: str
    place: str
    read: Literal["raw", "text", "transcribed", "digitised"]
    base: NotRequired[str]
    is_same: bool
    why: str
    values: dict[str, Value]


class Paper(TypedDict):
    """A file of `reported/`: the paper's setting, and how it is carried over to another device and model."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    source: str
    setting: str
    carried_over: str
    quantities: dict[str, Quantity]


PAPER = TypeAdapter(Paper)


def read_paper(name: str) -> Paper:
    """What `reported/NAME.yaml` says; ValueError naming the key of what is none of a paper's."""
    path = FOLDER / f"{name}.yaml"
    try:
        return PAPER.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        [first, *_] = error.errors()
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from None


def reported(paper: Paper, quantity: str) -> dict[str, float]:
    """The values of a quantity that are no ranges, for figures that draw them."""
    values = paper["quantities"][quantity]["values"]
    return {case: value for case, value in values.items() if not isinstance(value, list)}


def compare(paper: Paper, measured: Values, spreads: Values | None = None) -> pd.DataFrame:
    """A row for each reported value; NaN where nothing is measured. ValueError for a quantity that is not reported.

    With `spreads`, half of a measured value's 95% interval over repeats stands behind it.
    """
    for name in measured:
        if name not in paper["quantities"]:
            raise ValueError(f"{name!r} is no quantity that {paper['source']} reports")
    rows = []
    for name, quantity in paper["quantities"].items():
        ours = measured.get(name, {})
        cases = [row(quantity, case, value, ours) for case, value in quantity["values"].items()]
        if spreads is not None:
            cases = [with_spread(case, spreads.get(name, {})) for case in cases]
        cases[0] |= {"why they differ": quantity["why"], "read": f"{quantity['place']}, {quantity['read']}"}
        rows += cases
    return pd.DataFrame(rows)


def row(quantity: Quantity, case: str, value: Value, measured: Mapping[str, float]) -> dict[str, object]:
    own, base = measured.get(case, math.nan), quantity.get("base")
    ratio, measured_ratio = value, own
    if base is not None:
        reported_base = quantity["values"][base]
        assert not isinstance(value, list)
        assert not isinstance(reported_base, list)
        ratio, measured_ratio = value / reported_base, own / measured.get(base, math.nan)
    ends = sorted(ratio) if isinstance(ratio, list) else [ratio, ratio]
    nearest = min(max(measured_ratio, ends[0]), ends[1]) if not math.isnan(measured_ratio) else math.nan
    units = [quantity["unit"]] * bool(quantity["unit"]) + [f"÷ {base}"] * (base is not None)
    return {
        "quantity": quantity["name"] + (f" ({'; '.join(units)})" if units else ""),
        "of": case,
        "reported": shown(value),
        "measured": own,
        "reported ratio": shown(ratio),
        "measured ratio": measured_ratio,
        "ratio of ratios": measured_ratio / nearest,
        "same quantity": "yes" if quantity["is_same"] else "no",
        "why they differ": "",  # of a quantity with several rows in the first one
        "read": "",
    }


def with_spread(row: dict[str, object], spreads: Mapping[str, float]) -> dict[str, object]:
    """The same row with the spread behind what is measured."""
    columns = list(row)
    columns.insert(columns.index("measured") + 1, SPREAD)
    with_it = {**row, SPREAD: spreads.get(str(row["of"]), math.nan)}
    return {column: with_it[column] for column in columns}


def shown(value: Value) -> float | str:
    """A number, or a range as text."""
    return f"{value[0]:g}–{value[1]:g}" if isinstance(value, list) else value


def with_comparison(name: str, measured: Values, findings: Findings, spreads: Values | None = None) -> Findings:
    """The findings of a study of the paper `name`, with the table first and the settings, the paper's and ours."""
    paper = read_paper(name)
    table = compare(paper, measured, spreads)
    notes = [f"{paper['source']}: {paper['setting']}", f"carried over: {paper['carried_over']}"]
    return replace(
        findings,
        tables={f"{CAPTION}: {paper['source']}": table, **findings.tables},
        notes=[*notes, *findings.notes],
        definitions={**DEFINITIONS, **findings.definitions},
        files={FILE: table, **findings.files},
    )
