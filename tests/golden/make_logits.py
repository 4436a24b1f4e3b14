#!/usr/bin/env python3
"""Golden logits and perplexity of SmolLM2-135M-Instruct, from HF transformers.

usage: make_logits.py MODEL.gguf WIKITEXT2_TEST.txt OUT.json

The GGUF is dequantized, its matrices rounded to f16 as oq-convert stores them, and run in fp32 by
transformers' own LLaMA, which shares nothing with OQ.
The tokenizer is the `tokenizers` library's, built from the GGUF's vocabulary and merges. Written:
for two prompts and several positions the five largest logits and every 64th of all; and the mean
negative log-likelihood of each of the first 20 windows of 512 tokens of the text.
"""
import json
import os
import sys

import torch
from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

PROMPTS = {
    "plain": "The capital of France is Paris, and the capital of Germany is Berlin. In 1989, the",
    "chat": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
            "<|im_start|>assistant\n",
}
STRIDE, WINDOWS, WINDOW = 64, 20, 512


def tokenizer_of(path):
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    t = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(tokens)}, merges=merges))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([s for s, kind in zip(tokens, types) if kind == 3])
    return t


def main():
    gguf_path, text_path, out_path = sys.argv[1:]
    tokenizer = tokenizer_of(gguf_path)
    model = AutoModelForCausalLM.from_pretrained(
        os.path.dirname(os.path.abspath(gguf_path)), gguf_file=os.path.basename(gguf_path),
        dtype=torch.float32)
    model.eval()
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data = weight.data.half().float()
    out = {"stride": STRIDE, "window": WINDOW, "prompts": [], "window_nll": []}
    with torch.no_grad():
        for name, prompt in PROMPTS.items():
            ids = tokenizer.encode(prompt).ids
            logits = model(torch.tensor([ids])).logits[0]
            places = []
            for position in sorted({0, 1, len(ids) // 2, len(ids) - 2, len(ids) - 1}):
                top = torch.topk(logits[position], 5)
                places.append({"position": position, "top_ids": top.indices.tolist(),
                               "top": [round(v, 5) for v in top.values.tolist()],
                               "every": [round(v, 4) for v in logits[position][::STRIDE].tolist()]})
            out["prompts"].append({"name": name, "ids": ids, "places": places})
        ids = tokenizer.encode(open(text_path, encoding="utf-8").read(300000)).ids
        for w in range(WINDOWS):
            part = torch.tensor([ids[w * WINDOW:(w + 1) * WINDOW]])
            logits = model(part).logits[0, :-1].double()
            nll = torch.nn.functional.cross_entropy(logits, part[0, 1:])
            out["window_nll"].append(round(nll.item(), 7))
    with open(out_path, "w") as f:
        json.dump(out, f, separators=(",", ":"))
        f.write("\n")


main()
