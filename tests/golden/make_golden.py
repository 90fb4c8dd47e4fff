"""Writes seesaw.csv: the trace of a fixed gradient sequence for the three rules, from the executable specification seesaw.py.

    python3 tests/golden/make_golden.py        # needs numpy
"""
import pathlib

import numpy as np

import seesaw

D, STEPS = 64, 12
TERMS = ("norm_term", "alignment_term", "brake_term", "clamp_term")


def rows(rule):
    h = np.logspace(0, -2, D)
    target = np.cos(np.arange(D))
    w = np.zeros(D)
    opt = seesaw.Seesaw(rule, w)
    for t in range(STEPS):
        g = h * (w - target) + 0.01 * np.sin(1.7 * np.arange(D) * (t + 1))
        w = opt.step(w, g)
        numbers = [np.linalg.norm(g), opt.nhat, opt.log_lr]
        numbers += [opt.record.get(term, 0.0) for term in TERMS]
        numbers += [w[0], w[-1]]
        yield [rule, str(t)] + [f"{x:.17e}" for x in numbers]


header = ["rule", "step", "norm", "smoothed_norm", "ln_rate", *TERMS, "w_first", "w_last"]
with open(pathlib.Path(__file__).with_name("seesaw.csv"), "w") as out:
    for row in [header] + [row for rule in ("sgd", "sgdm", "signsgd") for row in rows(rule)]:
        out.write(",".join(row) + "\n")
