#!/usr/bin/env python3
"""Golden models of every family: tiny, seeded, with the logits that HF transformers gives them.

usage: make_families.py OUT_FOLDER

Writes one folder for each model, as transformers saves it (config.json, model.safetensors), and in
it golden.json: "ids", a prompt, and "logits", [position][vocab], computed in f32 with
transformers' default attention (its eager one adds Falcon's ALiBi twice). Sizes are odd, norms and
biases are no ones and zeros, epsilons not the default where a setting exists. Weights are random
bf16 numbers, stored as such: half the bytes, and exact in f32.

Beside the folders, alibi.json has what transformers adds to attention's scores for several numbers
of heads.
"""
import json
import math
import os
import sys

import torch
from transformers import (BloomConfig, BloomForCausalLM, FalconConfig, FalconForCausalLM,
                          LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM)
from transformers.models.bloom import modeling_bloom
from transformers.models.falcon import modeling_falcon

VOCAB, PROMPT = 97, 41
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
LLAMA = {"vocab_size": VOCAB, "hidden_size": 42, "intermediate_size": 52, "num_hidden_layers": 2,
         "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
         "max_position_embeddings": 128, "rms_norm_eps": 3e-4, **SPECIAL}
FALCON = {"vocab_size": VOCAB, "num_hidden_layers": 2, "layer_norm_epsilon": 2e-4,
          "max_position_embeddings": 128, **SPECIAL}
OPT = {"vocab_size": VOCAB, "hidden_size": 44, "ffn_dim": 58, "num_hidden_layers": 2,
       "num_attention_heads": 4, "max_position_embeddings": 50, **SPECIAL}

MODELS = {
    "llama-bias": (LlamaForCausalLM, LlamaConfig(
        **LLAMA, attention_bias=True, mlp_bias=True, rope_parameters={
            "rope_type": "default", "rope_theta": 500.0})),
    "mistral-window": (MistralForCausalLM, MistralConfig(**LLAMA, sliding_window=9)),
    "qwen2-tied": (Qwen2ForCausalLM, Qwen2Config(
        **{k: v for k, v in LLAMA.items() if k != "head_dim"} | {
            "hidden_size": 36, "num_attention_heads": 6}, tie_word_embeddings=True)),
    "mixtral": (MixtralForCausalLM, MixtralConfig(
        **LLAMA | {"intermediate_size": 36}, num_local_experts=4, num_experts_per_tok=2)),
    # The same weights in every expert: the model equals the dense one that follows.
    "mixtral-equal-experts": (MixtralForCausalLM, MixtralConfig(
        **LLAMA, num_local_experts=3, num_experts_per_tok=2)),
    "mixtral-dense-twin": (MistralForCausalLM, MistralConfig(
        **LLAMA, sliding_window=None, rope_parameters={
            "rope_type": "default", "rope_theta": 1e6})),
    "opt": (OPTForCausalLM, OPTConfig(**OPT)),
    "opt-post-norm": (OPTForCausalLM, OPTConfig(
        **OPT, do_layer_norm_before=False, word_embed_proj_dim=26)),
    "opt-no-bias": (OPTForCausalLM, OPTConfig(
        **OPT, enable_bias=False, activation_function="gelu", _remove_final_layer_norm=True)),
    "falcon-7b": (FalconForCausalLM, FalconConfig(
        **FALCON, hidden_size=60, num_attention_heads=5, ffn_hidden_size=70, multi_query=True,
        parallel_attn=True)),
    "falcon-40b": (FalconForCausalLM, FalconConfig(
        **FALCON, hidden_size=60, num_attention_heads=6, num_kv_heads=2, ffn_hidden_size=70,
        new_decoder_architecture=True)),
    "falcon-11b": (FalconForCausalLM, FalconConfig(
        **FALCON, hidden_size=60, num_attention_heads=6, num_kv_heads=3, ffn_hidden_size=70,
        new_decoder_architecture=True, num_ln_in_parallel_attn=1)),
    "falcon-rw": (FalconForCausalLM, FalconConfig(
        **FALCON, hidden_size=50, num_attention_heads=5, ffn_hidden_size=70, multi_query=False,
        parallel_attn=False, alibi=True, bias=True)),
    "falcon-rw-4-heads": (FalconForCausalLM, FalconConfig(
        **FALCON, hidden_size=40, num_attention_heads=4, multi_query=False, parallel_attn=False,
        alibi=True, bias=True, tie_word_embeddings=False)),
    "bloom": (BloomForCausalLM, BloomConfig(
        vocab_size=VOCAB, hidden_size=42, n_layer=2, n_head=7, layer_norm_epsilon=2e-4, **SPECIAL)),
}


def randomize(model, generator):
    """Every parameter: matrices that keep activations alive, norms around 1, biases around 0."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1 and name.endswith("weight"):
            value = 1 + 0.2 * noise
        elif p.dim() == 1:
            value = 0.2 * noise
        elif "embed" in name or "lm_head" in name:
            value = 0.6 * noise
        else:
            value = 1.3 * noise / math.sqrt(p.shape[-1])
        p.data = value.bfloat16().float()


def equal_experts(model):
    """Gives every expert the first one's weights."""
    for layer in model.model.layers:
        for p in layer.mlp.experts.parameters():
            p.data = p.data[:1].expand_as(p.data).contiguous()


def dense_twin(model, source):
    """Gives a Mistral the weights of a Mixtral whose experts are equal."""
    weights = source.state_dict()
    for b in range(source.config.num_hidden_layers):
        prefix = f"model.layers.{b}.mlp."
        gate_up = weights.pop(prefix + "experts.gate_up_proj")[0]
        weights[prefix + "gate_proj.weight"], weights[prefix + "up_proj.weight"] = gate_up.chunk(2)
        weights[prefix + "down_proj.weight"] = weights.pop(prefix + "experts.down_proj")[0]
        del weights[prefix + "gate.weight"]
    model.load_state_dict(weights)


def make(folder, kind, config, seed, source):
    config._experts_implementation = "eager"  # the grouped one wants rows of 16 bytes
    model = kind(config).eval()
    generator = torch.Generator().manual_seed(seed)
    randomize(model, generator)
    if "equal" in folder:
        equal_experts(model)
    if "twin" in folder:
        dense_twin(model, source)
    seed_of_prompt = 99 if "mixtral-" in folder else seed
    ids = torch.randint(3, VOCAB, (1, PROMPT),
                        generator=torch.Generator().manual_seed(seed_of_prompt))
    with torch.no_grad():
        logits = model(ids).logits[0]
    assert logits.isfinite().all() and logits.std() > 0.5, folder
    model.to(torch.bfloat16).save_pretrained(folder)
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)
    with open(os.path.join(folder, "golden.json"), "w") as f:
        rows = [[round(x, 5) for x in row] for row in logits.tolist()]
        json.dump({"ids": ids[0].tolist(), "logits": rows}, f, separators=(",", ":"))
        f.write("\n")
    return model.float()


def alibi_rows():
    """What transformers adds to scores, after their division, at some positions of each head."""
    positions = [0, 1, 3, 40, 256, 257, 1023, 2047]
    mask = torch.ones(1, 2048, dtype=torch.long)
    out = {"positions": positions, "head_dim": 12, "bloom": {}, "falcon": {}}
    for heads in (1, 3, 5, 8, 12, 71):
        bloom = modeling_bloom.build_alibi_tensor(mask, heads, torch.float32)[:, 0]
        falcon = modeling_falcon.build_alibi_tensor(mask, heads, torch.float32)[:, 0]
        falcon = falcon / math.sqrt(out["head_dim"])
        out["bloom"][str(heads)] = bloom[:, positions].tolist()
        out["falcon"][str(heads)] = falcon[:, positions].tolist()
    return out


def main():
    out, = sys.argv[1:]
    os.makedirs(out, exist_ok=True)
    torch.manual_seed(0)
    previous = None
    for seed, (name, (kind, config)) in enumerate(MODELS.items()):
        previous = make(os.path.join(out, name), kind, config, seed, previous)
    with open(os.path.join(out, "alibi.json"), "w") as f:
        json.dump(alibi_rows(), f, separators=(",", ":"))
        f.write("\n")


main()
