"""Lesson 1: the time of every token with and without a KV cache, greedy and sampled; the same text both ways."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from experiments.course.figures import token_times
from experiments.course.tables import (
    CACHES,
    NUM_EDGE,
    SMOOTHING,
    Reference,
    Texts,
    compare_caches,
    compare_with_source,
    crossover,
)
from framework.build import (
    ChangeModel,
    Decoder,
    MakeEngine,
    MakeScheduler,
    make_engine_for,
    make_scheduler,
    replay_trace,
)
from framework.checks import whole
from framework.config import check_keywords, describe, with_keywords
from framework.contracts import Engine
from framework.core import Request
from framework.measure.perplexity import window_logits
from framework.measure.steps import Say
from framework.models.tokenizer import Tokenizer, load_tokenizer
from framework.report.finish import Findings, finish
from framework.study.arguments import Setup
from framework.study.files import GrowingTable
from framework.study.place import open_place
from framework.trace.prompts import make_requests

NUM_LIKELY = 10
SUMMARY = "Seconds without and with a cache"
TEXT_COLUMNS = ["sampling", "cache", "text"]
DEFINITIONS = {
    "Last ÷ first tokens": f"median time of the last {NUM_EDGE} tokens / of the first {NUM_EDGE} after the first one",
    "Cache faster from": f"the token from which on the cached time stays below, as running medians over {SMOOTHING}",
    "Without ÷ with": "seconds without a cache / with one, until the last token",
    "Same text": "whether the output with a cache is, token by token, the output without",
}
CAPTION = (
    "Time of every output token and time until it, medians over the repeats. The first token includes the prompt. "
    "Grey: from there on the cache is faster."
)

Samplings = dict[str, dict[str, object]]  # name → keywords of the engine


def run(
    *,
    prompt: str,
    num_output_tokens: int,
    num_repeats: int,
    samplings: Samplings,
    reference: Reference | None,
    quantization: ChangeModel,
    scheduler: MakeScheduler,
    **setup: Unpack[Setup],
) -> None:
    """Write `tokens.csv` (seconds of every token), `kv_cache.json` with the texts, the figure and the page.

    `samplings` are named keywords of the engine. The runs take turns, `num_repeats` times. The `reference` is shown
    beside what is measured.
    """
    model, engine = setup["model"], setup["engine"]
    check_runs(num_output_tokens, num_repeats, samplings, reference, engine)
    place = open_place(setup["device"], setup["output_dir"])
    loaded = quantization(model(device=place.device))
    tokenizer = load_tokenizer(loaded.config)
    prompt_ids = list(tokenizer.encode(prompt))
    [request] = make_requests([prompt_ids], num_output_tokens, loaded.config.max_model_len, frozenset())
    likely = {f"The {NUM_LIKELY} most likely tokens after {prompt!r}": likely_tokens(loaded, prompt_ids, tokenizer)}
    engines = {
        (sampling, cache): make_engine_for([request], with_keywords(engine, use_cache=use_cache, **keywords), loaded)
        for sampling, keywords in samplings.items()
        for cache, use_cache in CACHES.items()
    }
    with place.status("") as update:
        path = place.output_dir / "tokens.csv"
        tokens, texts = measure_tokens(engines, scheduler, request, num_repeats, update, path)
    outputs = pd.DataFrame([[*key, repr(tokenizer.decode(text))] for key, text in texts.items()], columns=TEXT_COLUMNS)
    title = f"{loaded.config.model_type}, {num_output_tokens} tokens on {place.device_name}"
    config = describe({"model": model, "quantization": quantization, "engine": engine, "samplings": samplings})
    findings = find(tokens, texts, outputs, likely, reference, title)
    record = {
        "config": config,
        "environment": place.environment,
        "outputs": outputs.to_dict("records"),
        "summary": findings.tables[SUMMARY].to_dict("records"),
    }
    finish(place, title, replace(findings, files={"kv_cache.json": record, "tokens.csv": tokens}))


def check_runs(
    num_output_tokens: int, num_repeats: int, samplings: Samplings, reference: Reference | None, engine: MakeEngine
) -> None:
    whole("num_repeats", num_repeats)
    if num_output_tokens < 2:
        raise ValueError(f"num_output_tokens {num_output_tokens} must be at least 2: a cache pays after the first one")
    if reference is not None and reference["sampling"] not in samplings:
        raise ValueError(f"reference.sampling is {reference['sampling']!r}; samplings: {', '.join(samplings)}")
    for name, keywords in samplings.items():
        check_keywords(engine.func, keywords, f"samplings.{name}")


def find(
    tokens: pd.DataFrame,
    texts: Texts,
    outputs: pd.DataFrame,
    likely: dict[str, pd.DataFrame],
    reference: Reference | None,
    title: str,
) -> Findings:
    curves = tokens.groupby(["sampling", "cache", "token"], sort=False, as_index=False)["elapsed"].median()
    samplings = list(curves["sampling"].unique())
    summary = pd.DataFrame([compare_caches(curves, texts, sampling) for sampling in samplings])
    crossovers = {sampling: crossover(curves, sampling) for sampling in samplings}
    alike = outputs.groupby(["sampling", "text"], sort=False, as_index=False)["cache"].agg(" and ".join)
    return Findings(
        figures={"token_times": (token_times(curves, crossovers, title), CAPTION)},
        tables={SUMMARY: summary, **likely, "Texts": alike},
        notes=[] if reference is None else [compare_with_source(reference, curves)],
        definitions=DEFINITIONS,
    )


@torch.inference_mode()
def likely_tokens(model: Decoder, prompt_ids: list[int], tokenizer: Tokenizer) -> pd.DataFrame:
    """The tokens most likely to come next, with their probabilities (%)."""
    window = torch.tensor([prompt_ids], device=model.norm.weight.device)
    probabilities = window_logits(model, window)[0, -1].float().softmax(dim=-1)
    best = probabilities.topk(min(NUM_LIKELY, len(probabilities)))
    rows = [
        {"token": repr(tokenizer.decode([token])), "id": str(token), "probability (%)": 100 * share}
        for token, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return pd.DataFrame(rows)


def measure_tokens(
    engines: dict[tuple[str, str], Engine],
    scheduler: MakeScheduler,
    request: Request,
    num_repeats: int,
    on_progress: Say,
    path: Path,
) -> tuple[pd.DataFrame, Texts]:
    """Seconds of every token (from 1) of every run, on disk after each, and each engine's output."""
    texts = {}
    with GrowingTable(path) as tokens:
        for repeat, ((sampling, cache), engine) in product(range(num_repeats), engines.items()):
            on_progress(f"{sampling}, {cache} a cache, {repeat + 1} of {num_repeats}")
            [sequence], _ = replay_trace([request], make_scheduler(scheduler, engine), engine)
            texts[sampling, cache] = sequence.output_token_ids
            key = {"sampling": sampling, "cache": cache, "repeat": repeat}
            times = enumerate(np.diff(sequence.token_times, prepend=0.0), start=1)
            tokens.add(key | {"token": token, "elapsed": elapsed} for token, elapsed in times)
    return tokens.table(), texts
