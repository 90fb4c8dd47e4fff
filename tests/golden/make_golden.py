"""Writes seesaw.csv: the trace of a fixed gradient sequence for each rule, from the executable specification seesaw.py.

    python3 tests/golden/make_golden.py        # needs numpy

The gradients turn about at every step until the nineteenth, so that steps contradict each other. At first the floor holds A. From the ninth
step on the gradients grow to ten times their size, the smoothed norm passes twice and four times its first value, and A falls. The last
steps agree.

Rows of "sgd-free", "signsgd-free" and "adamw-free" are of schedule-free training (AdamW with beta1 = 0): w is y, where gradients are taken, z
and x the two sequences behind it. The others have no z and x.
"""
import pathlib

import numpy as np

import seesaw

D, STEPS = 64, 24
TERMS = ("norm_term", "alignment_term", "brake_term", "held_term")


RULES = ("sgd", "sgdm", "signsgd", "adamw", "lion")
FREE = ("sgd", "signsgd", "adamw")


def rows(rule, free=False):
    h = np.logspace(0, -2, D)
    target = np.cos(np.arange(D))
    w = np.zeros(D)
    opt = seesaw.Seesaw(rule, w, free=free)
    for t in range(STEPS):
        g = h * (w - target) + 0.01 * np.sin(1.7 * np.arange(D) * (t + 1))
        g = g * min(10.0, 1.5 ** max(0, t - 7)) * (-1) ** min(t, 18)
        w = opt.step(w, g)
        numbers = [np.linalg.norm(g), opt.nhat, opt.log_lr]
        numbers += [opt.record.get(term, 0.0) for term in TERMS]
        numbers += [w[0], w[-1]]
        numbers += [opt.z[0], opt.z[-1], opt.x[0], opt.x[-1]] if free else []
        yield [rule + ("-free" if free else ""), str(t)] + [f"{x:.17e}" for x in numbers] + ([] if free else [""] * 4)


header = ["rule", "step", "norm", "smoothed_norm", "ln_rate", *TERMS, "w_first", "w_last", "z_first", "z_last", "x_first", "x_last"]
with open(pathlib.Path(__file__).with_name("seesaw.csv"), "w") as out:
    for row in [header] + [row for rule in RULES for row in rows(rule)] + [row for rule in FREE for row in rows(rule, free=True)]:
        out.write(",".join(row) + "\n")
