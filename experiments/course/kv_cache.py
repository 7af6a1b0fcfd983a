"""Lesson 1: the time of every token with and without a KV cache, greedy and sampled; the same text both ways."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from typing_extensions import Unpack

from experiments.course.figures import token_times
from framework.build import ChangeModel, MakeScheduler, make_engine_for, make_scheduler, replay_trace
from framework.checks import whole
from framework.config import check_keywords, describe, with_keywords
from framework.core import Request
from framework.measure.perplexity import window_logits
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama
from framework.models.tokenizer import Tokenizer, load_tokenizer
from framework.report.finish import Findings, finish
from framework.study.files import GrowingTable
from framework.study.place import open_place
from framework.study.sweep import Setup
from framework.trace.prompts import make_requests

CACHES = {"without": False, "with": True}  # a cache
NUM_LIKELY = 10
NUM_EDGE = 16  # tokens at either end of the output, for how much slower the last ones are
SMOOTHING = 9  # tokens; single ones are too noisy to say from where on one curve is below another
CROSSOVER = "cache faster from token"
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


def run(
    *,
    prompt: str,
    num_output_tokens: int,
    num_repeats: int,
    samplings: dict[str, dict[str, Any]],
    reference: dict[str, Any] | None,
    quantization: ChangeModel,
    scheduler: MakeScheduler,
    **setup: Unpack[Setup],
) -> None:
    """Write `tokens.csv` (seconds of every token), `kv_cache.json` with the texts, the figure and the page.

    `samplings` are named keywords of the engine. The runs take turns, `num_repeats` times. `reference` is a source's
    `{sampling, num_tokens, without, with, source}`: seconds of the first tokens, shown beside the measured ones.
    """
    whole("num_repeats", num_repeats)
    if num_output_tokens < 2:
        raise ValueError(f"num_output_tokens {num_output_tokens} must be at least 2: a cache pays after the first one")
    if reference is not None and reference["sampling"] not in samplings:
        raise ValueError(f"reference.sampling is {reference['sampling']!r}; samplings: {', '.join(samplings)}")
    model, engine = setup["model"], setup["engine"]
    for name, keywords in samplings.items():
        check_keywords(engine.func, keywords, f"samplings.{name}")
    place = open_place(setup["device"], setup["output_dir"])
    loaded = quantization(model(device=place.device))
    tokenizer = load_tokenizer(loaded.config)
    prompt_ids = list(tokenizer.encode(prompt))
    [request] = make_requests([prompt_ids], num_output_tokens, loaded.config.max_model_len, frozenset())
    likely = likely_tokens(loaded, prompt_ids, tokenizer)
    engines = {
        (sampling, cache): make_engine_for([request], with_keywords(engine, use_cache=use_cache, **keywords), loaded)
        for sampling, keywords in samplings.items()
        for cache, use_cache in CACHES.items()
    }
    with place.console.status("") as status:
        path = place.output_dir / "tokens.csv"
        tokens, texts = measure_tokens(engines, scheduler, request, num_repeats, status.update, path)
    curves = tokens.groupby(["sampling", "cache", "token"], sort=False, as_index=False)["elapsed"].median()
    rows = [compare_caches(curves, texts, sampling) for sampling in samplings]
    summary = pd.DataFrame(rows)
    crossovers = {row["sampling"]: row[CROSSOVER] for row in rows}
    outputs = pd.DataFrame([[*key, repr(tokenizer.decode(text))] for key, text in texts.items()], columns=TEXT_COLUMNS)
    title = f"{loaded.config.model_type}, {num_output_tokens} tokens on {place.device_name}"
    described = {"model": model, "quantization": quantization, "engine": engine, "samplings": samplings}
    record = {"config": describe(described), "environment": place.environment, "outputs": outputs.to_dict("records")}
    findings = Findings(
        figures={"token_times": (token_times(curves, crossovers, title), CAPTION)},
        tables={
            "Seconds without and with a cache": summary,
            f"The {NUM_LIKELY} most likely tokens after {prompt!r}": likely,
            "Texts": outputs.groupby(["sampling", "text"], sort=False, as_index=False)["cache"].agg(" and ".join),
        },
        notes=[] if reference is None else [compare_with_source(reference, curves)],
        definitions=DEFINITIONS,
        files={"kv_cache.json": record | {"summary": summary.to_dict("records")}, "tokens.csv": tokens},
    )
    finish(place, title, findings)


@torch.inference_mode()
def likely_tokens(model: Llama | GPT2, prompt_ids: list[int], tokenizer: Tokenizer) -> pd.DataFrame:
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
    engines: dict[tuple[str, str], Any],
    scheduler: Any,
    request: Request,
    num_repeats: int,
    on_progress: Any,
    path: Path,
) -> tuple[pd.DataFrame, dict[tuple[str, str], list[int]]]:
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


def compare_caches(curves: pd.DataFrame, texts: dict[tuple[str, str], list[int]], sampling: str) -> dict[str, Any]:
    """One row of the summary: seconds in all, how they grow, and from which token on the cache pays."""
    without, cached = (curve(curves, sampling, cache) for cache in CACHES)
    one, other = (texts[sampling, cache] for cache in CACHES)
    differing = [index for index, pair in enumerate(zip(one, other, strict=True), start=1) if pair[0] != pair[1]]
    return {
        "sampling": sampling,
        "without (s)": float(without.sum()),
        "with (s)": float(cached.sum()),
        "without ÷ with": float(without.sum() / cached.sum()),
        "last ÷ first tokens, without": growth(without),
        "last ÷ first tokens, with": growth(cached),
        CROSSOVER: faster_from(cached, without),
        "same text": "yes" if not differing else f"up to token {differing[0] - 1}",
    }


def curve(curves: pd.DataFrame, sampling: str, cache: str) -> "pd.Series[float]":
    """Seconds of every token of one curve, in order."""
    rows = curves[(curves["sampling"] == sampling) & (curves["cache"] == cache)]
    return rows.set_index("token")["elapsed"]


def growth(elapsed: "pd.Series[float]") -> float:
    """Median time of the last tokens over that of the first ones after the prompt's; NaN for too short an output."""
    decoded = elapsed.iloc[1:]
    if len(decoded) < 2 * NUM_EDGE:
        return float("nan")
    return float(decoded.iloc[-NUM_EDGE:].median() / decoded.iloc[:NUM_EDGE].median())


def faster_from(quick: "pd.Series[float]", slow: "pd.Series[float]") -> int | None:
    """The first token, but for the prompt's, from which on `quick` stays below `slow`, both smoothed; None: none."""
    smooth = [one.iloc[1:].rolling(SMOOTHING, center=True, min_periods=1).median() for one in (quick, slow)]
    at_least = smooth[0].index[smooth[0] >= smooth[1]]
    first = int(at_least.max()) + 1 if len(at_least) else 2
    return first if first <= len(quick) else None


def compare_with_source(reference: dict[str, Any], curves: pd.DataFrame) -> str:
    """The first tokens' time beside the source's, where there are as many."""
    sampling, num_tokens = reference["sampling"], reference["num_tokens"]
    if curves["token"].max() < num_tokens:
        return f"{reference['source']}, is of the first {num_tokens} tokens: these are too few to compare"
    without, cached = (float(curve(curves, sampling, cache).iloc[:num_tokens].sum()) for cache in CACHES)
    reported = f"{reference['without']:g} s → {reference['with']:g} s, {reference['without'] / reference['with']:.2f}×"
    return (
        f"{sampling}, the first {num_tokens} tokens: {without:.3g} s without → {cached:.3g} s with a cache, "
        f"{without / cached:.2f}× (reported: {reported}, {reference['source']})"
    )
