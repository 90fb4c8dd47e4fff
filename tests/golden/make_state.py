"""Golden trace of 8-bit state: AdamW and SGD with momentum, whose moments are stored by the definition in the documentation of State::Bits8
(src/state.rs): blocks of 32, codes q|q|s for m and c²s for √v, stochastic rounding with a hash. The steps are those of torch.optim (AdamW
without weight decay, SGD with momentum), which compute with the moments before they are stored.

Python's float is f64; scales and thresholds are rounded to f32 where the definition rounds them. Every code is asserted to be further from the
threshold between two codes than f32 rounds, so that each path must find it.

    python3 tests/golden/make_state.py > tests/golden/state.csv
"""

import math
import struct

ELEMENTS, STEPS, BLOCK = 70, 12, 32
RATE, BETA_1, BETA_2, EPSILON, MU = 0.01, 0.9, 0.999, 1e-8, 0.9
MASK = 0xFFFFFFFF


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


# The numbers as the paths have them.
BETA_1, BETA_2, MU = f32(BETA_1), f32(BETA_2), f32(MU)


def from_upper(bits):
    return struct.unpack("f", struct.pack("I", bits << 16))[0]


def mix(x):
    x = ((x ^ x >> 16) * 0x7FEB352D) & MASK
    x = ((x ^ x >> 15) * 0x846CA68B) & MASK
    return x ^ x >> 16


def random(step, element):
    """Of m and of v, above 0 and up to 1."""
    key = mix(mix(mix(0) ^ step))
    bits = mix(((key ^ 0x5BD1E995) + element * 0x9E3779B9) & MASK)
    return ((bits & 0x7FFF) + 1) / 32768, ((bits >> 16 & 0x7FFF) + 1) / 32768


def value(square, code_square, scale):
    product = f32(code_square * scale)
    return f32(product * product) if square else product


def scale_bits(square, largest):
    most = 255 if square else 127
    bits = 0x2180 if square else 0x0880
    while value(square, most * most, from_upper(bits)) < largest:
        bits += 1
    return bits


def encode(square, size, scale, random):
    most = 255 if square else 127
    code = max(c for c in range(most + 1) if value(square, c * c, scale) <= size)
    threshold = value(square, f32(code * code + random * (2 * code + 1)), scale)
    for limit in (threshold, value(square, code * code, scale), value(square, (code + 1) ** 2, scale)):
        assert size == 0 or abs(size - limit) > 4e-7 * size or size == limit == value(square, most * most, scale)
    code = min(code + (threshold <= size), most)
    if size == 0:
        return 0
    return max(code, 1) if square else code


def store(square, values, step):
    """Codes and scales, and what they stand for."""
    codes, scales, kept = [], [], []
    for first in range(0, len(values), BLOCK):
        block = values[first : first + BLOCK]
        bits = scale_bits(square, max(abs(x) for x in block))
        scales.append(bits)
        for i, x in enumerate(block, first):
            code = encode(square, abs(x), from_upper(bits), random(step, i)[square])
            codes.append(code if x >= 0 else -code)
            kept.append(math.copysign(value(square, code * code, from_upper(bits)), x))
    return codes, scales, kept


def gradient(step):
    return [round(64 * math.cos(0.7 * i + 1.3 * step * (1 + i % 3))) / 64 / 2 ** (i % 7) for i in range(ELEMENTS)]


def hex_of(codes):
    return "".join(f"{code & 255:02x}" for code in codes)


print("rule,step,first,last,momentum,momentum_scales,squares,squares_scales")
for rule in ("adamw", "sgdm"):
    w = [math.cos(i) for i in range(ELEMENTS)]
    w = [f32(x) for x in w]
    m, v = [0.0] * ELEMENTS, [0.0] * ELEMENTS
    for step in range(STEPS):
        g = gradient(step)
        if rule == "adamw":
            m = [BETA_1 * m + (1 - BETA_1) * g for m, g in zip(m, g)]
            v = [BETA_2 * v + (1 - BETA_2) * g * g for v, g in zip(v, g)]
            first, second = 1 - BETA_1 ** (step + 1), 1 - BETA_2 ** (step + 1)
            u = [m / first / (math.sqrt(v / second) + EPSILON) for m, v in zip(m, v)]
        else:
            m = g if step == 0 else [MU * m + g for m, g in zip(m, g)]
            u = m
        w = [w - RATE * u for w, u in zip(w, u)]
        m_codes, m_scales, m = store(False, m, step)
        row = [rule, step, repr(w[0]), repr(w[-1]), hex_of(m_codes), " ".join(map(str, m_scales))]
        if rule == "adamw":
            v_codes, v_scales, v = store(True, v, step)
            row += [hex_of(v_codes), " ".join(map(str, v_scales))]
        else:
            row += ["", ""]
        print(",".join(map(str, row)))
