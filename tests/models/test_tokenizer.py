from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from framework.models.config import parse_config
from framework.models.tokenizer import ByteTokenizer, load_tokenizer
from tests.models.checkpoints import GPT2_SHAPE

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
