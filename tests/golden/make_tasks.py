#!/usr/bin/env python3
"""Golden log-likelihoods of SmolLM2-135M-Instruct on questions of three tasks, from HF transformers.

usage: make_tasks.py MODEL.gguf TASKS_FOLDER OUT.json [QUESTIONS]

The GGUF is dequantized, its matrices rounded to f16 as oq-convert stores them, and run in fp32 by
transformers' own LLaMA; the tokenizer is the `tokenizers` library's. Every choice goes through
the model whole, with its context. Prompts and both ways to encode them are written here anew, after
lm-evaluation-harness and GPTQ's zero-shot code. Of the tasks only the numbers of the questions
(lines from 0) are kept, no text: TASKS_FOLDER holds arc_easy.test.jsonl, piqa.valid.jsonl and
hellaswag.valid.jsonl (contexts joined).
"""
import json
import os
import sys

import torch
from gguf import GGUFReader
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM


def arc(q):
    return (f"Question: {q['question']['stem']}\nAnswer:",
            [c["text"] for c in q["question"]["choices"]])


def piqa(q):
    return f"Question: {q['goal']}\nAnswer:", [q["sol1"], q["sol2"]]


def hellaswag(q):
    return q["context"], q["endings"]


TASKS = {"arc_easy": ("arc_easy.test.jsonl", arc), "piqa": ("piqa.valid.jsonl", piqa),
         "hellaswag": ("hellaswag.valid.jsonl", hellaswag)}


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


def joint(encode, context, continuation):
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    head = encode(context)
    return head, encode(context + continuation)[len(head):]


def separate(encode, context, continuation):
    return encode(context), encode(continuation)


def log_likelihood(model, context, continuation):
    ids = torch.tensor([context + continuation])
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits[0, len(context) - 1:].double()
    of_tokens = torch.log_softmax(logits, -1).gather(1, torch.tensor(continuation)[:, None])
    return round(of_tokens.sum().item(), 5)


def main():
    gguf_path, folder, out_path = sys.argv[1:4]
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 20
    tokenizer = tokenizer_of(gguf_path)
    model = AutoModelForCausalLM.from_pretrained(
        os.path.dirname(os.path.abspath(gguf_path)), gguf_file=os.path.basename(gguf_path),
        dtype=torch.float32)
    model.eval()
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data = weight.data.half().float()
    out = {}
    for name, (file, prompt) in TASKS.items():
        with open(os.path.join(folder, file), encoding="utf-8") as f:
            lines = f.read().split("\n")
        lines = [line for line in lines if line.strip()]
        stride = len(lines) // count
        task = {"questions": [], "joint": [], "separate": []}
        for n in range(0, stride * count, stride):
            context, choices = prompt(json.loads(lines[n]))
            task["questions"].append(n)
            known = {}  # most choices have the same tokens in both
            for harness in (joint, separate):
                scores = []
                for choice in choices:
                    parts = harness(lambda s: tokenizer.encode(s).ids, context, " " + choice)
                    if str(parts) not in known:
                        known[str(parts)] = log_likelihood(model, *parts)
                    scores.append(known[str(parts)])
                task[harness.__name__].append(scores)
        out[name] = task
    with open(out_path, "w") as f:
        json.dump(out, f, separators=(",", ":"))
        f.write("\n")


main()
