"""The tables and sentences of the speed studies: each arm's factor over the one before, peers, a served queue."""

import pandas as pd

from framework.report.tables import short

PEER_COLUMNS = {"output_throughput": "output throughput (tok/s)", "ratio": "engine ÷ peer", "error": "error"}


def factors_table(cases: pd.DataFrame, serving: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Per arm the decode steps (ms, device and step to step) and output tokens/s, with factors over the arm before."""
    rows = cases.to_dict("records")
    times = {(row["arm"], row["case"]): (row["device"], row["elapsed"]) for row in rows}
    names = list(dict.fromkeys(row["case"] for row in rows))
    lines = []
    before = next(iter(serving))
    for arm, numbers in serving.items():
        line = {"arm": arm}
        for name in names:
            if (arm, name) not in times:  # it did not fit beside this arm's other memory
                line[name] = "–"
                continue
            device, elapsed = times[arm, name]
            line[name] = f"{short(1e3 * device)} / {short(1e3 * elapsed)}"
            if (before, name) in times:
                line[name] += f" ({times[before, name][1] / elapsed:.2f}×)"
        throughput = numbers["output_throughput"]
        line["output tok/s"] = f"{throughput:,.0f} ({throughput / serving[before]['output_throughput']:.2f}×)"
        lines.append(line)
        before = arm
    return pd.DataFrame(lines)


def describe_start(start: dict[str, float]) -> str:
    return f"start: {start['model']:.1f} s for the model, {start['engine']:.1f} s until the engine was ready"


def describe_serving(serving: dict[str, float]) -> str:
    """The queue's throughput, and the host's work in steps of nearly full batches."""
    micro = {name: f"{1e6 * serving[name]:.0f}" for name in ("schedule", "prepare", "update", "host", "exposed")}
    host = (
        f"host time of a full step: {micro['host']} µs (schedule {micro['schedule']}, prepare {micro['prepare']}, "
        f"update {micro['update']}), of which the device waited {micro['exposed']} µs"
        if serving["num_full_steps"]
        else "no two full steps in a row, so no host time"
    )
    return (
        f"{serving['num_requests']} requests at once: {serving['num_output_tokens']:,} output tokens in "
        f"{serving['duration']:.2f} s, {serving['output_throughput']:,.0f} tok/s; {host}"
    )


def peers_table(peers: dict[str, object]) -> pd.DataFrame:
    """Per peer its throughput, and how many times that the engine's is; or why there is none."""
    table = pd.DataFrame.from_dict(peers, orient="index").reindex(columns=list(PEER_COLUMNS))
    return table.rename(columns=PEER_COLUMNS).rename_axis("peer").reset_index()
