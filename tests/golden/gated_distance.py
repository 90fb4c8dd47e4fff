"""Executable form of GatedDistance (src/regime/gated.rs), in float64 numpy with the way as a vector, and its trace gated_distance.csv: a
noisy quadratic of 64 parameters, of which a sketch is exact, whose gradient doubles twice and vanishes once.

    python3 tests/golden/gated_distance.py        # needs numpy
"""
import pathlib

import numpy as np

FIRST, POWER, IGNITION_STEPS, MOST_RAISE, FIRST_WINDOW = 1e-3, 0.5, 12, 8.0, 16
TERMS = ("norm", "distance", "history", "gate", "restart", "curvature", "magnitude", "clamp")


class GatedDistance:
    """One group. rule: 'sgd' | 'sgdm' | 'signsgd'; steps go by PyTorch's rate. Call step(w, g) with flat float64 arrays."""

    def __init__(self, rule, w0, momentum=0.9):
        self.rule, self.mu = rule, momentum
        self.c = 1.5 if rule == "signsgd" else 1.0
        self.reach0 = FIRST * (1 + np.linalg.norm(w0))
        self.phase, self.m, self.P = "wait", np.zeros_like(w0), np.zeros_like(w0)
        self.eta = self.h = 0.0

    def window(self):
        self.P = np.zeros_like(self.P)
        self.A = self.V = self.far = 0.0
        self.K = 0

    def rate(self, g):
        """eta, and why; h is the rate before the mean magnitude."""
        terms = dict.fromkeys(TERMS, 0.0)
        n = float(np.linalg.norm(g))
        if n == 0:
            return terms
        mean = float(np.abs(g).mean()) if self.rule == "signsgd" else 1.0
        length = mean * np.sqrt(len(g)) if self.rule == "signsgd" else n / (1 - self.mu if self.rule == "sgdm" else 1)
        before, old, old_eta = self.phase, self.h, self.eta
        if before == "wait":
            self.level, self.raised, self.loud, self.phase = self.reach0 / length, 1.0, n, "ignition"
            self.window()
        elif before == "ignition":
            average = np.sqrt(self.V / self.A)
            agreement, others = self.P @ self.P / self.V - 1, max(self.K - 1, 1)
            alarm = n > 2 * self.loud or (self.K >= 2 and agreement <= -0.5)
            if not alarm and self.K >= 2 and agreement >= min(others / 2, 1):
                secant = 1 / np.sqrt(2 * max(1 - agreement / others, 1e-6))
                self.raised = float(np.clip(secant, 2, MOST_RAISE))
                self.level, self.loud = average * self.raised, n
                self.window()
            elif alarm or self.K >= IGNITION_STEPS:
                self.level = average / self.raised if alarm else average
                self.G, self.limit, self.phase = self.c * self.A, FIRST_WINDOW, "run"
                self.reach = self.level * np.sqrt(self.G)
                self.window()
        else:
            way, reach = float(np.linalg.norm(self.P)), self.reach
            self.reach, self.far = max(reach, way), max(self.far, way)
            terms["distance"] = np.log(self.reach / reach)
            if self.K >= self.limit:
                was = self.reach / np.sqrt(self.G)
                level = self.far / np.sqrt(self.c * self.A)
                if level <= 1.2 * self.level:
                    self.limit *= 2
                self.level, self.G = min(level, 4 * self.level), self.c * self.A
                self.reach = self.level * np.sqrt(self.G)
                terms["restart"] = np.log(self.level / was)
                self.window()
        wanted = self.level
        if self.phase == "run":
            grown = self.G + self.c * length**2
            if before == "run":
                terms["history"] = -0.5 * np.log(grown / self.G)
            self.G = grown
            wanted = min(self.reach / np.sqrt(self.G), 4 * self.level)
        bounded = wanted if before == "wait" else min(wanted, (2 if self.phase == "run" else MOST_RAISE) * old)
        self.h = bounded
        if before == "run":
            x = float(np.clip(np.log(n / self.last), -np.log(2), np.log(2)))
            moved = old * np.exp(-POWER * x)
            self.h = max(moved, bounded, old) if x < 0 else min(moved, bounded, old) if x > 0 else old
            terms["norm"] = -POWER * x
            if self.h == bounded < wanted:
                terms["clamp"] = np.log(bounded / wanted)
        self.last, self.eta = n, self.h * mean
        if before != "wait":
            change = np.log(self.h / old)
            terms["curvature" if before == "ignition" else "gate"] = change - sum(terms.values())
            if self.rule == "signsgd":
                self.eta = float(np.clip(self.eta, old_eta / 10, old_eta * 10))
                terms["magnitude"] = np.log(self.h * mean / old_eta) - change
                terms["clamp"] += np.log(self.eta / (self.h * mean))
        self.V += (self.eta * (np.sqrt(len(g)) if self.rule == "signsgd" else length)) ** 2
        self.A += length**2
        self.K += 1
        return terms

    def step(self, w, g):
        terms = self.rate(g)
        if self.rule == "sgdm":
            # Before it runs, what the momentum would be if all gradients were this one.
            self.m = self.mu * self.m + g if self.phase == "run" else g / (1 - self.mu)
        u = {"sgd": g, "sgdm": self.m, "signsgd": np.sign(g)}[self.rule]
        self.P = self.P + self.eta * u
        return w - self.eta * u, terms


D, STEPS = 64, 120


def gradient(w, t):
    i = np.arange(D)
    g = np.logspace(0, -2, D) * (w - np.cos(i)) + 0.03 * np.sin(1.7 * i * (t + 1))
    return g * (0.0 if t == 50 else 2.0 if t in (70, 71) else 1.0)


def rows(rule):
    w = np.zeros(D)
    regime = GatedDistance(rule, w)
    for t in range(STEPS):
        g = gradient(w, t)
        w, terms = regime.step(w, g)
        numbers = [np.linalg.norm(g), np.log(regime.eta), *(terms[name] for name in TERMS), w[0], w[-1]]
        yield [rule, str(t), regime.phase] + [f"{x:.17e}" for x in numbers]


if __name__ == "__main__":
    header = ["rule", "step", "phase", "norm", "ln_rate", *(f"{name}_term" for name in TERMS), "w_first", "w_last"]
    with open(pathlib.Path(__file__).with_name("gated_distance.csv"), "w") as out:
        for row in [header] + [row for rule in ("sgd", "sgdm", "signsgd") for row in rows(rule)]:
            out.write(",".join(row) + "\n")
