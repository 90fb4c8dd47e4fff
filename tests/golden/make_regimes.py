"""Writes regimes.csv: the trace of a noisy quadratic under every regime that says what the rate is, in float64, from the papers' formulas.

    python3 tests/golden/make_regimes.py        # needs numpy
"""
import pathlib

import numpy as np

D, STEPS, MU = 64, 12, 0.9
I = np.arange(D)
H = np.logspace(0, -2, D)
TARGET = np.cos(I)


def problem(w, t):
    """The loss, which never falls below 0.05, and a gradient with deterministic noise."""
    off = w - TARGET
    return 0.05 + 0.5 * float(H @ off**2), H * off + 0.01 * np.sin(1.7 * I * (t + 1))


def clip(x, low, high):
    return min(max(x, low), high)


class Secant:
    """Barzilai-Borwein in three forms (change bounded by 2), AdGD (by 10): s = w_t - w_{t-1}, y = g_t - g_{t-1}."""

    def __init__(self, form):
        self.form, self.eta, self.theta = form, None, np.inf

    def rate(self, w, g, loss, signs):
        n, d = np.linalg.norm(g), len(g)
        if self.eta is None:
            self.eta = 0.01 * (1 + np.linalg.norm(w)) / (np.sqrt(d) if signs else n)
        else:
            s, y = w - self.w, g - self.g
            ss, sy, yy = s @ s, s @ y, y @ y
            # A step along the signs as long as the secant's along the gradient.
            to_signs = n / np.sqrt(d) if signs else 1.0
            bound = 10.0 if self.form == "adgd" else 2.0
            if self.form == "adgd":
                wanted = min(np.sqrt(1 + self.theta) * self.eta, 0.5 * np.sqrt(ss / yy) * to_signs)
            elif self.form == "bb-geometric":
                wanted = np.sqrt(ss / yy) * to_signs
            elif sy <= 0:
                wanted = self.eta
            else:
                wanted = (ss / sy if self.form == "bb-long" else sy / yy) * to_signs
            eta = clip(wanted, self.eta / bound, self.eta * bound)
            self.theta, self.eta = eta / self.eta, eta
        self.w, self.g = w.copy(), g.copy()
        return self.eta


class Sums:
    """AdaGrad-norm with scale 1 and b0 = 0; DoG and DoWG from a first distance of 0.01 (1 + |w0|)."""

    def __init__(self, kind):
        self.kind, self.total, self.eta, self.w0 = kind, 0.0, None, None

    def rate(self, w, g, loss, signs):
        square = float(len(g)) if signs else float(g @ g)
        if self.w0 is None:
            self.w0, self.far = w.copy(), 0.01 * (1 + np.linalg.norm(w))
        self.far = max(self.far, np.linalg.norm(w - self.w0))
        weight, reach = {"adagrad-norm": (1, 1), "dog": (1, self.far), "dowg": (self.far**2, self.far**2)}[self.kind]
        self.total += weight * square
        wanted = reach / np.sqrt(self.total)
        self.eta = wanted if self.eta is None else clip(wanted, self.eta / 10, self.eta * 10)
        return self.eta


class Losses:
    """Polyak with c = 1/2 and f* = 0, NGN with sigma = 1."""

    def __init__(self, kind):
        self.kind, self.eta = kind, None

    def rate(self, w, g, loss, signs):
        square = float(g @ g)
        wanted = loss / (0.5 * square) if self.kind == "polyak" else 1 / (1 + square / (2 * loss))
        if signs:
            wanted *= np.sqrt(square / len(g))
        self.eta = wanted if self.eta is None else clip(wanted, self.eta / 10, self.eta * 10)
        return self.eta


def rows(rule, name):
    maker = Secant if name.startswith("bb") or name == "adgd" else Losses if name in ("polyak", "ngn") else Sums
    regime, w, m = maker(name), np.zeros(D), None
    for t in range(STEPS):
        loss, g = problem(w, t)
        eta = regime.rate(w, g, loss, rule == "signsgd")
        m = g if m is None else MU * m + g
        w = w - eta * {"sgd": g, "sgdm": m, "signsgd": np.sign(g)}[rule]
        yield [rule, name, str(t)] + [f"{x:.17e}" for x in (loss, np.linalg.norm(g), np.log(eta), w[0], w[-1])]


def free_rows(rule):
    """ScheduleFree+ with c = 1 and f* = 0. The sequence z takes the steps, x is its average, and gradients are taken at y."""
    x = y = z = np.zeros(D)
    eta, largest, total = None, 0.0, 0.0
    for t in range(STEPS):
        loss, g = problem(y, t)
        gap = max(0.0, loss - float(g @ (y - z)))
        wanted = gap / (float(g @ g) if rule == "sgd" else np.sqrt(np.pi / 2) * np.abs(g).sum())
        eta = wanted if eta is None else clip(wanted, eta / 10, eta * 10)
        z = z - eta * (g if rule == "sgd" else np.sign(g))
        largest = max(largest, eta)
        weight = (largest * (t + 1)) ** 2
        total += weight
        x = x + weight / total * (z - x)
        y = x + 0.15 * (z - x)
        yield [rule, "schedule-free-plus", str(t)] + [f"{v:.17e}" for v in (loss, np.linalg.norm(g), np.log(eta), y[0], y[-1])]


NAMES = ("adagrad-norm", "bb-long", "bb-short", "bb-geometric", "adgd", "dog", "dowg", "polyak", "ngn")
with open(pathlib.Path(__file__).with_name("regimes.csv"), "w") as out:
    out.write("rule,regime,step,loss,norm,ln_rate,w_first,w_last\n")
    for rule in ("sgd", "sgdm", "signsgd"):
        for name in NAMES:
            for row in rows(rule, name):
                out.write(",".join(row) + "\n")
    for rule in ("sgd", "signsgd"):
        for row in free_rows(rule):
            out.write(",".join(row) + "\n")
