"""How near an engine is to the limits of the device it runs on, which are measured first; and its peers beside it."""

import gc
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.table import Table

from experiments.peers import PeerRun, continuous, run_peer, static
from framework.ceilings import Ceilings
from framework.config import describe
from framework.console import make_console
from framework.core import Request
from framework.engine.prompts import prompt_token_ids
from framework.engine.torch_engine import TorchEngine
from framework.plots import save
from framework.plots_speed import decode_step, limits, roofline
from framework.points import write_atomically, write_json
from framework.provenance import environment, resolve_device
from framework.speed import (
    Say,
    ceilings_for,
    check_sizes,
    max_num_seqs_of,
    measure_cases,
    measure_serving,
    start_engine,
)

Peers = dict[str, Callable[[PeerRun], dict[str, Any]]]


def run(
    *,
    batch_sizes: list[int],
    context: int,
    prefills: list[list[int]],
    attention: list[list[int]],
    num_steps: int,
    peers: bool,
    peer_seats: list[int],
    seed: int,
    trace: Any,
    model: Any,
    quantization: Any,
    lora: Any,
    engine: Any,
    scheduler: Any,
    device: str,
    output_dir: str,
) -> None:
    """Print and write ceilings, start, steps and attention against their floors, and the requests of `trace` served.

    `prefills` are [prompts, tokens each], `attention` [sequences, context]; `num_steps` steps are timed. What does not
    fit the device, the cache or the model is skipped, and said so. `peers` serve the same requests afterwards,
    continuous batching once with each number of `peer_seats`.
    """
    sizes = {"decode": [[size, context] for size in batch_sizes], "prefill": prefills, "attention": attention}
    check_sizes(sizes, num_steps)
    console, resolved, folder = make_console(), resolve_device(device), Path(output_dir)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    config = describe(
        {
            "model": model,
            "quantization": quantization,
            "lora": lora,
            "engine": engine,
            "scheduler": scheduler,
            "trace": trace,
        }
    )
    record: dict[str, Any] = {"config": config, "environment": environment(resolved)}
    ceilings = ceilings_for(model, engine, resolved)
    title = f"{record['environment']['device']}: {limits(ceilings)}"
    say(f"{title} (copy {1e-9 * ceilings.copy_bandwidth:,.0f} GB/s)")
    with console.status("") as status:
        max_num_seqs = max([*batch_sizes, max_num_seqs_of(scheduler)])
        ready, start = start_engine(model, quantization, lora, engine, resolved, max_num_seqs, status.update)
    say(f"start: {start['model']:.1f} s for the model, {start['engine']:.1f} s until the engine was ready")
    cases = measure_cases(sizes, ready, num_steps, ceilings, say)
    table = pd.DataFrame([case.row(ceilings) for case in cases])
    requests = trace(rate=None, seed=seed, max_model_len=ready.max_model_len).requests
    serving = measure_serving(ready, scheduler, requests)
    record |= {"ceilings": asdict(ceilings), "start": start, "cases": table.to_dict("records"), "serving": serving}
    if cases:
        console.print(cases_table(table, title))
    say(describe_serving(serving))
    write(folder, record, table, ceilings, say)
    if peers:
        peer_run = make_peer_run(ready, requests)
        del ready
        free(resolved)
        record["peers"] = serve_peers(make_peers(peer_seats), peer_run, serving["output_throughput"], say)
        write_json(folder / "speed.json", record)


def cases_table(cases: pd.DataFrame, title: str) -> Table:
    table = Table("case", title=title, caption="MBU, MFU: floor / device, by the ceiling that binds")
    for header in ("floor, ms", "device, ms", "step to step, ms", "MBU", "MFU"):
        table.add_column(header, justify="right")
    for row in cases.to_dict("records"):
        elapsed = "" if row["elapsed"] != row["elapsed"] else f"{1e3 * row['elapsed']:.3f}"
        shares = [f"{row['utilisation']:.1%}" if row["bound"] == bound else "" for bound in ("MBU", "MFU")]
        table.add_row(row["case"], f"{1e3 * row['floor']:.3f}", f"{1e3 * row['device']:.3f}", elapsed, *shares)
    return table


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


def write(folder: Path, record: dict[str, Any], table: pd.DataFrame, ceilings: Ceilings, say: Say) -> None:
    """`speed.json`, `speed.csv` and the figures of the cases there are."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "speed.json", record)
    write_atomically(folder / "speed.csv", table.to_csv(index=False))
    device = record["environment"]["device"]
    figures = {"roofline": roofline(table, ceilings, device)} if len(table) else {}
    if len(table) and (table["kind"] == "decode").any():
        figures["decode_step"] = decode_step(table, device)
    for path in (folder / "speed.json", folder / "speed.csv", *save(figures, folder / "figures")):
        say(f"wrote {path}")


def make_peer_run(engine: TorchEngine, requests: list[Request]) -> PeerRun:
    """What the peers need to serve the same prompts with the same shape."""
    config = engine.model.config
    tokens = [prompt_token_ids(request, config.vocab_size, engine.seed).tolist() for request in requests]
    prompts = list(zip(tokens, (request.num_output_tokens for request in requests), strict=True))
    return PeerRun(config, engine.dtype, engine.device.type, prompts)


def free(device: torch.device) -> None:
    """Give the device's memory back, for the peers' processes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def make_peers(seats: list[int]) -> Peers:
    peers: Peers = {"HF generate, static batches": static}
    return {f"HF continuous batching, {num} seats": partial(continuous, max_num_seqs=num) for num in seats} | peers


def serve_peers(peers: Peers, run: PeerRun, output_throughput: float, say: Say) -> dict[str, Any]:
    """Each peer's numbers, or its error: one that fails does not stop the study."""
    results: dict[str, Any] = {}
    for name, peer in peers.items():
        try:
            result = run_peer(peer, run)
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"}
            say(f"{name} failed: {results[name]['error']}")
            continue
        result["ratio"] = output_throughput / result["output_throughput"]
        results[name] = result
        say(
            f"{name}: {result['output_throughput']:,.0f} tok/s ({result['duration']:.2f} s); "
            f"the engine is {result['ratio']:.2f}× as fast"
        )
    return results
