"""experiment=papers/vllm_latency with the 8B model has the paper's sizes; what it draws is in test_latency.py."""

import yaml


def test_with_the_8b_model_the_sizes_are_the_papers(cli):
    code, output = cli("experiment=papers/vllm_latency", "engine=modelled", "model=llama_8b", "--cfg", "job")
    assert code == 0, output
    config = yaml.safe_load(output)
    assert config["engine"]["num_blocks"] * config["engine"]["block_size"] == 15696
    assert config["trace"]["lengths"]["prompt"]["mean"] == 161
