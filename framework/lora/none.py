"""No adapters: requests that name one are served by the base model alone."""

from framework.models.gpt2 import GPT2
from framework.models.llama import Llama


def serve_base(model: Llama | GPT2) -> Llama | GPT2:
    return model
