"""A page as a parser sees it: its elements, its text, and what it refers to."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Raises AssertionError where an element is closed that is not the innermost open one."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.rows.append([])
            self.tables[-1].append(self.rows[-1])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.elements if attribute in attributes]

    def table(self, column: str) -> list[list[str]]:
        """The rows, without the header, of the only table that has this column."""
        [table] = [table for table in self.tables if column in table[0]]
        return table[1:]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    @property
    def ids(self) -> list[str]:
        return self.values("id")

    @property
    def references(self) -> set[str]:
        """The ids that something on the page refers to."""
        return set(re.findall(r'href="#([^"]*)"', self.source)) | set(re.findall(r"url\(#([^)]*)\)", self.source))


def check_page(page: Page, folder: Path) -> None:
    """Unique ids, no reference to nowhere, nothing loaded from a network."""
    assert len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)
    assert page.count("link") == page.count("img") == page.count("iframe") == 0
    assert not page.values("src")
    for link in page.values("href"):
        assert (folder / unquote(link)).is_file(), link
