"""A recorded trace: find the file or download a published one, read it, choose a part and rescale its arrival rate."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from framework.core import Trace
from framework.paths import locate
from framework.trace import transforms
from framework.trace.arrivals import Arrivals, arrive_by, refuse_rate
from framework.trace.clients import assign_clients
from framework.trace.download import check_sum, download
from framework.trace.popularity import Law, assign_adapters
from framework.trace.predictions import Predictor, predict
from framework.trace.sessions import Turns, arrange

Rescale = Literal["stretch", "thin", "all_at_once"]


def recorded(
    *,
    reader: Callable[[Path], Trace],
    path: str | Path | None = None,
    file: str | Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    turns: Turns | None = None,
    window: list[float | None] | None = None,
    num_requests: int | None = None,
    rescale: Rescale = "stretch",
    max_prompt_tokens: int | None = None,
    max_output_tokens: int | None = None,
    max_gap: float | None = None,
    arrivals: Arrivals | None = None,
    max_concurrency: int | None = None,
    adapters: Law | None = None,
    clients: Law | None = None,
    predictions: Predictor | None = None,
    rate: float | None = None,
    seed: int = 0,
) -> Trace:
    """A file as a trace that starts at 0 s with request 0.

    `path` is a file of yours, read as it is. None: the published one is read, which is kept at `file`. It is downloaded
    from `url` if it is missing, and has to have the `sha256` (None: any).

    In this order: `turns` of sessions as recorded or closed, each after the answer before it (None: closed where the
    file has think times); `window` [start, end) in seconds of the file's clock (None: open); clipping to both limits;
    silences cut to `max_gap` seconds (None: as long as they are); thinning to `rate` requests/s (rescale=thin); the
    first `num_requests`; stretching to `rate` (rescale=stretch), or all of them at 0 s (rescale=all_at_once, which
    takes no rate). `rate` None keeps the recorded rate. Where turns are closed, times and rates are those of the
    sessions' first ones. `arrivals` is a process of arrivals.py that gives other times at `rate` (None: the file's).

    With `max_concurrency` at most so many sessions are in progress, each of a user who starts the next one when one is
    over: without a rate at once, with one not before its arrival time. `adapters` and `clients` are laws of
    popularity.py that say which adapter each request wants and whose it is, before thinning, and `predictions` is one
    of predictions.py (None: as recorded). `seed` matters to what is drawn only.
    """
    check_rescale(rescale, arrivals, rate)
    trace = reader(find_file(path) if path is not None else get_published(file, url, sha256))
    trace = arrange(trace, turns)
    if window is not None:
        if len(window) != 2:
            raise ValueError(f"window={window!r} is not a pair [start, end] of seconds (null: open)")
        trace = transforms.window(trace, *window)
    trace = transforms.restart(trace)  # differences of large times would drown in rounding
    trace = transforms.clip(trace, max_prompt_tokens, max_output_tokens)
    if max_gap is not None:
        trace = transforms.cut_gaps(trace, max_gap)
    if adapters is not None:
        trace = assign_adapters(trace, adapters, np.random.default_rng(seed).spawn(1)[0])
    client_rng, prediction_rng = np.random.default_rng(seed).spawn(4)[2:]  # the second is that of `arrivals`
    trace = predict(assign_clients(trace, clients, client_rng), predictions, prediction_rng)
    if rate is not None and rescale == "thin":
        trace = transforms.thin(trace, rate, seed)
    if num_requests is not None:
        trace = transforms.first(trace, num_requests)
    trace = transforms.limit(trace, max_concurrency)
    return transforms.restart(at_new_times(trace, rescale, arrivals, rate, seed))


def check_rescale(rescale: Rescale, arrivals: Arrivals | None, rate: float | None) -> None:
    """ValueError for an unknown way to reach a rate, and for one that `arrivals` or `rate` contradicts."""
    if rescale not in get_args(Rescale):
        raise ValueError(f"rescale={rescale!r} is not one of {', '.join(map(repr, get_args(Rescale)))}")
    if rescale == "all_at_once":
        refuse_rate(rate)
    if arrivals is not None and rescale != "stretch":
        raise ValueError(
            f"rescale={rescale!r} keeps or drops the file's times, and arrivals gives others: set one of them"
        )


def at_new_times(trace: Trace, rescale: Rescale, arrivals: Arrivals | None, rate: float | None, seed: int) -> Trace:
    """The trace at 0 s, at times of a process or at another rate, where one of these is asked for."""
    if rescale == "all_at_once" or (rate is None and trace.max_concurrency is not None):
        return transforms.all_at_once(trace)
    if arrivals is not None:
        return arrive_by(trace, arrivals, np.random.default_rng(seed).spawn(2)[1], rate)
    return transforms.stretch(trace, rate) if rate is not None and rescale == "stretch" else trace


def find_file(path: str | Path) -> Path:
    """Where `path` is, from the current directory or the project's root; FileNotFoundError if it is nowhere."""
    place = locate(path)
    if not place.exists():
        looked_at = dict.fromkeys([str(Path.cwd() / Path(path).expanduser()), str(place)])
        raise FileNotFoundError(f"no trace file at {' or '.join(looked_at)}: check `path`")
    return place


def get_published(file: str | Path | None, url: str | None, sha256: str | None) -> Path:
    """Where the published `file` is, downloaded if missing; ValueError if it has another `sha256`."""
    if file is None or url is None:
        raise ValueError(f"path=None, file={file!r}, url={url!r}: name your own trace file, as path")
    place = locate(file)
    if not place.exists():
        download(url, place, sha256)
    elif sha256 is not None:
        check_sum(place, sha256)
    return place
