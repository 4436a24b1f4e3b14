#!/usr/bin/env python3
"""The golden checksums of tests/format/packed_test.cpp, from format/SPEC.md alone.

An implementation of "Packed tensors" that shares nothing with the C++ one: it places every single
bit by the text's rule. Prints one CRC-32C per width (2..8 bits, then w2*).
"""


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def field_bit_places(bits):
    """For field d of a byte lane: the (byte, bit) of each of its bits, lowest first."""
    whole = 8 // bits * bits  # bits of a byte that hold whole fields = number of such fields
    places = {d: [(d % bits, d // bits * bits + i) for i in range(bits)] for d in range(whole)}
    spill = [(j, b) for j in range(bits) for b in range(whole, 8)]
    for d in range(whole, 8):
        places[d] = spill[(d - whole) * bits:(d - whole + 1) * bits]
    return places


def pack(bits, five):
    levels, rows, cols, groups = (5 if five else 1 << bits), 8, 96, 2
    code = lambda r, k: (5 * r + 3 * k + r * k) % levels
    width = 7 if five else bits
    block_cols = 96 if five else 32
    codes = bytearray()
    for block in range(0, cols, block_cols):
        out = bytearray(32 * width)
        for r in range(rows):
            for i in range(32):
                k = block + i
                field = code(r, k)
                if five:
                    field += 5 * code(r, k + 32) + 25 * code(r, k + 64)
                for n, (byte, bit) in enumerate(field_bit_places(width)[i // 4]):
                    out[32 * byte + 4 * r + i % 4] |= (field >> n & 1) << bit
        codes += out
    tensor = bytearray(codes)

    def align():
        tensor.extend(bytes(-len(tensor) % 64))

    align()
    for _ in range(groups):
        for r in range(rows):
            tensor.extend(((15 - (r + 1)) << 10).to_bytes(2, "little"))  # f16 2^-(r + 1)
    align()
    zero_bits = 3 if five else bits
    for _ in range(groups):
        stream = sum((r % levels) << (r * zero_bits) for r in range(rows))
        tensor.extend(stream.to_bytes(zero_bits, "little"))
    tensor.extend(bytes(8))
    align()  # no weak columns: both their sections are empty
    return tensor


for width in list(range(2, 9)) + [0]:
    print("0x%08Xu" % crc32c(pack(width or 2, width == 0)), end=", ")
print()
