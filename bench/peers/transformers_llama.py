#!/usr/bin/env python3
"""What a user would otherwise run: a LLaMA of random fp16 weights by PyTorch and transformers.

For `oq-bench --peer`: prints JSON as oq-bench does, one rate for each of its tests of that name.
Tokens are fed one after another and the likeliest is taken, as oq-bench does.
"""

import functools
import time

import torch
from oq_peer import report
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

SHAPES = {
    "llama-7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                     num_attention_heads=32, vocab_size=32000),
    "tiny": dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                 num_attention_heads=4, vocab_size=101),
}


def make_model(shape, device):
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=2048))
    model = model.to(torch.float16).to_empty(device=device).eval()
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.02, 0.02)
    for buffer in model.buffers():
        buffer.zero_()
    return model


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def rate(model, device, decode, tokens, depth):
    vocab = model.config.vocab_size
    ids = torch.arange(1, depth + tokens + 1, device=device).remainder(vocab)[None]
    cache = DynamicCache(config=model.config)
    if depth > 0:
        model(ids[:, :depth], past_key_values=cache, use_cache=True, logits_to_keep=1)
    wait(device)
    start = time.perf_counter()
    step = 1 if decode else tokens
    for at in range(depth, depth + tokens, step):
        out = model(ids[:, at:at + step], past_key_values=cache, use_cache=True, logits_to_keep=1)
        out.logits[0, -1].argmax().item()
    return tokens / (time.perf_counter() - start)


def main():
    models = {}

    def prepare(shape, device, decode, tokens, depth):
        if not models:  # one for all tests
            models[device] = make_model(shape, device)
        return functools.partial(rate, models[device], device, decode, tokens, depth)

    report(__doc__, SHAPES, prepare)


if __name__ == "__main__":
    main()
