"""experiment=kv_cache as a user calls it."""

import json

import pandas as pd
import pytest

from experiments.course import kv_cache
from framework.engine.torch_engine import cpu_steps
from tests.report.html_page import Page, check_page

QUICK = ["experiment=kv_cache", "num_output_tokens=48", "num_repeats=2", "device=cpu"]


@pytest.mark.usefixtures("drawn")
def test_every_token_is_timed_and_the_text_is_the_same(cli, smallest, tmp_path):
    code, output = cli(*QUICK, *smallest[:2])
    assert code == 0, output
    folder = tmp_path / "outputs/kv_cache"
    tokens = pd.read_csv(folder / "tokens.csv")
    assert (tokens["elapsed"] > 0).all()
    runs = tokens.groupby(["sampling", "cache", "repeat"], sort=False)["token"].agg(list)
    assert list(runs.index) == [(a, b, c) for c in (0, 1) for a in ("greedy", "top-k") for b in ("without", "with")]
    assert all(index == list(range(1, 49)) for index in runs)
    record = json.loads((folder / "kv_cache.json").read_text())
    texts = {(one["sampling"], one["cache"]): one["text"] for one in record["outputs"]}
    assert texts["greedy", "without"] == texts["greedy", "with"] != texts["top-k", "without"] == texts["top-k", "with"]
    assert [row["same text"] for row in record["summary"]] == ["yes", "yes"]
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert "0.42 s → 0.26 s, 1.62×" in page.text
    likely = page.rows[page.rows.index(["token", "id", "probability (%)"]) + 1 :][:10]
    assert texts["greedy", "with"][1:].startswith(likely[0][0][1:-1])  # the most likely one is what greedy takes
    shares = [float(row[2]) for row in likely]
    assert shares == sorted(shares, reverse=True)
    assert ["greedy", texts["greedy", "with"], "without and with"] in page.rows


def test_without_a_cache_every_token_is_computed_anew(cli, smallest, monkeypatch):
    num_tokens = []
    step_inputs = cpu_steps.step_inputs

    def watched(batch, *others, **options):
        inputs = step_inputs(batch, *others, **options)
        num_tokens.append(len(inputs.token_ids))
        return inputs

    monkeypatch.setattr(cpu_steps, "step_inputs", watched)
    code, output = cli(*QUICK, *smallest[:2], "num_repeats=1", "prompt=abcd", "num_output_tokens=4", "reference=null")
    assert code == 0, output
    steps = ",".join(map(str, num_tokens))
    assert "4,5,6,7" in steps
    assert "4,1,1,1" in steps


@pytest.mark.gpu
def test_on_a_gpu(cli, smallest, tmp_path):
    code, output = cli("experiment=kv_cache", *smallest[:2], "num_output_tokens=300", "device=cuda")
    assert code == 0, output
    summary = json.loads((tmp_path / "outputs/kv_cache/kv_cache.json").read_text())["summary"]
    assert [row["same text"] for row in summary] == ["yes", "yes"]


def test_texts_that_differ_are_told_apart(cli, smallest, monkeypatch, tmp_path):
    measure = kv_cache.measure_tokens

    def measure_wrongly(*arguments):
        tokens, texts = measure(*arguments)
        texts["greedy", "with"][7] ^= 1
        return tokens, texts

    monkeypatch.setattr(kv_cache, "measure_tokens", measure_wrongly)
    code, output = cli(*QUICK, *smallest[:2], "num_repeats=1", "reference=null")
    assert code == 0, output
    summary = json.loads((tmp_path / "outputs/kv_cache/kv_cache.json").read_text())["summary"]
    assert [row["same text"] for row in summary] == ["up to token 7", "yes"]
    assert "reported" not in output


def test_too_few_tokens_are_not_compared_with_the_source(cli, smallest):
    code, output = cli(*QUICK, *smallest[:2], "num_repeats=1", "num_output_tokens=9")
    assert code == 0, output
    assert "of the first 10 tokens" in output
    assert "reported: " not in output


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_repeats=0", "num_repeats=0 is not a whole number of at least 1"),
        ("num_output_tokens=1", "num_output_tokens 1 must be at least 2"),
        ("prompt=''", "prompt 0 is empty"),
        ("num_output_tokens=500", "more than the model's context of 512"),
        ("reference.sampling=topk", "reference.sampling is 'topk'; samplings: greedy, top-k"),
        ("+samplings.greedy.temprature=1", "unknown key 'temprature' in samplings.greedy"),
    ],
)
def test_bad_input_is_one_clear_message(cli, smallest, tmp_path, override, message):
    code, output = cli(*QUICK, *smallest[:2], override)
    assert code == 1
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "outputs").exists()
