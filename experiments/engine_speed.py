"""How near an engine is to the limits of the device it runs on, which are measured first; and its peers beside it."""

import gc
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
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
from framework.speed import ceilings_for, max_num_seqs_of, measure_cases, measure_serving, start_engine

PEERS = {"HF continuous batching": continuous, "HF generate, static batches": static}


def run(
    *,
    batch_sizes: list[int],
    context: int,
    prefills: list[list[int]],
    attention: list[list[int]],
    num_steps: int,
    peers: bool,
    seed: int,
    trace: Any,
    model: Any,
    engine: Any,
    scheduler: Any,
    device: str,
    output_dir: str,
) -> None:
    """Print and write ceilings, start, steps and attention against their floors, and the requests of `trace` served.

    `prefills` are [prompts, tokens each], `attention` [sequences, context]; `num_steps` steps are timed. What does not
    fit the device, the cache or the model is skipped, and said so. `peers` serve the same requests afterwards.
    """
    console, resolved = make_console(), resolve_device(device)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    config = describe({"model": model, "engine": engine, "scheduler": scheduler, "trace": trace})
    record: dict[str, Any] = {"config": config, "environment": environment(resolved)}
    ceilings = ceilings_for(model, engine, resolved)
    title = f"{record['environment']['device']}: {limits(ceilings)}"
    say(f"{title}, copy {1e-12 * ceilings.copy_bandwidth:.3g} TB/s")
    with console.status("") as status:
        max_num_seqs = max([*batch_sizes, max_num_seqs_of(scheduler)])
        ready, start = start_engine(model, engine, resolved, max_num_seqs, status.update)
    say(f"start: {start['model']:.1f} s for the model, {start['engine']:.1f} s until the engine was ready")
    cases = []
    for kind, sizes in (
        ("decode", [[num_seqs, context] for num_seqs in batch_sizes]), ("prefill", prefills), ("attention", attention),
    ):  # fmt: skip
        cases += measure_cases(kind, sizes, ready, num_steps, ceilings, say)
    requests = trace(rate=None, seed=seed, max_model_len=ready.max_model_len).requests
    serving = measure_serving(ready, scheduler, requests)
    record |= {"ceilings": asdict(ceilings), "start": start, "cases": cases, "serving": serving}
