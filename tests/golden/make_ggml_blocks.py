#!/usr/bin/env python3
"""Random blocks of every GGUF tensor type that OQ reads, and their values, for tests/convert.

Dequantized by GGUF's own Python library. Usage: make_ggml_blocks.py OUT.safetensors
Needs: gguf, numpy, safetensors.
"""
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize
from safetensors.numpy import save_file

# type -> byte offsets of its f16 numbers, which must be finite to be of use
TYPES = {
    T.F16: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.BF16: [],
}
BLOCKS = 4


def main(out):
    rng = np.random.default_rng(7)
    tensors = {}
    for t, halves in TYPES.items():
        elements, size = GGML_QUANT_SIZES[t]
        n = BLOCKS * (256 // elements if elements < 256 else 1)
        blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
        if t == T.BF16:
            blocks[:, 1] &= 0xBF  # no infinities or NaN
        for at in halves:
            scale = rng.normal(0, 0.1, n).astype(np.float16)
            scale[0] = np.float16(3e-6)  # a subnormal one
            blocks[:, at:at + 2] = scale.view(np.uint8).reshape(n, 2)
        tensors[f"{t.name}.blocks"] = blocks
        tensors[f"{t.name}.values"] = dequantize(blocks.reshape(1, -1), t).reshape(-1)
    save_file(tensors, out)


if __name__ == "__main__":
    main(sys.argv[1])
