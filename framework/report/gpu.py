"""What a sweep's page says of a GPU: how steps were computed on it, and whether it was throttled."""

from collections.abc import Iterator

import pandas as pd

from framework.report.tables import load_titles
from framework.study.points import load_record
from framework.study.sweep import Study

CAPTION = "The GPU over each replay: median [lowest, highest]"
HEADERS = {"sm_clock": "SM clock (MHz)", "power": "power (W)", "temperature": "temperature (°C)"}
NAMES = {"fused": "fused kernels", "compile": "torch.compile", "cuda_graphs": "CUDA graphs", "overlap": "overlap"}


def gpu_notes(study: Study, points: pd.DataFrame) -> Iterator[str]:
    """Of an arm's `points`: which of an engine's options were on, and at which rates the GPU was throttled."""
    throttled: dict[str, list[str]] = {}  # reason → rates
    switches: dict[str, bool] = {}
    for point, title in zip(points["point"], load_titles(points), strict=True):
        record = load_record(study.folder(point))
        if record is None:
            continue
        switches = record["engine"].get("switches", {})
        gpu = record.get("gpu")
        for reason in [] if gpu is None else gpu["throttle_reasons"]:
            throttled.setdefault(reason, []).append(title)
    if switches and study.device.type == "cuda":
        parts = [", ".join(NAMES[name] for name in NAMES if switches[name] is on) or "nothing" for on in (True, False)]
        yield f"steps with {parts[0]}; without {parts[1]}"
    for reason, rates in throttled.items():
        yield f"the GPU was throttled ({reason}) at {', '.join(dict.fromkeys(rates))}"


def gpu_table(study: Study, points: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """One row per point that a GPU was watched at; no table if there is none."""
    rows = []
    for point, title in zip(points.itertuples(), load_titles(points), strict=True):
        record = load_record(study.folder(point.point))
        gpu = None if record is None else record.get("gpu")
        if gpu is None:
            continue
        row: dict[str, object] = {"arm": point.arm, "rate": title, "seed": point.seed}
        for name, header in HEADERS.items():
            low, middle, high = (gpu[name][end] for end in ("min", "median", "max"))  # type: ignore[literal-required]
            row |= {header: middle, f"{header}_low": low, f"{header}_high": high}
        rows.append(row | {"throttled": ", ".join(gpu["throttle_reasons"]) or "no"})
    return {CAPTION: pd.DataFrame(rows)} if rows else {}
