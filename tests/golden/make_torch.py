#!/usr/bin/env python3
"""Makes golden/torch/: files of torch.save, and what torch itself finds in them.

    make_torch.py OUT

Needs torch, transformers and safetensors. OUT gets
  state.bin       the state_dict of a module, its versions included
  dtypes.bin      one tensor of each dtype, a scalar and an empty one
  views.bin       views that share one storage: offset, strided, expanded, permuted, a parameter
  protocol*.bin   the same in pickle protocols 4 and 5
  nested.pth      what OWQ saves: dicts in a dict, with settings beside them
  expected.json   file -> path of a tensor -> dtype, shape, strides, values in row-major order
  llama/          a tiny model in torch's format, in shards of it and in safetensors
"""

import collections
import json
import pathlib
import sys
import types

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL", torch.uint16: "U16",
}


def state():
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.LayerNorm(3))
    return module.state_dict()


def dtypes():
    values = torch.tensor([[0, 1, 2], [100, 7, 1]])
    tensors = {name: values.to(dtype) for dtype, name in DTYPES.items()}
    for name in ("F32", "F16", "BF16"):
        tensors[name] = tensors[name] * -0.3
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.zeros(0, 3)
    return tensors


def views():
    torch.manual_seed(2)
    base = torch.randn(6, 4).half()
    cube = torch.arange(24.0).reshape(2, 3, 4)
    return collections.OrderedDict(
        base=base, again=base, rows=base[2:5], columns=base[:, 1:3], transposed=base.t(),
        steps=base[::2, ::3], element=base[3, 2], parameter=torch.nn.Parameter(base.clone()),
        expanded=torch.tensor([[1.0], [2.0], [3.0]]).expand(3, 5), cube=cube,
        permuted=cube.permute(2, 0, 1), middle=cube[:, 1], first=cube[:1])


def nested():
    torch.manual_seed(3)
    weights = collections.OrderedDict(
        [("fc1.qweight", torch.randint(-2**31, 2**31 - 1, (3, 8), dtype=torch.int32)),
         ("fc1.scales", torch.rand(8, 1).half()), ("fc1.outlieridx", torch.tensor([1, 30]).int())])
    return {
        "model_state_dict": weights,
        "n_out_dict": {"fc1": types.SimpleNamespace(n_out=2), "fc2": types.SimpleNamespace()},
        "packing": True, "dtype": torch.float16, "bits": 3, "ratio": -0.5, "nothing": None,
        "name": "größer", "numbers": [0, 255, 256, 65535, 65536, -1, 2**40, -2**63],
        "shape": torch.Size([3, 8]), "by_number": {0: "zero", -7: (1, "a", [])},
    }


def tensors_of(value, path=""):
    """(path, tensor) of every tensor in a tree of dicts."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from tensors_of(child, f"{path}/{key}" if path else str(key))


def describe(t):
    t = t.detach()
    values = t.reshape(-1).to(torch.float64 if t.is_floating_point() else torch.int64)
    return {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "strides": list(t.stride()),
            "values": values.tolist()}


def make_llama(folder):
    torch.manual_seed(4)
    config = LlamaConfig(vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
                         rms_norm_eps=1e-5, initializer_range=0.3, tie_word_embeddings=False)
    weights = LlamaForCausalLM(config).half().state_dict()
    text = config.to_json_string(use_diff=False)
    keys = list(weights)
    halves = [{k: weights[k] for k in keys[::2]}, {k: weights[k] for k in keys[1::2]}]
    for name in ("safetensors", "torch", "shards"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(text)
    save_file(weights, folder / "safetensors" / "model.safetensors", {"format": "pt"})
    torch.save(weights, folder / "torch" / "pytorch_model.bin")
    index = {}
    for i, half in enumerate(halves):
        file = f"pytorch_model-{i + 1:05}-of-00002.bin"
        torch.save(half, folder / "shards" / file)
        index.update({key: file for key in half})
    (folder / "shards" / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {"total_size": sum(2 * w.numel() for w in weights.values())},
                    "weight_map": index}))


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    files = {"state.bin": (state(), 2), "dtypes.bin": (dtypes(), 2), "views.bin": (views(), 2),
             "protocol4.bin": (views(), 4), "protocol5.bin": (views(), 5),
             "nested.pth": (nested(), 2)}
    expected = {}
    for name, (value, protocol) in files.items():
        torch.save(value, out / name, pickle_protocol=protocol)
        expected[name] = {path: describe(t) for path, t in tensors_of(value)}
    (out / "expected.json").write_text(json.dumps(expected) + "\n")
    make_llama(out / "llama")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
