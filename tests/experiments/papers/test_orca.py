"""experiment=papers/orca with the 8B model has the paper's sizes; what it draws is in test_latency.py."""

import yaml


def test_with_the_8b_model_the_sizes_are_the_papers(cli):
    code, output = cli("experiment=papers/orca", "engine=modelled", "model=llama_8b", "--cfg", "job")
    assert code == 0, output
    config = yaml.safe_load(output)
    lengths = config["trace"]["lengths"]
    assert [(lengths[part]["low"], lengths[part]["high"]) for part in ("prompt", "output")] == [(32, 512), (1, 128)]
