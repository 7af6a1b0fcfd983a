"""The typed config.json: the key that does not fit, its value and what it may be."""

import pytest

from framework.models.config_file import GPT2File, LlamaFile, checked, read_file, rope_of
from framework.models.rope import YarnScaling
from tests.models.loaded_models import GPT2, LLAMA


def test_families_and_their_defaults():
    llama, gpt2 = read_file(LLAMA, "here"), read_file(GPT2, "here")
    assert (type(llama), type(gpt2)) == (LlamaFile, GPT2File)
    assert (llama.rms_norm_eps, llama.tie_word_embeddings, gpt2.tie_word_embeddings) == (1e-6, False, True)
    assert rope_of(llama, "here") == (10_000.0, None)


def test_the_older_key_of_ropes_wins_as_in_transformers():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    both = LLAMA | {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}, "rope_scaling": yarn}
    assert rope_of(read_file(both, "here"), "here") == (500.0, YarnScaling(4.0, 128))
    older = LLAMA | {"rope_theta": 500.0, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    assert rope_of(read_file(older, "here"), "here") == (500.0, YarnScaling(4.0, LLAMA["max_position_embeddings"]))


def test_an_error_names_source_key_value_and_what_is_allowed():
    with pytest.raises(ValueError, match=r"^here has hidden_size='48'; it should be a valid integer$"):
        checked(LlamaFile, LLAMA | {"hidden_size": "48"}, "here")
    with pytest.raises(ValueError, match=r"^here lacks 'hidden_size'$"):
        checked(LlamaFile, LLAMA | {"hidden_size": None}, "here")
