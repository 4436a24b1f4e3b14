#!/usr/bin/env python3
"""Quantized checkpoints of GPTQ, AWQ and OWQ, small, with what they mean.

usage: make_quantized.py OUT_DIR [--check AUTO_GPTQ AUTO_AWQ OWQ]

Written into OUT_DIR:
  linears.safetensors, linears.json   single linears in all variants. Of each case NAME the tensors
      of its format (NAME.qweight, ...) and what they mean: NAME.codes u8 [outputs, inputs] (0 at
      weak columns), NAME.points i32 [outputs, groups] the zero points, NAME.steps f16 [outputs,
      groups] the scales, NAME.weak [outputs, weak columns] and its ascending NAME.columns
  gptq/, bloom/, awq/, owq/   HF folders of a tiny LLaMA, and a BLOOM of GPTQ, with logits.json: the
      logits of HF transformers, in fp32, on weights that are scale * (code - zero)

The packing is written here from the layouts' descriptions alone: a stream is one large integer.
--check compares it with the packers and dequantizers of the projects themselves: their Python
packages or source folders (auto_gptq, awq, owq), of which single files are loaded.
"""
import importlib.util
import json
import os
import sys
import types

import numpy as np
import torch
from safetensors.numpy import save_file

RNG = np.random.default_rng(20240607)


# ------------------------------------------------------------------ packing

def stream(values, bits):
    """Values one after another, lowest bits first, as 32-bit words; the last is filled up."""
    whole = sum(int(v) << (bits * i) for i, v in enumerate(values))
    return [(whole >> (32 * w)) & 0xFFFFFFFF for w in range((len(values) * bits + 31) // 32)]


def words(rows):
    return np.array(rows, dtype=np.uint32).view(np.int32)


def down(codes, bits):
    """[outputs, inputs] -> [inputs * bits / 32, outputs]: a stream per output, downwards."""
    return np.ascontiguousarray(words([stream(row, bits) for row in codes]).T)


def gptq(case, codes, points, steps):
    bits, group = case["settings"]["bits"], case["settings"]["group_size"]
    stored = points - (0 if case["settings"].get("checkpoint_format") == "gptq_v2" else 1)
    if case.get("by_words"):  # GPTQModel: 1 from every field of a word at once
        ones = sum(1 << (bits * i) for i in range(32 // bits))
        qzeros = words([[(w - ones) & 0xFFFFFFFF for w in stream(row, bits)] for row in points.T])
    else:
        qzeros = words([stream(row, bits) for row in stored.T])
    size = codes.shape[1] if group == -1 else group
    index = np.arange(codes.shape[1], dtype=np.int32) // size
    out = {"qweight": down(codes, bits), "qzeros": qzeros, "scales": steps.T.copy(),
           "g_idx": index}
    if case.get("groups_reversed"):
        out["g_idx"] = index.max() - index
        out["qzeros"], out["scales"] = out["qzeros"][::-1].copy(), out["scales"][::-1].copy()
    if case.get("no_g_idx"):
        del out["g_idx"]
    return out


def interleaved(rows):
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    rows = rows.reshape(rows.shape[0], -1, 8)[:, :, order].reshape(rows.shape[0], -1)
    return words([stream(row, 4) for row in rows])


def awq(case, codes, points, steps):
    return {"qweight": interleaved(codes.T), "qzeros": interleaved(points.T),
            "scales": steps.T.copy()}


def owq(case, codes, points, steps, weak, columns):
    codes = codes.copy()
    codes[:, columns] = points & (2**case["settings"]["bits"] - 1)
    pairs = points[:, 0].astype(np.uint8)
    order = case.get("weak_order", list(range(len(columns))))
    oweight = weak.T[order].copy()
    if case.get("transposed"):
        oweight = oweight.T.copy()
    return {"qweight": down(codes, case["settings"]["bits"]), "scales": steps,
            "zeros": (pairs[0::2] | pairs[1::2] << 4).reshape(-1, 1), "oweight": oweight,
            "outlieridx": np.array(columns, dtype=np.int32)[order]}


# ------------------------------------------------------------------ single linears

def linear(case, outputs=None, inputs=96):
    s = case["settings"]
    bits = s.get("bits") or s.get("w_bit")
    outputs = outputs or (32 if case["method"] == "gptq" else 16)
    group = s.get("group_size", s.get("q_group_size", -1))
    groups = 1 if group == -1 else -(-inputs // group)
    codes = RNG.integers(0, 2**bits, (outputs, inputs)).astype(np.uint8)
    low, high = case.get("points", (1, 2**bits))
    points = RNG.integers(low, high, (outputs, groups)).astype(np.int64)
    if s.get("sym") or s.get("zero_point") is False:
        points[:] = 2**(bits - 1)
    steps = (RNG.standard_normal((outputs, groups)) ** 2 * 0.02 + 1e-4).astype(np.float16)
    return codes, points, steps


def cases():
    def g(name, bits, group, sym, version, **more):
        s = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym,
             "desc_act": False, "checkpoint_format": version}
        return {"name": name, "method": "gptq", "settings": s, **more}

    for bits, groups in ((2, (32, -1)), (3, (-1, 32)), (4, (64, 128)), (8, (32, 128))):
        yield g(f"gptq{bits}_sym_v1", bits, groups[0], True, "gptq")
        yield g(f"gptq{bits}_asym_v2", bits, groups[1], False, "gptq_v2", points=(0, 2**bits))
    yield g("gptq4_asym_v1", 4, 32, False, "gptq")
    yield g("gptq3_asym_v1", 3, 64, False, "gptq")
    yield g("gptq2_beyond_v1", 2, -1, False, "gptq", points=(1, 5))  # 2^bits: i16
    yield g("gptq4_beyond_v1", 4, 32, False, "gptq", points=(1, 17))
    for bits in (2, 4, 8):
        case = g(f"gptq{bits}_words_v1", bits, 64, False, "gptq", points=(0, 3), by_words=True)
        case["settings"]["meta"] = {"quantizer": ["gptqmodel:1.8.0"]}
        yield case
    yield g("gptq4_reversed", 4, 32, False, "gptq_v2", groups_reversed=True)
    yield g("gptq4_no_index", 4, -1, True, "gptq_v2", no_g_idx=True)

    def a(name, group, zero_point, **names):
        s = {"quant_method": "awq", "zero_point": zero_point, "version": "gemm", **names}
        s.update({"bits": 4, "group_size": group} if not names else {})
        return {"name": name, "method": "awq", "settings": s, "points": (0, 16)}

    yield a("awq_g32", 32, True)
    yield a("awq_row", -1, True)
    yield a("awq_sym", 64, False)
    yield a("awq_old", 96, True, w_bit=4, q_group_size=96)

    def o(name, bits, columns, **more):
        return {"name": name, "method": "owq", "settings": {"bits": bits}, "columns": columns,
                "points": (0, 2**bits), **more}

    yield o("owq3", 3, [3, 10, 21, 95])
    yield o("owq4", 4, [0, 31, 32])
    yield o("owq4_none", 4, [])
    yield o("owq3_old", 3, [5, 6, 64], transposed=True, weak_order=[2, 0, 1])
    yield o("owq3_beyond", 3, [1], points=(0, 16))  # nibbles that no 3-bit code is as large as


def write_linears(folder, checks):
    tensors, listed = {}, []
    for case in cases():
        codes, points, steps = linear(case)
        meaning = {"codes": codes, "points": points.astype(np.int32), "steps": steps}
        if case["method"] == "owq":
            columns = case["columns"]
            weak = RNG.standard_normal((codes.shape[0], len(columns))).astype(np.float16)
            parts = owq(case, codes, points, steps, weak, columns)
            codes[:, columns] = 0
            if columns:
                meaning.update(weak=weak, columns=np.array(columns, dtype=np.int32))
        else:
            parts = {"gptq": gptq, "awq": awq}[case["method"]](case, codes, points, steps)
            weak, columns = None, []
        if checks:
            checks[case["method"]](case, parts, codes, points, steps, weak, columns)
        for name, array in {**parts, **meaning}.items():
            if array.size > 0:
                tensors[f"{case['name']}.{name}"] = np.ascontiguousarray(array)
        listed.append({k: case[k] for k in ("name", "method", "settings")})
    save_file(tensors, os.path.join(folder, "linears.safetensors"))
    with open(os.path.join(folder, "linears.json"), "w") as f:
        json.dump(listed, f, indent=1)
        f.write("\n")


# ------------------------------------------------------------------ whole models

MODELS = {  # folder: method, settings, range of zero points, size of the scales
    "gptq": ("gptq", {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True,
                      "desc_act": False}, (8, 9), 0.4),
    "bloom": ("gptq", {"quant_method": "gptq", "bits": 3, "group_size": 32, "sym": False,
                       "desc_act": True, "checkpoint_format": "gptq_v2"}, (1, 8), 0.8),
    "awq": ("awq", {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True,
                    "version": "gemm", "modules_to_not_convert": None}, (6, 11), 0.4),
    "owq": ("owq", {"bits": 3}, (2, 6), 0.4),
}


def model_of(kind):
    import transformers as t
    if kind == "bloom":  # fused q, k and v, head by head
        return t.BloomForCausalLM(t.BloomConfig(
            vocab_size=48, hidden_size=32, n_layer=1, n_head=4, layer_norm_epsilon=1e-4))
    return t.LlamaForCausalLM(t.LlamaConfig(
        vocab_size=48, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-4,
        max_position_embeddings=64, tie_word_embeddings=False, attention_bias=kind == "awq",
        bos_token_id=1, eos_token_id=2))


def quantize(module, case, size, state, name):
    """Random codes in place of a linear's weights, into `state` and, as floats, into the module."""
    outputs, inputs = module.weight.shape
    codes, points, steps = linear(case, outputs, inputs)
    steps = (steps * np.float16(size)).astype(np.float16)
    columns = []
    if case["method"] == "owq":
        columns = sorted(RNG.choice(inputs, 4, replace=False).tolist())
        weak = (RNG.standard_normal((outputs, 4)) * 0.1).astype(np.float16)
        parts = owq(case, codes, points, steps, weak, columns)
    else:
        parts = {"gptq": gptq, "awq": awq}[case["method"]](case, codes, points, steps)
    group = case["settings"].get("group_size", -1)
    groups = np.arange(inputs) // (inputs if group == -1 else group)
    w = steps.astype(np.float32)[:, groups] * (codes - points[:, groups]).astype(np.float32)
    if columns:
        w[:, columns] = weak.astype(np.float32)
    module.weight.data = torch.from_numpy(w)
    for part, array in parts.items():
        state[f"{name}.{part}"] = np.ascontiguousarray(array)
    if module.bias is None and case["method"] != "awq":  # as packers of the time wrote them
        state[f"{name}.bias"] = np.zeros(outputs, np.float16)


def write_model(folder, kind):
    method, settings, points, size = MODELS[kind]
    case = {"method": method, "settings": settings, "points": points}
    torch.manual_seed(7)
    model = model_of(kind).eval()
    linears = {name: m for name, m in model.named_modules()
               if isinstance(m, torch.nn.Linear) and name != "lm_head"}
    state = {}
    for name, p in model.named_parameters():
        p.data = (p.data * (6 if p.dim() == 2 else 1) + 0.05 * torch.randn_like(p)).half().float()
        if name.removesuffix(".weight") not in linears:
            state[name] = p.data.half().numpy()
    for name, module in linears.items():
        quantize(module, case, size, state, name)
    os.makedirs(folder, exist_ok=True)
    config = {k: v for k, v in model.config.to_dict().items() if v is not None}
    config["torch_dtype"] = "float16"
    config.pop("transformers_version", None)
    if method == "owq":
        torch.save({"model_state_dict": {k: torch.from_numpy(v) for k, v in state.items()},
                    "n_out_dict": {n: types.SimpleNamespace(n_out=4) for n in linears},
                    "packing": True, "dtype": torch.float16, "bits": settings["bits"]},
                   os.path.join(folder, "tiny-w3.pth"))
    else:
        config["quantization_config"] = settings
        save_file(state, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=1)
        f.write("\n")
    ids = RNG.integers(0, 48, 8).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    with open(os.path.join(folder, "logits.json"), "w") as f:
        json.dump({"ids": ids, "logits": [[round(x, 6) for x in row] for row in logits.tolist()]},
                  f)
        f.write("\n")


# ------------------------------------------------------------------ the projects' own code

def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checks(gptq_dir, awq_dir, owq_dir):
    their_gptq = load(os.path.join(gptq_dir, "nn_modules/qlinear/qlinear_cuda_old.py"), "g")
    their_awq = load(os.path.join(awq_dir, "utils/packing_utils.py"), "a")
    their_owq = load(os.path.join(owq_dir, "quant.py"), "o")

    def weights(codes, points, steps, group):
        groups = np.arange(codes.shape[1]) // (codes.shape[1] if group == -1 else group)
        return (steps.astype(np.float32)[:, groups]
                * (codes - points[:, groups]).astype(np.float32)), groups

    def check_gptq(case, parts, codes, points, steps, weak, columns):
        s = case["settings"]
        w, groups = weights(codes, points, steps, s["group_size"])
        if (case.get("by_words") or case.get("groups_reversed") or points.max() > 2**s["bits"] - 1
                or s["group_size"] in (64, 128)):  # theirs wants whole groups
            print(f"  {case['name']}: not checked against AutoGPTQ")
            return
        linear = torch.nn.Linear(codes.shape[1], codes.shape[0], bias=False)
        linear.weight.data = torch.from_numpy(w)
        q = their_gptq.QuantLinear(s["bits"], s["group_size"], codes.shape[1], codes.shape[0],
                                   False, weight_dtype=torch.float32)
        shift = 0 if s["checkpoint_format"] == "gptq" else 1  # theirs is version 1
        if points.min() + shift >= 1:
            q.pack(linear, torch.from_numpy(steps.astype(np.float32)),
                   torch.from_numpy(points.astype(np.float32)) + shift, None)
            if shift == 0:
                assert (q.qweight.numpy() == parts["qweight"]).all(), case["name"]
            assert (q.qzeros.numpy() == parts["qzeros"]).all(), case["name"]
        if s["checkpoint_format"] == "gptq":
            q.qweight = torch.from_numpy(parts["qweight"])
            q.qzeros = torch.from_numpy(parts["qzeros"])
            q.scales = torch.from_numpy(parts["scales"].astype(np.float32))
            theirs = q(torch.eye(codes.shape[1])).numpy().T
            assert (theirs == w).all(), case["name"]
        print(f"  {case['name']}: as AutoGPTQ has it")

    def check_awq(case, parts, codes, points, steps, weak, columns):
        group = case["settings"].get("group_size", case["settings"].get("q_group_size"))
        group = codes.shape[1] if group == -1 else group
        if codes.shape[1] % group != 0:
            print(f"  {case['name']}: not checked against AutoAWQ")
            return
        w, _ = weights(codes, points, steps, group)
        theirs = their_awq.dequantize_gemm(
            torch.from_numpy(parts["qweight"]), torch.from_numpy(parts["qzeros"]),
            torch.from_numpy(parts["scales"].astype(np.float32)), 4, group)
        assert (theirs.numpy().T == w).all(), case["name"]
        print(f"  {case['name']}: as AutoAWQ has it")

    def check_owq(case, parts, codes, points, steps, weak, columns):
        if points.max() > 2**case["settings"]["bits"] - 1 or case.get("transposed"):
            print(f"  {case['name']}: not checked against OWQ")
            return
        w, _ = weights(codes, points, steps, -1)
        w[:, columns] = weak.astype(np.float32)
        linear = torch.nn.Linear(codes.shape[1], codes.shape[0], bias=False)
        linear.weight.data = torch.from_numpy(w)
        q = their_owq.QuantLinear(case["settings"]["bits"], codes.shape[1], codes.shape[0],
                                  len(columns), False, torch.float32, "x")
        q.pack(linear, torch.from_numpy(steps.astype(np.float32)),
               torch.from_numpy(points.astype(np.float32)), torch.tensor(columns, dtype=torch.int))
        assert (q.qweight.numpy() == parts["qweight"]).all(), case["name"]
        assert (q.zeros.numpy() == parts["zeros"]).all(), case["name"]
        if columns:
            assert (q.oweight.numpy() == parts["oweight"].astype(np.float32)).all()
            assert (q.outlieridx.numpy() == parts["outlieridx"]).all()
        print(f"  {case['name']}: as OWQ has it")

    return {"gptq": check_gptq, "awq": check_awq, "owq": check_owq}


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    check = checks(*sys.argv[3:]) if sys.argv[2:3] == ["--check"] else None
    write_linears(folder, check)
    for kind in MODELS:
        write_model(os.path.join(folder, kind), kind)


main()
