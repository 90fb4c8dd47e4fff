"""Writes trust.csv: SGD with momentum and a fixed rate under LARS's trust ratio (arXiv:1708.03888), layer by layer, in float64.

    python3 tests/golden/make_trust.py        # needs numpy
"""
import pathlib

import numpy as np

LR, MU, DECAY, TRUST, STEPS = 0.5, 0.9, 0.01, 0.02, 10
LAYERS = (3, 8, 21)


def gradient(layer, i, t):
    return np.cos(i * (layer + 1) + 0.7 * t) / (1 + 0.3 * t)


def main():
    rows = []
    for layer, d in enumerate(LAYERS):
        i = np.arange(d)
        # The last layer starts at zero: its first ratio is 1.
        w = np.sin(i + 1.0) * (10.0**layer if layer < 2 else 0.0)
        m = None
        for t in range(STEPS):
            g = gradient(layer, i, t) + DECAY * w
            parameters, update = np.linalg.norm(w), np.linalg.norm(g)
            ratio = TRUST * parameters / update if parameters > 0 and update > 0 else 1.0
            m = g if m is None else MU * m + g
            step = -LR * ratio * m
            w = w + step
            rows.append((layer, t, ratio, np.linalg.norm(w), np.linalg.norm(step), w[0]))
    with open(pathlib.Path(__file__).with_name("trust.csv"), "w") as out:
        out.write("layer,step,trust,parameter_norm,step_norm,w0\n")
        for layer, t, *numbers in rows:
            out.write(f"{layer},{t}," + ",".join(f"{x:.12e}" for x in numbers) + "\n")


main()
