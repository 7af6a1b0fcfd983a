"""A recorded trace: find the file (or download it), read it, choose a part and rescale its arrival rate."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from framework.core import Trace
from framework.paths import locate
from framework.trace import transforms
from framework.trace.download import check_sum, download
from framework.trace.popularity import Law, assign_adapters


def recorded(
    *,
    reader: Callable[[Path], Trace],
    path: str | Path,
    url: str | None = None,
    sha256: str | None = None,
    window: list[float | None] | None = None,
    num_requests: int | None = None,
    rescale: Literal["stretch", "thin"] = "stretch",
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
    adapters: Law | None = None,
    rate: float | None = None,
    seed: int = 0,
) -> Trace:
    """The file at `path` as a trace that starts at 0 s with request 0; a missing file is downloaded if `url` is given.

    In this order: `window` [start, end) in seconds of the file's clock (None: open); clipping to the two limits;
    thinning to `rate` requests/s (rescale=thin); the first `num_requests`; stretching to `rate` (rescale=stretch).
    `rate` None keeps the recorded rate. `adapters` is a law of popularity.py that says which adapter each request
    wants, before thinning (None: as recorded). `seed` matters to thinning and adapters only.
    """
    if rescale not in ("stretch", "thin"):
        raise ValueError(f"rescale={rescale!r} is not one of 'stretch', 'thin'")
    trace = reader(available(path, url, sha256))
    if window is not None:
        if len(window) != 2:
            raise ValueError(f"window={window!r} is not a pair [start, end] of seconds (null: open)")
        trace = transforms.window(trace, *window)
    trace = transforms.restart(trace)  # differences of large times would drown in rounding
    trace = transforms.clip(trace, max_prompt_tokens, max_output_tokens)
    if adapters is not None:
        trace = assign_adapters(trace, adapters, np.random.default_rng(seed).spawn(1)[0])
    if rate is not None and rescale == "thin":
        trace = transforms.thin(trace, rate, seed)
    if num_requests is not None:
        trace = transforms.first(trace, num_requests)
    if rate is not None and rescale == "stretch":
        trace = transforms.stretch(trace, rate)
    return transforms.restart(trace)


def available(path: str | Path, url: str | None, sha256: str | None) -> Path:
    """Where `path` is, downloaded if missing; FileNotFoundError without a `url`, ValueError for another `sha256`."""
    place = locate(path)
    if url is None:
        if not place.exists():
            looked_at = dict.fromkeys([str(Path.cwd() / Path(path).expanduser()), str(place)])
            raise FileNotFoundError(f"no trace file at {' or '.join(looked_at)}: check `path`")
    elif not place.exists():
        download(url, place, sha256)
    elif sha256 is not None:
        check_sum(place, sha256)
    return place
