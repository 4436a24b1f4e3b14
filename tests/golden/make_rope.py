#!/usr/bin/env python3
"""RoPE frequencies of every scaling variant that config.json can name, for tests/convert.

Computed by Hugging Face transformers' own LLaMA rotary embedding. Usage: make_rope.py OUT.json
Needs: transformers, torch.
"""
import json
import sys

from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

BASE = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 8192}

# As config.json would have them: the older spelling where it exists, and the newer one.
CASES = {
    "default": {"rope_theta": 10000.0},
    "default, theta 500000, head_dim 96": {"rope_theta": 500000.0, "head_dim": 96},
    "linear, old spelling": {
        "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3": {
        "rope_theta": 500000.0, "max_position_embeddings": 131072,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
    "llama3, factor 32": {
        "rope_theta": 500000.0, "max_position_embeddings": 131072, "head_dim": 128,
        "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
    "yarn": {
        "rope_theta": 10000.0, "max_position_embeddings": 65536,
        "rope_scaling": {"type": "yarn", "factor": 16.0,
                         "original_max_position_embeddings": 4096}},
    "yarn, attention_factor and betas": {
        "rope_theta": 1000000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25,
                         "beta_fast": 24, "beta_slow": 2,
                         "original_max_position_embeddings": 2048}},
    "yarn, mscale, not truncated": {
        "rope_theta": 10000.0, "max_position_embeddings": 163840,
        "rope_scaling": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0,
                         "mscale_all_dim": 0.7, "truncate": False,
                         "original_max_position_embeddings": 4096}},
    "dynamic": {
        "rope_theta": 10000.0, "max_position_embeddings": 2048,
        "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "rope_parameters, llama3": {
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_max_position_embeddings": 8192}},
    "rope_parameters, default": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
}


def main(out):
    rows = []
    for name, settings in CASES.items():
        config = {**BASE, **settings}
        rope = LlamaRotaryEmbedding(LlamaConfig(**json.loads(json.dumps(config))))
        rows.append({
            "name": name,
            "config": config,
            "attention_factor": float(rope.attention_scaling),
            "inv_freq": [float(x) for x in rope.inv_freq],
        })
    with open(out, "w") as f:
        json.dump(rows, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
