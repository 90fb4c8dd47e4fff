"""Writes schedule_free.csv: the parameters y and the average x after 1, 2, 3, 10, 30 and 100 steps of schedule-free training at a fixed rate,
in f64, rounded to f32 as hexadecimal bits.

    python3 tests/golden/make_schedule_free.py        # needs numpy

Defazio et al. 2024, arXiv:2405.15682, with beta = 0.85 and weights (rate * k)^2. The average is taken from its definition, as the weighted
mean of all z so far, not step by step; independent of the code it is held against. The gradients are those of make_torch.py.
"""
import pathlib
import struct

import numpy as np

D, STEPS, SHOWN = 12, 100, (1, 2, 3, 10, 30, 100)
LR, B2, EPSILON = (float(np.float32(x)) for x in (0.01, 0.999, 1e-8))


def gradient(t):
    return np.array([((7 * i + 13 * t) % 32 - 16) / 16 + (i - 5) / 64 for i in range(D)])


def run(rule, coupled, decoupled):
    """y and x after each step."""
    start = np.array([(i - 6) / 4 for i in range(D)])
    z, y, squares, base = start, start, np.zeros(D), []
    for t in range(STEPS):
        g = gradient(t) + coupled * y
        if rule == "sgd":
            u = g
        elif rule == "signsgd":
            u = np.sign(g)
        else:
            squares = B2 * squares + (1 - B2) * g * g
            u = g / (np.sqrt(squares / (1 - B2 ** (t + 1))) + EPSILON)
        z = (1 - LR * decoupled) * z - LR * u
        base.append(z)
        weights = (LR * np.arange(1, t + 2)) ** 2
        x = (weights[:, None] * np.array(base)).sum(axis=0) / weights.sum()
        y = 0.15 * z + 0.85 * x
        yield y, x


def main():
    decay = float(np.float32(0.1))
    cases = [(rule + suffix, rule, coupled, decoupled) for rule in ("sgd", "signsgd", "adamw")
             for suffix, coupled, decoupled in (("", 0.0, 0.0), ("-coupled", decay, 0.0), ("-decoupled", 0.0, decay))]
    with open(pathlib.Path(__file__).with_name("schedule_free.csv"), "w") as out:
        out.write(f"# numpy {np.__version__}, lr=0.01, beta2=0.999, eps=1e-8, decay=0.1\ncase,step,point," + ",".join(f"w{i}" for i in range(D)) + "\n")
        for name, rule, coupled, decoupled in cases:
            for t, points in enumerate(run(rule, coupled, decoupled)):
                if t + 1 in SHOWN:
                    for point, values in zip("yx", points):
                        bits = (struct.pack(">f", value).hex() for value in values)
                        out.write(f"{name},{t + 1},{point}," + ",".join(bits) + "\n")


main()
