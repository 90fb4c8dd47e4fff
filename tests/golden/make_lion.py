"""Writes lion.csv: parameters after 1, 2, 3, 10, 30 and 100 steps of Lion, in f64, and rounded to f32 as hexadecimal bits.

    python3 tests/golden/make_lion.py        # needs numpy

Program 1 of arXiv:2302.06675, line by line; independent of the code it is held against. The gradients are those of make_torch.py.
"""
import pathlib
import struct

import numpy as np

D, STEPS, SHOWN = 12, 100, (1, 2, 3, 10, 30, 100)
LR, B1, B2 = (float(np.float32(x)) for x in (0.01, 0.9, 0.99))


def gradient(t):
    return np.array([((7 * i + 13 * t) % 32 - 16) / 16 + (i - 5) / 64 for i in range(D)])


def main():
    with open(pathlib.Path(__file__).with_name("lion.csv"), "w") as out:
        out.write(f"# numpy {np.__version__}, lr=0.01, betas=(0.9, 0.99)\ncase,step," + ",".join(f"w{i}" for i in range(D)) + "\n")
        for name, decay in [("lion", 0.0), ("lion-decay", float(np.float32(0.1)))]:
            weight = np.array([(i - 6) / 4 for i in range(D)])
            momentum = np.zeros(D)
            for t in range(STEPS):
                interpolated = momentum * B1 + gradient(t) * (1 - B1)
                # No sign may hang on a rounding.
                assert np.abs(interpolated).min() > 1e-6, (t, interpolated)
                update = np.sign(interpolated) + weight * decay
                momentum = momentum * B2 + gradient(t) * (1 - B2)
                weight = weight - update * LR
                if t + 1 in SHOWN:
                    bits = (struct.pack(">f", x).hex() for x in weight)
                    out.write(f"{name},{t + 1}," + ",".join(bits) + "\n")


main()
