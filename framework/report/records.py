"""What `report.json` holds: others are damaged, or something else's."""

from typing import NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from framework.study.records import Interval, Number


class PageEnvironment(TypedDict):
    device: str
    packages: dict[str, str | None]


class Table(TypedDict):
    caption: str
    columns: list[str]
    rows: list[list[str | bool | Number | Interval]]


class Run(TypedDict):
    name: str
    about: str
    command: str
    config: str
    finished: str


class PageRecord(TypedDict):
    """`report.json`; `run` comes with the page, when the study has ended."""

    title: str
    environment: PageEnvironment
    figures: dict[str, str]
    tables: list[Table]
    notes: list[str]
    definitions: dict[str, str]
    run: NotRequired[Run]


PAGE_RECORD = TypeAdapter(PageRecord)
