"""How near an engine is to the limits of the device it runs on, which are measured first; and its peers beside it."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import pandas as pd
from typing_extensions import Unpack

from experiments.peers import PeerRun, continuous, run_peer, static
from experiments.speed.figures import against_alone, decode_step, roofline
from experiments.speed.tables import describe_serving, describe_start, peers_table
from framework.build import MakeTrace, free
from framework.core import Request, Sequence
from framework.engine.measured import MeasuredEngine
from framework.measure.cases import cases_table
from framework.measure.ceilings import Ceilings, limits
from framework.measure.mixed_steps import (
    check_comparisons,
    check_graphs,
    comparisons_table,
    measure_comparisons,
    most_seqs,
)
from framework.measure.serving import max_num_seqs_of, measure_serving
from framework.measure.steps import Say, ceilings_for, check_sizes, measure_cases, start_engine
from framework.report.finish import Findings, finish, write_findings
from framework.report.plots import Drawn
from framework.study.arguments import Serving
from framework.study.arms import Arm, parts_of
from framework.study.files import Json
from framework.study.place import Place, open_place

Peers = dict[str, Callable[[PeerRun], dict[str, float]]]
PEER_DEFINITION = {
    "Engine ÷ peer": "the output throughput of this engine / that of the peer, on the same requests "
    "(`generate` with peer_static_requests: on the first of them)"
}
ROOFLINE = "FLOP/s reached over the intensity of each step, under the measured ceilings."
DECODE_STEP = "Decode steps over the batch size: from step to step, on the device, and the floor."
AGAINST_ALONE = "Time on the device of mixed steps, and of prompts in chunks, over that of one step of a prompt alone "
AGAINST_ALONE += "(1, dashed): of as many rows, or of the whole prompt."
COMPARISON_DEFINITIONS = {
    "mixed A behind B + C × D": "a step with the last A tokens of a prompt, B cached ones before them, and C decodes "
    "with a context of D tokens each",
    "ratio": "time on the device / that of the step alone, which has as many rows or the whole prompt",
    "device waited": "from one step's tokens to the next one's, less the device's time: the median over the steps. "
    "Where steps are not launched ahead, the host's work is in it",
}


def run(
    *,
    batch_sizes: list[int],
    context: int,
    prefills: list[list[int]],
    attention: list[list[int]],
    mixed: list[list[int]],
    chunks: list[list[int]],
    num_steps: int,
    peers: bool,
    peer_seats: list[int],
    peer_static_requests: int | None,
    seed: int,
    trace: MakeTrace,
    **serving: Unpack[Serving],
) -> None:
    """Print and write ceilings, start, steps and attention against their floors, and the requests of `trace` served.

    `prefills` are [prompts, tokens each], `attention` [sequences, context], `mixed` [prompt tokens, cached ones before
    them, decodes, context of each], `chunks` [prompt tokens, tokens of a chunk]; `num_steps` steps are timed. What does
    not fit the device, the cache or the model is skipped, and said so. `peers` serve the same requests afterwards,
    continuous batching once with each number of `peer_seats`, `generate` the first `peer_static_requests` (None: all).
    """
    sizes = {"decode": [[size, context] for size in batch_sizes], "prefill": prefills, "attention": attention}
    compared = {"mixed": mixed, "chunks": chunks}
    check_sizes(sizes, num_steps)
    check_comparisons(compared, num_steps)
    check_graphs(serving["engine"], serving["model"], serving["scheduler"], mixed)
    place = open_place(serving["device"], serving["output_dir"])
    arm = Arm(**parts_of(serving), trace=trace, clock="virtual")
    ceilings = ceilings_for(serving["model"], serving["engine"], place.device)
    title = f"{place.device_name}: {limits(ceilings)}"
    place.say(f"{title} (copy {1e-9 * ceilings.copy_bandwidth:,.0f} GB/s)")
    measured, peer_run = measure_engine(arm, sizes, compared, num_steps, seed, ceilings, place)
    record: Json = {"config": arm.config, "environment": place.environment, "ceilings": asdict(ceilings)} | measured
    finish(place, title, find(record, ceilings, place.device_name))
    if peers:
        free(place.device)  # for the peers' processes
        contenders = make_peers(peer_seats, peer_static_requests)
        record["peers"] = serve_peers(contenders, peer_run, record["serving"]["output_throughput"], place.say)
        write_findings(place, title, find(record, ceilings, place.device_name))


def measure_engine(
    arm: Arm,
    sizes: dict[str, list[list[int]]],
    compared: dict[str, list[list[int]]],
    num_steps: int,
    seed: int,
    ceilings: Ceilings,
    place: Place,
) -> tuple[Json, PeerRun]:
    """What is measured of the engine, which is gone afterwards, as `speed.json` has it; and what its peers need."""
    most = most_seqs(compared), max_num_seqs_of(arm.scheduler)
    max_num_seqs = max([*(num_seqs for num_seqs, _ in sizes["decode"]), *most])
    with place.status("") as update:
        engine, start = start_engine(partial(arm.load_model, place.device), arm.engine, max_num_seqs, update)
    cases = [case.row(ceilings) for case in measure_cases(sizes, engine, num_steps, ceilings, place.say)]
    comparisons = []
    for comparison in measure_comparisons(compared, engine, num_steps, place.say):
        place.say(comparison.line(ceilings))
        comparisons.append(comparison.row(ceilings))
    requests = arm.trace(rate=None, seed=seed).requests
    served = measure_serving(engine, arm.scheduler, requests)
    measured: Json = {"start": start, "cases": cases, "comparisons": comparisons, "serving": served}
    return measured, make_peer_run(engine, requests)


def find(record: Json, ceilings: Ceilings, device: str) -> Findings:
    """What the record of the measured engine shows, and of its peers, if it has some."""
    cases, comparisons = pd.DataFrame(record["cases"]), pd.DataFrame(record["comparisons"])
    figures: dict[str, Drawn] = {}
    tables = {}
    if not cases.empty:
        figures["roofline"] = (roofline(cases, ceilings, device), ROOFLINE)
        tables["Steps and kernels against their floors"] = cases_table(cases)
        if (cases["kind"] == "decode").any():
            figures["decode_step"] = (decode_step(cases, device), DECODE_STEP)
    if not comparisons.empty:
        figures["against_alone"] = (against_alone(comparisons, device), AGAINST_ALONE)
        tables["Mixed steps and prompts in chunks against a step alone"] = comparisons_table(comparisons)
    if "peers" in record:
        tables["Peers on the same requests"] = peers_table(record["peers"])
    return Findings(
        figures,
        tables,
        notes=[describe_start(record["start"]), describe_serving(record["serving"])],
        definitions=({} if comparisons.empty else COMPARISON_DEFINITIONS)
        | (PEER_DEFINITION if "peers" in record else {}),
        files={"speed.json": record, "speed.csv": cases, "comparisons.csv": comparisons},
    )


def make_peer_run(engine: MeasuredEngine, requests: list[Request]) -> PeerRun:
    """What the peers need to serve the same prompts with the same shape."""
    prompts = [(prompt_of(engine, request), request.num_output_tokens) for request in requests]
    return PeerRun(engine.model.config, engine.dtype, engine.device.type, prompts)


def prompt_of(engine: MeasuredEngine, request: Request) -> list[int]:
    sequence = Sequence(request)
    engine.add(sequence)
    assert sequence.prompt_token_ids is not None
    tokens: list[int] = sequence.prompt_token_ids.tolist()
    return tokens


def make_peers(seats: list[int], num_static_requests: int | None) -> Peers:
    peers: Peers = {"HF generate, static batches": partial(static, num_requests=num_static_requests)}
    return {f"HF continuous batching, {num} seats": partial(continuous, max_num_seqs=num) for num in seats} | peers


def serve_peers(peers: Peers, run: PeerRun, output_throughput: float, say: Say) -> dict[str, object]:
    """Each peer's numbers, or its error: one that fails does not stop the study."""
    results: dict[str, object] = {}
    for name, peer in peers.items():
        try:
            result = run_peer(peer, run)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            results[name] = {"error": message}
            say(f"{name} failed: {message}")
            continue
        result["ratio"] = output_throughput / result["output_throughput"]
        results[name] = result
        say(
            f"{name}: {result['output_throughput']:,.0f} tok/s ({result['duration']:.2f} s); "
            f"the engine is {result['ratio']:.2f}× as fast"
        )
    return results
