"""Where the project is, what a path in a config means, and whether a study can write where it is to."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the repository


def locate(path: str | Path) -> Path:
    """`path` itself if it is absolute or exists from the current directory, else the same path in the repository."""
    path = Path(path).expanduser()
    return path if path.is_absolute() or path.exists() else ROOT / path


def output_folder(path: str) -> Path:
    """The folder that `path` names, with ~ for the home folder; ValueError if a study could not write there.

    Where points are finished a folder may be read only: they can still be reported.
    """
    try:
        folder = Path(path).expanduser()
    except RuntimeError as error:  # ~name, of nobody here
        raise ValueError(f"output_dir={path}: {error}") from error
    parts = [folder / name for name in ("points", "figures", "wandb")]
    check_folders("output_dir", folder, *parts)
    for name in (".lock", "points.csv", "report.json", "report.html"):
        if (folder / name).is_dir():
            raise ValueError(f"output_dir={path}: {folder / name} is a folder, where a file belongs")
    if not (folder / "points.csv").exists():
        check_writable(folder, *parts)
    return folder


def check_folders(key: str, *folders: Path) -> None:
    """ValueError for a folder, a value of `key`, that is no folder or is in none."""
    for folder in folders:
        for place in (*reversed(folder.parents), folder):
            if place.exists() and not place.is_dir():
                raise ValueError(f"{key}={folders[0]}: {place} is a file, where a folder belongs")


def check_writable(*folders: Path) -> None:
    """ValueError for a folder that cannot be written, or made."""
    for folder in folders:
        place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not is_writable(place):
            raise ValueError(f"{place.resolve()} cannot be written: it is read only, or another user's")


def is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)
