#!/usr/bin/env python3
"""What a user would otherwise run: a LLaMA of random fp16 weights by PyTorch and transformers.

For `oq-bench --peer`: prints JSON as oq-bench does, one rate for each of its tests of that name.
Tokens are fed one after another and the likeliest is taken, as oq-bench does.
"""

import argparse
import json
import time

import torch
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
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=2048))
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-p", type=int, default=512)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("-d", default="0,480")
    a = parser.parse_args()
    model = make_model(a.shape, a.device)
    results = []
    for depth in map(int, a.d.split(",")):
        for decode, tokens in ((False, a.p), (True, a.n)):
            name = f"{'tg' if decode else 'pp'}{tokens}" + (f" @ d{depth}" if depth else "")
            rate(model, a.device, decode, tokens, depth)  # a warm-up, as oq-bench has one
            results.append({"test": name,
                            "tokens_per_second": rate(model, a.device, decode, tokens, depth)})
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()
