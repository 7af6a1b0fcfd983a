"""All studies on disk on one page, outputs/index.html, with what each drew first."""

from pathlib import Path

from framework.report.pages import write_index


def run(*, output_dir: str, device: str) -> None:
    """Write `index.html` in `output_dir`, and every study's own page in it again. `device` is not used."""
    for line in write_index(Path(output_dir)):
        print(line)
