"""What peers of `oq-bench --peer` have in common: its tests, by their names, and its JSON."""

import argparse
import json


def report(description, shapes, prepare):
    """`prepare(shape, device, decode, tokens, depth)` makes a test ready and returns what runs it
    once and gives its tokens per second."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shape", choices=shapes, default="llama-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-p", type=int, default=512)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("-d", default="0,480")
    a = parser.parse_args()
    results = []
    for depth in map(int, a.d.split(",")):
        for decode, tokens in ((False, a.p), (True, a.n)):
            name = f"{'tg' if decode else 'pp'}{tokens}" + (f" @ d{depth}" if depth else "")
            rate = prepare(shapes[a.shape], a.device, decode, tokens, depth)
            rate()  # a warm-up, as oq-bench has one
            results.append({"test": name, "tokens_per_second": rate()})
            del rate
    print(json.dumps({"results": results}))
