"""Many adapters in one batch: decode steps over the batch size (lesson 6), then the trace over arrival rates."""

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import product

import pandas as pd
from typing_extensions import Unpack

from experiments.lora.figures import steps_by_arm
from experiments.lora.steps import Sizes, growth, measure_rounds, median_steps, mixed_table
from experiments.lora.tables import adapter_rows, adapter_tables, reference_notes
from experiments.peers import PeerRun, mixed_adapters, run_peer
from framework.build import MakeScheduler, free
from framework.lora.service import AdapterService, service_of
from framework.measure.cases import case_name
from framework.measure.fairness import DEFINITIONS
from framework.measure.slo import check_slo
from framework.measure.steps import Say, check_sizes
from framework.replay import Clock
from framework.report.finish import Findings, finish, finish_sweep
from framework.report.plots import Drawn
from framework.report.sweep_plots import sweep_figures
from framework.report.tables import short
from framework.study.arguments import Sweep, check_points
from framework.study.arms import Arm, parts_of, resolve_arms
from framework.study.auto_rates import Rates, rates_to_try
from framework.study.engine_cache import EngineCache
from framework.study.files import GrowingTable
from framework.study.place import Place, open_place
from framework.study.sweep import Study, run_study

PEFT = "PEFT"  # the peer, in tables and figures
NUM_PEFT_STEPS = 4
BASE = "none"  # the arm that the others' steps are compared with, if it is there
STEP_DEFINITIONS = {
    "Decode step": "from one step's start to the next's, of a batch in which every sequence gets a token",
    "64 ÷ 1, or the like": "the decode step of the one batch size / that of the other",
}
MIXED_DEFINITIONS = {
    "mixed A behind B + C × D": "a step with the last A tokens of a prompt, B cached ones before them, and C decodes "
    "with a context of D tokens each; the prompt and they ask in turn for the adapters",
}
CAPTION = (
    "Left, time from one decode step to the next over the batch size, one line per arm, medians over the rounds; "
    "right, what adapters add to it. The sequences ask in turn for {} adapters."
)


def run(
    *,
    batch_sizes: list[int],
    mixed: list[list[int]],
    num_adapters: int,
    identical: bool,
    context: int,
    num_steps: int,
    num_rounds: int,
    peft_batch_sizes: list[int],
    scheduler: MakeScheduler,
    clock: Clock,
    **sweep: Unpack[Sweep],
) -> None:
    """Time decode steps of every arm at `batch_sizes` ([]: skip), then replay the trace at `rates` ([]: skip).

    `mixed` are steps in which a part of a prompt rides along: [prompt tokens, cached ones before them, decodes, context
    of each]. A step's sequences ask in turn for `num_adapters` adapters; with `identical` there are steps in which all
    ask for one, too. `context` is in tokens; `num_steps` steps are timed after a warm-up, in each of `num_rounds` in
    which the arms take turns, so that a drift of the machine's speed meets all. `peft_batch_sizes` are those of PEFT's
    mixed batches, beside them: on every projection that the first arm with adapters has.
    """
    mixes = {"": num_adapters} | ({", one adapter": 1} if identical else {})
    sizes = Sizes(batch_sizes, mixed, mixes, context, num_steps, num_rounds)
    variants = resolve_arms(sweep["arms"], parts_of(sweep) | {"scheduler": scheduler, "clock": clock})
    rates, seeds = sweep["rates"], sweep["seeds"]
    check_parts(variants, sizes, peft_batch_sizes, rates, seeds, sweep["slo"])
    place = open_place(sweep["device"], sweep["output_dir"])
    measured_steps = pd.DataFrame()
    modelled = [name for name, arm in variants.items() if arm.is_modelled]
    if (batch_sizes or mixed) and not modelled:
        measured_steps = measure_batches(variants, place, sizes, rates, seeds, peft_batch_sizes)
    if measured_steps.empty and not rates:
        raise ValueError(
            f"no step could be measured of batch_sizes={batch_sizes} with context={context} and mixed={mixed}"
        )
    steps = find_steps(place, measured_steps, num_adapters)
    loras = {name: arm.lora for name, arm in variants.items() if not arm.is_modelled}
    not_timed = [f"no single steps are timed, since no step is executed: {', '.join(modelled)}"] if modelled else []
    steps = replace(steps, notes=[*steps.notes, *not_timed, *reference_notes(loras, place.device)])
    if not rates:
        finish(place, f"decode steps on {place.device_name}", steps)
        return
    study = run_study(variants, sweep)
    finish_sweep(study, "multi_lora", partial(find_replays, study, steps))
    study.raise_failures()


def find_steps(place: Place, steps: pd.DataFrame, num_adapters: int) -> Findings:
    """What decode and mixed steps show, if some were measured."""
    if steps.empty:
        return Findings(definitions=STEP_DEFINITIONS)
    decode, mixed = median_steps(steps, "decode"), median_steps(steps, "mixed")
    figures: dict[str, Drawn] = {}
    tables: dict[str, pd.DataFrame] = {}
    if len(decode):
        drawn = steps_by_arm(decode, BASE, f"{num_adapters} adapters, {place.device_name}")
        figures["batch_latency"] = (drawn, CAPTION.format(num_adapters))
        tables["Decode steps (ms) by batch size"] = growth(decode)
    if len(mixed):
        tables["Mixed steps: a part of a prompt, and decodes"] = mixed_table(mixed, BASE)
    definitions = STEP_DEFINITIONS | (MIXED_DEFINITIONS if len(mixed) else {})
    return Findings(figures, tables, added_by_adapters(decode), definitions)


def find_replays(study: Study, steps: Findings, points: pd.DataFrame) -> Findings:
    """What the replays show, after the `steps`."""
    adapters = adapter_rows(study, points)
    return replace(
        steps,
        figures={**steps.figures, **sweep_figures(study, points)},
        tables={**steps.tables, **adapter_tables(adapters)},
        definitions=DEFINITIONS | STEP_DEFINITIONS,
        files={"adapters.csv": adapters},
    )


def check_parts(
    arms: dict[str, Arm],
    sizes: Sizes,
    peft_batch_sizes: list[int],
    rates: Rates,
    seeds: list[int],
    slo: dict[str, float],
) -> None:
    """ValueError for what any part would refuse, before the first one begins."""
    if rates:
        check_slo(slo)
        check_points(arms, rates, seeds)
        for arm in arms.values():
            arm.trace(rate=rates_to_try(rates, arm.trace, seeds[0])[0], seed=seeds[0])
    elif not sizes.batch_sizes and not sizes.mixed:
        raise ValueError("rates, batch_sizes and mixed are all empty: nothing is left to measure")
    if peft_batch_sizes:
        check_peft(arms, sizes, peft_batch_sizes)


def measure_batches(
    arms: dict[str, Arm], place: Place, sizes: Sizes, rates: Rates, seeds: list[int], peft_batch_sizes: list[int]
) -> pd.DataFrame:
    """The rows of steps.csv, PEFT's included.

    Before the first step, adapters that a trace names and an arm cannot serve are told.
    """
    arms = {name: replace(arm, engine=sizes.limited(arm.engine)) for name, arm in arms.items()}  # which take turns
    with place.status("loading") as update:
        engines = EngineCache(place.device, update)
        tell_refused(arms, engines, rates, seeds, place.say)
    with GrowingTable(place.output_dir / "steps.csv") as steps:
        peer_run = measure_rounds(arms, engines, sizes, place, steps)
        del engines
        if peft_batch_sizes:
            free(place.device)  # for the peer's process
            steps.add(peft_steps(peer_run, first_service(arms), sizes, peft_batch_sizes))
    return steps.table()


def tell_refused(arms: dict[str, Arm], engines: EngineCache, rates: Rates, seeds: list[int], say: Say) -> None:
    """Print which adapters of the traces each arm cannot serve, and why; their requests are refused."""
    for arm, components in arms.items():
        if not rates or service_of(components.lora).strategy is None:
            continue
        engine = engines.get(components)
        refused: dict[str, str] = {}
        for rate, seed in product(rates_to_try(rates, components.trace, seeds[0]), seeds):
            refused |= engine.refused_adapters(components.trace(rate=rate, seed=seed).requests)
        for reason in refused.values():
            say(f"{arm}: {reason}; the requests for it are refused")


def check_peft(arms: dict[str, Arm], sizes: Sizes, batch_sizes: list[int]) -> None:
    """ValueError for what would end PEFT's steps after the others were measured."""
    if not sizes.batch_sizes:
        raise ValueError("peft_batch_sizes stand beside batch_sizes, which is empty")
    check_sizes({"decode": [[batch_size, sizes.context] for batch_size in batch_sizes]}, NUM_PEFT_STEPS)
    if find_spec("peft") is None:
        raise ValueError("peft_batch_sizes needs the package peft: pip install peft")
    first_service(arms)


def first_service(arms: dict[str, Arm]) -> AdapterService:
    """Of the first arm with adapters beside the weights; ValueError if none has."""
    for arm in arms.values():
        service = service_of(arm.lora)
        if service.strategy is not None:
            return service
    raise ValueError("peft_batch_sizes needs an arm that serves adapters")


def peft_steps(run: PeerRun, service: AdapterService, sizes: Sizes, batch_sizes: list[int]) -> list[dict[str, object]]:
    """Rows of measure_rounds for PEFT's mixed batches with the adapters of `service`, timed by the host alone."""
    num_adapters = sizes.mixes[""]
    peer = partial(
        mixed_adapters,
        batch_sizes=batch_sizes,
        num_steps=NUM_PEFT_STEPS,
        num_adapters=min(num_adapters, max(batch_sizes)),
        rank=service.max_rank,
        targets=service.targets,
    )
    common = {"round": 0, "arm": PEFT, "device": float("nan")}
    return [
        common
        | {"case": case_name("decode", size, sizes.context), "num_adapters": min(num_adapters, size)}
        | {"num_seqs": size, "elapsed": elapsed}
        for size, elapsed in run_peer(peer, run).items()
    ]


def added_by_adapters(medians: pd.DataFrame) -> list[str]:
    """A sentence per arm on what its steps take more than those of the arm `none`, if there is one."""
    if medians.empty:
        return []
    times = 1e3 * medians.pivot_table(index="arm", columns="num_seqs", values="elapsed", sort=False)
    if BASE not in times.index:
        return []
    more = (times - times.loc[BASE]).drop(BASE)
    return [
        "reported (lesson 6, GPT-2): the loop grows linearly over the batch size, the gather stays nearly flat; to "
        f"compare with what adapters add, since the step without them ({BASE}) grows too once it is compute-bound",
        *(
            f"{arm}: adapters add {short(row.iloc[0])} ms to a decode step of batch {row.index[0]}, "
            f"{short(row.iloc[-1])} ms to one of batch {row.index[-1]}"
            for arm, row in ((arm, row.dropna()) for arm, row in more.iterrows())
        ),
    ]
