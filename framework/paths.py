"""Where the project is, and what a path in a config means."""

from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the repository


def locate(path: str | Path) -> Path:
    """`path` itself if it is absolute or exists from the current directory, else the same path in the repository."""
    path = Path(path).expanduser()
    return path if path.is_absolute() or path.exists() else ROOT / path
