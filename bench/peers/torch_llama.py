#!/usr/bin/env python3
"""A LLaMA of random fp16 weights in plain PyTorch: what is left of a user's choices where
transformers is not installed, and a harder peer where it is.

One sequence, a static KV cache, projections that share an input in one product, and on a GPU a CUDA
graph for each decoded token. For `oq-bench --peer`, as transformers_llama.py.
"""

import functools
import time

import torch
import torch.nn.functional as F
from oq_peer import report

SHAPES = {
    "llama-7b": dict(hidden=4096, mlp=11008, blocks=32, heads=32, vocab=32000),
    "tiny": dict(hidden=64, mlp=96, blocks=2, heads=4, vocab=101),
}
EPS = 1e-6


class Llama:
    """Weights, and a cache of `room` positions: keys and values [blocks][heads][room][dim]."""

    def __init__(self, shape, room, device):
        hidden, mlp = shape["hidden"], shape["mlp"]
        self.heads, self.vocab = shape["heads"], shape["vocab"]
        self.dim, self.room, self.device = hidden // self.heads, room, device

        def random(*sizes):
            return torch.empty(*sizes, dtype=torch.float16, device=device).uniform_(-0.02, 0.02)

        self.embedding, self.head = random(self.vocab, hidden), random(self.vocab, hidden)
        self.blocks = [
            dict(qkv=random(3 * hidden, hidden), o=random(hidden, hidden),
                 gate_up=random(2 * mlp, hidden), down=random(hidden, mlp))
            for _ in range(shape["blocks"])
        ]
        self.norm = torch.ones(hidden, dtype=torch.float16, device=device)
        cache = (shape["blocks"], self.heads, room, self.dim)
        self.keys = torch.zeros(cache, dtype=torch.float16, device=device)
        self.values = torch.zeros(cache, dtype=torch.float16, device=device)
        powers = torch.arange(0, self.dim, 2, device=device, dtype=torch.float32) / self.dim
        angles = torch.arange(room, device=device)[:, None] * 10000.0 ** -powers
        angles = torch.cat([angles, angles], -1)
        self.cosine, self.sine = angles.cos().half(), angles.sin().half()
        self.all_positions = torch.arange(room, device=device)

    def rms_norm(self, x):
        return F.rms_norm(x, self.norm.shape, self.norm, EPS)

    def rotated(self, x, positions):
        half = self.dim // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * self.cosine[positions] + turned * self.sine[positions]

    def attention(self, x, weights, block, positions, mask):
        n = x.shape[0]
        q, k, v = F.linear(x, weights["qkv"]).view(n, 3, self.heads, self.dim).permute(1, 2, 0, 3)
        self.keys[block].index_copy_(1, positions, self.rotated(k, positions))
        self.values[block].index_copy_(1, positions, v.contiguous())
        out = F.scaled_dot_product_attention(self.rotated(q, positions)[None],
                                             self.keys[block][None], self.values[block][None],
                                             attn_mask=mask)
        return F.linear(out[0].transpose(0, 1).reshape(n, -1), weights["o"])

    def next_token(self, ids, positions):
        """ids and positions: int64 [n] on the device. Returns the likeliest token after the last."""
        x = F.embedding(ids, self.embedding)
        mask = self.all_positions[None] <= positions[:, None]
        for block, weights in enumerate(self.blocks):
            x = x + self.attention(self.rms_norm(x), weights, block, positions, mask)
            gate, up = F.linear(self.rms_norm(x), weights["gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, weights["down"])
        return F.linear(self.rms_norm(x[-1:]), self.head).argmax(-1)


class Decoder:
    """One token at a time: by a graph on a GPU."""

    def __init__(self, model):
        self.model = model
        self.id = torch.zeros(1, dtype=torch.int64, device=model.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=model.device)
        self.graph = None
        if model.device != "cuda":
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what is made on first use cannot be made in a capture
            for _ in range(3):
                model.next_token(self.id, self.position)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.out = model.next_token(self.id, self.position)

    def step(self, token, position):
        self.id.fill_(token)
        self.position.fill_(position)
        if self.graph is None:
            return self.model.next_token(self.id, self.position).item()
        self.graph.replay()
        return self.out.item()


@torch.inference_mode()
def rate(model, decoder, decode, tokens, depth):
    ids = torch.arange(1, depth + tokens + 1, device=model.device).remainder(model.vocab)
    positions = model.all_positions
    if depth > 0:
        model.next_token(ids[:depth], positions[:depth]).item()
    listed = ids.tolist()
    start = time.perf_counter()
    if decode:
        for at in range(depth, depth + tokens):
            decoder.step(listed[at], at)
    else:
        model.next_token(ids[depth:], positions[depth:depth + tokens]).item()
    return tokens / (time.perf_counter() - start)


@torch.inference_mode()
def prepare(shape, device, decode, tokens, depth):
    # A cache of its own for each test, for attention reads all of a static one.
    model = Llama(shape, depth + tokens, device)
    return functools.partial(rate, model, Decoder(model) if decode else None, decode, tokens, depth)


if __name__ == "__main__":
    report(__doc__, SHAPES, prepare)
