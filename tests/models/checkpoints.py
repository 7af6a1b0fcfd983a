"""Small random models of transformers, saved in Hugging Face's format: the oracle for ours."""

import torch
import transformers

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GPT2_SHAPE = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 256}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32}
MODEL_NAMES = [
    *("llama", "llama_biased", "llama_yarn", "llama_linear", "mistral", "mistral_window"),
    *("qwen2", "qwen2_window", "qwen3", "gpt2", "gpt2_untied"),
]


def make_hf_model(name, **changes):
    """A float32 model whose norms and biases are random too, so that a forgotten one shows; `changes` to SHAPE."""
    shape = SHAPE | changes
    no_eos = {"bos_token_id": None, "eos_token_id": None}
    if name == "llama":
        rope = {"rope_parameters": LLAMA3_ROPE}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **rope, tie_word_embeddings=True))
    elif name == "llama_biased":
        config = transformers.LlamaConfig(**shape, attention_bias=True, mlp_bias=True, head_dim=16)
        model = transformers.LlamaForCausalLM(config)
    elif name in ("llama_yarn", "llama_linear"):
        rope = YARN_ROPE if name == "llama_yarn" else {"rope_type": "linear", "rope_theta": 1000.0, "factor": 3.0}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, rope_parameters=rope))
    elif name in ("mistral", "mistral_window"):
        window = None if name == "mistral" else 16
        model = transformers.MistralForCausalLM(transformers.MistralConfig(**shape, sliding_window=window))
    elif name == "qwen2_window":
        window = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape, **window))
    elif name == "qwen2":
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape, tie_word_embeddings=True))
    elif name == "qwen3":
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape, head_dim=16))
    else:
        config = transformers.GPT2Config(**GPT2_SHAPE, **no_eos, tie_word_embeddings=name == "gpt2")
        model = transformers.GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        mean = 1.0 if parameter.ndim == 1 else 0.0
        parameter.data.normal_(mean, 0.2, generator=generator)
    return model.eval()


def greedy(model, prompt, num_tokens):
    """The tokens that transformers' generate appends to one prompt."""
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False)
    return output[0, len(prompt) :].tolist()
