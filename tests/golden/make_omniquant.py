#!/usr/bin/env python3
"""Makes golden/omniquant/: learned parameters as OmniQuant's code saves them, and what they make.

    make_omniquant.py

Needs torch and safetensors. For some models of golden/families, omniquant/NAME/ gets
  omni_parameters.pth    block -> name -> fp16 tensor, random numbers around where learning starts
  act_scales.pt, act_shifts.pt    name of a linear -> vector; where there are transformations
  expected.safetensors   of every linear: codes, scale (f16), zero point; folded norms and biases

Computed by the formulas of Shao et al. 2023 in the order norm -> qkv, norm -> mlp, v -> o, q <-> k,
on half tensors throughout: OmniQuant's code turns block and parameters into these before it folds
and quantizes.
"""

import pathlib

import torch
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).parent
OPT = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
       "o": "self_attn.out_proj", "up": "fc1", "down": "fc2"}
LLAMA = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
         "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
         "down": "mlp.down_proj"}
MIXTRAL = {**{n: LLAMA[n] for n in "qkvo"},
           **{f"experts.{e}.{ours}": f"block_sparse_moe.experts.{e}.{theirs}"
              for e in range(8) for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3"))}}


def half(operation, *tensors):
    """An operation on half tensors for which a CPU may have no kernel: in fp32, rounded once."""
    return operation(*(t.float() for t in tensors)).half()


def quantize(w, upper, lower, bits):
    """Codes, scale and zero point of each row."""
    high = half(torch.sigmoid, upper) * w.amax(1, keepdim=True)
    low = half(torch.sigmoid, lower) * w.amin(1, keepdim=True)
    top = 2 ** bits - 1
    scale = half(lambda s: s.clamp(1e-5, 1e4), (high - low) / top)
    zero = half(lambda z: z.clamp(-1e4, 1e4).round(), -low / scale)
    codes = (half(torch.round, w / scale) + zero).float().clamp(0, top)
    return codes.to(torch.uint8), scale, zero.to(torch.int16)


def fold(linears, norms, p):
    """OPT's block with every pair in its weights; linears are name -> [weight, bias]."""
    def columns(name, scale, shift):
        w, b = linears[name]
        linears[name] = [w * scale, b + half(torch.mv, w, shift)]

    def norm(name, scale, shift):
        w, b = norms[name]
        norms[name] = [w / scale, (b - shift) / scale]

    norm("attn_norm", p["qkv_smooth_scale"], p["qkv_smooth_shift"])
    for name in "qkv":
        columns(name, p["qkv_smooth_scale"], p["qkv_smooth_shift"])
    norm("mlp_norm", p["fc1_smooth_scale"], p["fc1_smooth_shift"])
    columns("up", p["fc1_smooth_scale"], p["fc1_smooth_shift"])
    s, d = p["out_smooth_scale"], p["out_smooth_shift"]
    w, b = linears["v"]
    linears["v"] = [w / s[:, None], (b - d) / s]
    columns("o", s, d)
    s = p["qkt_smooth_scale"]
    w, b = linears["q"]
    linears["q"] = [w / s[:, None], b / s]
    w, b = linears["k"]
    linears["k"] = [w * s[:, None], b * s]


def make(name, names, layers, bits, let):
    torch.manual_seed(len(name))
    state = {k: v.half() for k, v in load_file(HERE / "families" / name / "model.safetensors").items()}
    out = HERE / "omniquant" / name
    out.mkdir(parents=True, exist_ok=True)
    parameters, expected, scales, shifts = {}, {}, {}, {}
    for block in range(2):
        prefix = f"{layers}.{block}."
        here = {ours: theirs for ours, theirs in names.items() if prefix + theirs + ".weight" in state}
        linears = {n: [state[prefix + t + ".weight"], state.get(prefix + t + ".bias")]
                   for n, t in here.items()}
        p = {}
        for ours, theirs in here.items():
            w = linears[ours][0]
            for bound in ("upbound", "lowbound"):
                p[f"{theirs}.weight_quantizer.{bound}_factor"] = (
                    (4 + torch.randn(w.shape[0], 1)).half())
            scales[prefix + theirs] = torch.rand(w.shape[1]) + 0.5
            shifts[prefix + theirs] = torch.randn(w.shape[1]) / 8
        if let:
            hidden = linears["q"][0].shape[1]
            for pair in ("qkv", "out", "fc1"):
                p[f"{pair}_smooth_scale"] = (0.7 + torch.rand(hidden)).half()
                p[f"{pair}_smooth_shift"] = (torch.randn(hidden) / 8).half()
            p["qkt_smooth_scale"] = (0.7 + torch.rand(hidden)).half()
            p["qkt_smooth_scale"][3] = 0.004  # less than the least that is used, 0.01
            norms = {ours: [state[f"{prefix}{theirs}.{x}"] for x in ("weight", "bias")]
                     for ours, theirs in (("attn_norm", "self_attn_layer_norm"),
                                          ("mlp_norm", "final_layer_norm"))}
            used = dict(p)
            used["qkt_smooth_scale"] = half(lambda s: s.clamp(min=0.01), p["qkt_smooth_scale"])
            fold(linears, norms, used)
            for n, (w, b) in norms.items():
                expected[f"blocks.{block}.{n}"] = w.float()
                expected[f"blocks.{block}.{n}.bias"] = b.float()
        for ours, theirs in here.items():
            w, b = linears[ours]
            codes, scale, zero = quantize(w,
                                          p[theirs + ".weight_quantizer.upbound_factor"],
                                          p[theirs + ".weight_quantizer.lowbound_factor"], bits)
            full = f"blocks.{block}.{ours}"
            expected[full + ".codes"] = codes
            expected[full + ".scale"] = scale
            expected[full + ".zero"] = zero
            if let:
                expected[full + ".bias"] = b.float()
        parameters[block] = p
    torch.save(parameters, out / "omni_parameters.pth")
    if let:
        torch.save(scales, out / "act_scales.pt")
        torch.save(shifts, out / "act_shifts.pt")
    save_file({k: v.contiguous() for k, v in expected.items()}, out / "expected.safetensors")


make("opt", OPT, "model.decoder.layers", 4, True)
make("llama-bias", LLAMA, "model.layers", 3, False)
make("mixtral", MIXTRAL, "model.layers", 4, False)
