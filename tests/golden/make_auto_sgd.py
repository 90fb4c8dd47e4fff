"""Writes auto_sgd.csv: traces of a noisy quadratic under AutoSgd, in float64, from the description in src/regime/streams.rs.

    python3 tests/golden/make_auto_sgd.py        # needs numpy
"""
import pathlib

import numpy as np

D, STEPS = 64, 90
I = np.arange(D)
H = np.logspace(0, -2, D)
TARGET = np.cos(I)
MIDDLE, SLOWER, FASTER = 0, 1, 2


def problem(w, t):
    """The loss, which never falls below 0.05, and a gradient with deterministic noise; a batch lasts a round."""
    off = w - TARGET
    batch = t // 3
    loss = 0.05 + 0.5 * float(H @ off**2)
    return loss * (1 + 0.02 * np.sin(2.3 * batch)), H * off + 0.01 * np.sin(1.7 * I * (batch + 1))


def relative(a, b):
    return (a - b) / (abs(a) + abs(b))


def t_value(differences):
    """Mean over standard error."""
    return np.mean(differences) / (np.std(differences, ddof=1) / np.sqrt(len(differences)))


class AutoSgd:
    """C = 2, certainty 2; the middle stream wins after `rounds`."""

    def __init__(self, w, eta, rounds, signs):
        self.eta, self.rounds, self.signs, self.turn, self.number, self.outcome = eta, rounds, signs, 0, 0, ""
        self.begin(w)

    def begin(self, w):
        self.start, self.streams = w.copy(), [w.copy() for _ in range(3)]
        self.start_losses, self.losses, self.slower, self.faster = [], [], [], []

    def step(self, loss, g):
        """What the record says, and the parameters that are shown next."""
        which = self.turn % 3
        said = (self.number, which, self.outcome, self.eta)
        self.outcome = ""
        rate = self.eta * {MIDDLE: 1, SLOWER: 0.5, FASTER: 2}[which]
        self.streams[which] = self.streams[which] - rate * (np.sign(g) if self.signs else g)
        (self.start_losses if len(self.start_losses) < 3 else self.losses).append(loss)
        self.turn += 1
        if len(self.losses) == 3:
            self.slower.append(relative(self.losses[SLOWER], self.losses[MIDDLE]))
            self.faster.append(relative(self.losses[FASTER], self.losses[MIDDLE]))
            self.end_if_certain()
            self.losses = []
        return said, self.streams[self.turn % 3]

    def end_if_certain(self):
        k = len(self.slower)
        if k not in (4, 8, 16, 32, 64) and k < self.rounds:
            return
        t_slower, t_faster = t_value(self.slower), t_value(self.faster)
        # Where float32 might decide otherwise there is nothing to test.
        assert all(abs(abs(t) - 2) > 1e-2 for t in (t_slower, t_faster)), (t_slower, t_faster)
        if t_faster <= -2:
            self.end("increase", self.streams[FASTER], 2 * self.eta)
        elif t_slower <= -2:
            if relative(self.losses[SLOWER], np.mean(self.start_losses)) > 1 / 3:
                self.end("restart", self.start, self.eta / 2)
            else:
                self.end("decrease", self.streams[SLOWER], self.eta / 2)
        elif t_slower >= 2 and t_faster >= 2 or k >= self.rounds:
            self.end("stay", self.streams[MIDDLE], self.eta)

    def end(self, outcome, w, eta):
        self.outcome, self.eta, self.number = outcome, eta, self.number + 1
        self.begin(w)


def rows(rule, case, eta, rounds):
    w = np.zeros(D)
    if eta is None:
        n = np.linalg.norm(problem(w, 0)[1])
        eta = 0.01 / (np.sqrt(D) if rule == "signsgd" else n)
    regime = AutoSgd(w, eta, rounds, rule == "signsgd")
    for t in range(STEPS):
        loss, g = problem(w, t)
        (number, which, outcome, eta), w = regime.step(loss, g)
        yield [rule, case, str(t), str(number), str(which), outcome] + [
            f"{x:.17e}" for x in (loss, np.linalg.norm(g), np.log(eta), w[0], w[-1])
        ]


seen = set()
with open(pathlib.Path(__file__).with_name("auto_sgd.csv"), "w") as out:
    out.write("rule,case,step,episode,stream,outcome,loss,norm,ln_rate,w_first,w_last\n")
    for rule, high in (("sgd", 8.0), ("signsgd", 2.0)):
        for case, eta, rounds in (("automatic", None, 64), ("too high", high, 64), ("short", high / 4, 5)):
            for row in rows(rule, case, eta, rounds):
                seen.add(row[5])
                out.write(",".join(row) + "\n")
assert seen == {"", "increase", "stay", "decrease", "restart"}, seen
