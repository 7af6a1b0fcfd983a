"""experiment=generate as a user calls it."""

import json
import re

import pandas as pd
import pytest

from tests.models.checkpoints import greedy, make_hf_model
from tests.report.html_page import Page, check_page


def generations(folder):
    lines = (folder / "outputs/generate/generations.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.usefixtures("drawn")
def test_text_in_text_out(cli, tmp_path):
    code, output = cli("experiment=generate", 'prompts=["The quick","b"]', "num_output_tokens=5")
    assert code == 0, output
    first, second = generations(tmp_path)
    assert first["prompt_token_ids"] == list(b"The quick")
    assert second["prompt_token_ids"] == list(b"b")
    for record in (first, second):
        assert len(record["output_token_ids"]) == len(record["token_times"]) == 5
        assert record["token_times"] == sorted(record["token_times"])
        assert record["text"] == bytes(record["output_token_ids"]).decode(errors="replace")
    folder = tmp_path / "outputs/generate"
    check_page(Page(folder / "report.html"), folder)
    assert {path.name for path in (folder / "figures").iterdir()} == {"token_times.png", "token_times.svg"}
    times = pd.read_csv(folder / "token_times.csv")
    assert times.groupby("output")["elapsed"].sum().tolist() == pytest.approx(
        [record["token_times"][-1] for record in (first, second)]
    )


def test_a_local_checkpoint_with_token_ids_equals_transformers(cli, tmp_path):
    model = make_hf_model("qwen3")
    model.save_pretrained(tmp_path / "checkpoint")
    options = ["model=local", "model.path=checkpoint", "model.dtype=float32", "device=cpu"]
    code, output = cli("experiment=generate", *options, "prompt_token_ids=[[1,2,3],[5]]", "num_output_tokens=7")
    assert code == 0, output
    records = generations(tmp_path)
    assert [record["output_token_ids"] for record in records] == [greedy(model, [1, 2, 3], 7), greedy(model, [5], 7)]
    assert [record["text"] for record in records] == [None, None]


def test_ignore_eos_false_ends_at_the_models_eos(cli, tmp_path):
    model = make_hf_model("llama")
    tokens = greedy(model, [1, 2, 3], 12)
    eos = tokens[4]
    model.config.eos_token_id = eos
    model.generation_config.eos_token_id = eos
    model.save_pretrained(tmp_path / "checkpoint")
    options = ["model=local", "model.path=checkpoint", "model.dtype=float32", "ignore_eos=false"]
    code, output = cli("experiment=generate", *options, "prompt_token_ids=[[1,2,3]]", "num_output_tokens=12")
    assert code == 0, output
    assert generations(tmp_path)[0]["output_token_ids"] == tokens[: tokens.index(eos) + 1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompts=[]"], "nothing to generate from"),
        (['prompts=[""]'], "prompt 0 is empty"),
        (["num_output_tokens=0"], "num_output_tokens=0 is not a whole number of at least 1"),
        (["num_output_tokens=5000"], "more than the model's context of 4096"),
        (["prompts=[]", "prompt_token_ids=[[1,999]]"], "prompt token 999"),
        (["prompts=7"], "prompts is 7"),
        (["model=local", "model.path=nowhere"], "nowhere"),
        (["engine.temperature=-1"], "temperature"),
    ],
)
def test_bad_input_is_one_clear_message(cli, tmp_path, overrides, message):
    code, output = cli("experiment=generate", *overrides)
    assert code == 1
    assert message in output
    assert "Traceback" not in output
    assert not list(tmp_path.rglob("generations.jsonl"))


@pytest.mark.nightly
def test_an_adapter_changes_what_is_written(cli, tmp_path):
    options = ["experiment=generate", "prompt_token_ids=[[1,2,3]]", "num_output_tokens=20", "device=cpu"]
    options += ["model.weights=random", "model.config.tie_word_embeddings=false"]  # tied, it repeats its token
    tokens = []
    for more in (["lora=none"], ["lora=segmented"], ["lora=segmented", "adapter=mine"], ["lora=loop", "adapter=mine"]):
        code, output = cli(*options, *more)
        assert code == 0, output
        tokens += [record["output_token_ids"] for record in generations(tmp_path)]
    base, without, segmented, loop = tokens
    assert base == without != segmented == loop
    code, output = cli(*options, "adapter=mine")
    assert code == 1
    assert "adapter='mine' needs lora=segmented, gathered or loop, and a saved adapter: preset=adapters" in output
    code, output = cli(*options, "lora=loop", "adapters@lora.adapters=saved", "lora.adapters.path=.", "adapter=mine")
    assert code == 1
    assert "there is no adapter 'mine'" in output


@pytest.mark.nightly
def test_adapters_of_random_numbers_are_told(cli, tmp_path):
    options = ["experiment=generate", "prompts=[a]", "num_output_tokens=2", "device=cpu"]
    folder = tmp_path / "outputs/generate"
    code, output = cli(*options, "lora=segmented", "adapter=[null,html]")
    assert code == 0, output
    assert "html: random numbers" in output
    page = Page(folder / "report.html")
    assert [row[0] for row in page.table("prompt")] == ["–", "html (random numbers)"]
    assert [record["adapter_id"] for record in generations(tmp_path)] == [None, "html"]
    for more, told in ((["lora=segmented", "adapter=null"], ""), (["lora=merged"], "adapter-0: random numbers")):
        code, output = cli(*options, *more)
        assert code == 0, output
        assert told in output
        assert bool(told) == ("random numbers" in output)
    saved = ["lora=segmented", "adapters@lora.adapters=saved", "adapter=html"]  # as the error says
    code, output = cli(*options, *saved)
    assert code == 0, output
    assert "random numbers" not in output
    assert [row[0] for row in Page(folder / "report.html").table("prompt")] == ["html"]


@pytest.mark.nightly
def test_several_adapters_answer_a_prompt_in_one_batch(cli, tmp_path):
    options = ["experiment=generate", "prompt_token_ids=[[1,2,3],[5]]", "num_output_tokens=8", "device=cpu"]
    options += ["model.config.tie_word_embeddings=false", "model.weights=random", "lora=loop"]
    code, output = cli(*options, "adapter=[null,mine]")
    assert code == 0, output
    together = generations(tmp_path)
    assert [record["adapter_id"] for record in together] == [None, "mine"] * 2
    for index, adapter in enumerate(("null", "mine")):
        code, output = cli(*options, f"adapter={adapter}")
        assert code == 0, output
        alone = [record["output_token_ids"] for record in generations(tmp_path)]
        assert alone == [record["output_token_ids"] for record in together[index::2]]
    assert together[0]["output_token_ids"] != together[1]["output_token_ids"]
    code, output = cli(*options, "adapter=[]")
    assert code == 1
    assert "adapter=[] answers no prompt" in output


TINY = ["experiment=generate", "device=cpu"]
SCHEMA = '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}'
HYDRA_SCHEMA = "{type: object, properties: {ok: {type: boolean}}, required: [ok]}"


@pytest.mark.nightly
def test_a_json_schema_given_in_any_way_makes_documents_and_its_cost_is_told(cli, tmp_path, monkeypatch):
    pytest.importorskip("llguidance")
    monkeypatch.setattr("experiments.generate.schema.NUM_REPEATS", 6)
    (tmp_path / "schema.json").write_text(SCHEMA)
    for given in (HYDRA_SCHEMA, f"'{SCHEMA}'", "schema.json"):
        code, output = cli(*TINY, f"json_schema={given}", "prompts=[a,bc]", "num_output_tokens=30")
        assert code == 0, output
        for record in generations(tmp_path):
            assert json.loads(record["text"])["ok"] in (True, False)
            assert len(record["text"]) == len(record["output_token_ids"]) - 1  # the end-of-sequence token
    assert "2 of 2 outputs" in output
    assert re.search(r"the schema costs [-\de.]+ ms per token \[[-\de.]+, [-\de.]+\] \([-+]\d+%\)", output)
    page = Page(tmp_path / "outputs/generate/report.html")
    check_page(page, tmp_path / "outputs/generate")
    costs = page.rows[page.rows.index(["schema", "step (ms)", "per token (ms)"]) + 1 :]
    assert [row[0] for row in costs] == ["with", "without", "difference"]
    assert all(re.fullmatch(r"[-\d.]+\s*\[[-\d.]+, [-\d.]+\]", cell) for row in costs for cell in row[1:])


@pytest.mark.nightly
def test_a_document_that_is_cut_off_is_counted(cli, tmp_path):
    pytest.importorskip("llguidance")
    code, output = cli(*TINY, f"json_schema={HYDRA_SCHEMA}", "num_output_tokens=1")
    assert code == 0, output
    code, output = cli(*TINY, f"json_schema={HYDRA_SCHEMA}", "num_output_tokens=3")
    assert code == 0, output
    assert "0 of 1 outputs" in output


@pytest.mark.parametrize(
    ("json_schema", "message"),
    [
        ("nowhere.json", "json_schema=nowhere.json is no file: give one, or the schema itself"),
        ("{type: strin}", "json_schema: Invalid type: strin"),
        ("7", "json_schema is 7"),
    ],
)
def test_a_wrong_json_schema_is_one_clear_message(cli, tmp_path, json_schema, message):
    pytest.importorskip("llguidance")
    code, output = cli(*TINY, f"json_schema={json_schema}")
    assert code == 1
    assert message in output
    assert "Traceback" not in output
    assert not list(tmp_path.rglob("generations.jsonl"))
