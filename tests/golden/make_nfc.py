#!/usr/bin/env python3
"""Makes runtime/tokenizer/nfc_tables.inc and golden/nfc.json from Python's own Unicode data.

    make_nfc.py NFC_TABLES.inc NFC.json

The tables hold what the Unicode Character Database says of single characters; the golden file holds
what Python's normalizer, which shares no code with OQ's, makes of strings: [[text, NFC of it]...].
"""

import json
import random
import sys
import unicodedata as ucd


def decompositions():
    """Canonical ones of one step, (character, first, second or 0); Hangul goes by formula."""
    rows = []
    for c in range(0x110000):
        text = ucd.decomposition(chr(c))
        if text and not text.startswith("<"):
            parts = [int(p, 16) for p in text.split()]
            rows.append((c, parts[0], parts[1] if len(parts) == 2 else 0))
    return rows


def class_ranges():
    """(first, last, canonical combining class), where it is not 0."""
    rows = []
    for c in range(0x110000):
        k = ucd.combining(chr(c))
        if k and rows and rows[-1][1] == c - 1 and rows[-1][2] == k:
            rows[-1][1] = c
        elif k:
            rows.append([c, c, k])
    return rows


def table(kind, name, rows):
    out, line = [f"constexpr {kind} {name}[] = {{"], "   "
    for row in rows:
        item = "{" + ",".join(f"{v:#x}" for v in row) + "}," if isinstance(row, (tuple, list)) else f"{row:#x},"
        if len(line) + len(item) > 99:
            out.append(line)
            line = "   "
        line += " " + item if line == "   " else item
    return "\n".join(out + [line, "};"])


def write_tables(path):
    rows = decompositions()
    # Pairs that are taken apart and never put together again.
    one_way = [c for c, _, second in rows if second and ucd.normalize("NFC", chr(c)) != chr(c)]
    with open(path, "w", encoding="ascii") as f:
        f.write(f"// Made by tests/golden/make_nfc.py from Unicode {ucd.unidata_version}. Included by nfc.cpp only.\n"
                "// clang-format off\n")
        f.write(table("Decomposition", "kDecompositions", rows) + "\n")
        f.write(table("char32_t", "kOneWay", one_way) + "\n")
        f.write(table("ClassRange", "kClasses", class_ranges()) + "\n")
        f.write("// clang-format on\n")


def strings():
    rows = decompositions()
    marks = [c for c in range(0x110000) if ucd.combining(chr(c))]
    out = ["", "plain", "caf\u00e9", "cafe\u0301", "e\u0301\u0323x", "\u1e9b\u0323", "\u212b\u2126", "\uac00\u11a8",
           "\u1100\u1161\u11a8", "\u1100\u1161\u1161", "\u1100\u11a8", "\uac01\u11a8", "\u0344", "a\u0344", "\u0958",
           "\u0b47\u0300\u0b3e", "\u2adc", "\ufb1d", "a\u034f\u0301", "\u0301", "\u0301e\u0301", "\U0001d15e"]
    rng = random.Random(15)
    for _ in range(400):
        s = ""
        for _ in range(rng.randint(1, 8)):
            kind = rng.randrange(6)
            if kind == 0:
                s += chr(rng.choice(rows)[0])
            elif kind == 1:
                s += ucd.normalize("NFD", chr(rng.choice(rows)[0]))
            elif kind == 2:
                s += chr(rng.choice(marks))
            elif kind == 3:
                s += chr(rng.choice([0x1100, 0x1112, 0x1161, 0x1175, 0x11A8, 0x11C2, 0xAC00, 0xAC1C, 0xD7A3]))
            else:
                s += rng.choice("aeoA \n<\u03b1\u0391\u05e9\u0915\u4e00")
        out.append(s)
    return out


def main():
    write_tables(sys.argv[1])
    # Every character that any step touches, 64 to a string, apart so that neighbours stay strangers.
    single = sorted({c for row in decompositions() for c in row if c} | {c for a, b, _ in class_ranges() for c in range(a, b + 1)})
    texts = strings() + ["|".join(map(chr, single[i:i + 64])) for i in range(0, len(single), 64)]
    texts += ["|".join(ucd.normalize("NFD", chr(c)) for c in single[i:i + 64]) for i in range(0, len(single), 64)]
    with open(sys.argv[2], "w", encoding="ascii") as f:
        f.write("[\n" + ",\n".join(json.dumps([t, ucd.normalize("NFC", t)]) for t in texts) + "\n]\n")


if __name__ == "__main__":
    main()
