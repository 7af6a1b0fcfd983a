import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from framework.models.config import parse_config
from framework.models.tokenizer import ByteTokenizer, load_tokenizer
from tests.models.checkpoints import GPT2_SHAPE, make_hf_model

CONFIG = parse_config({"model_type": "gpt2", **GPT2_SHAPE, "vocab_size": 300})


def test_bytes_there_and_back():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("Aé") == [65, 0xC3, 0xA9]
    assert tokenizer.decode(tokenizer.encode("héllo, 世界")) == "héllo, 世界"


def test_any_ids_decode():
    assert ByteTokenizer().decode([65, 0xC3, 66, 5000]) == "A\ufffdB\ufffd"


def test_random_weights_and_byte_vocabularies_use_bytes(tmp_path):
    assert isinstance(load_tokenizer(CONFIG), ByteTokenizer)
    assert isinstance(load_tokenizer(replace(CONFIG, checkpoint=str(tmp_path), vocab_size=256)), ByteTokenizer)
    with pytest.raises(ValueError, match="vocabulary of 256 tokens or more; this model has 97"):
        load_tokenizer(replace(CONFIG, vocab_size=97))


def test_checkpoints_bring_their_own(tmp_path):
    words = Tokenizer(models.WordLevel({"hello": 0, "world": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(replace(CONFIG, checkpoint=str(tmp_path)))
    assert tokenizer.encode("world hello you") == [1, 0, 2]
    assert tokenizer.decode([0, 1]) == "hello world"


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_a_folder_without_a_tokenizer_says_what_to_copy(name, tmp_path):
    make_hf_model(name).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} has no tokenizer .*copy tokenizer.json"):
        load_tokenizer(replace(CONFIG, checkpoint=str(tmp_path)))


def test_a_tokenizer_that_is_code_is_refused_without_a_question(tmp_path):
    make_hf_model("llama").save_pretrained(tmp_path)
    code = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(code))
    (tmp_path / "tokenizer.model").write_text("no vocabulary")
    (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    with pytest.raises(ValueError, match="has no tokenizer that transformers reads"):
        load_tokenizer(replace(CONFIG, checkpoint=str(tmp_path)))
