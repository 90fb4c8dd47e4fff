"""Writes rate_free.csv: traces of a noisy quadratic under Prodigy and Mechanic, in float64, by the authors' own packages.

    pip install torch prodigyopt optax
    python3 tests/golden/make_rate_free.py        # written with torch 2.15, prodigyopt 1.1.2, optax 0.2.8 and jax 0.10.2
"""
import pathlib

import jax
import numpy as np
import optax
import torch
from prodigyopt import Prodigy

jax.config.update("jax_enable_x64", True)
# Later the steps of Mechanic with momentum go back and forth, and differences of a last place grow.
D, STEPS = 64, 50
I = np.arange(D)
H = np.logspace(0, -2, D)
TARGET = np.cos(I)


def problem(w, t):
    """The loss and a gradient with deterministic noise, as in make_regimes.py."""
    off = w - TARGET
    return 0.05 + 0.5 * float(H @ off**2), H * off + 0.01 * np.sin(1.7 * I * (t + 1))


def inverse_sqrt(t, warmup=5):
    """Schedule::InverseSqrt."""
    return (t + 1) / warmup if t < warmup else (warmup / (t + 1)) ** 0.5


def constant(t):
    return 1.0


def f32(x):
    """A constant as the optimizer has it: 1 - 0.999 is 5e-5 of itself off in f32, which no bias correction takes out again."""
    if isinstance(x, tuple):
        return tuple(map(f32, x))
    return float(np.float32(x)) if isinstance(x, float) else x


# An ε of 1e-8 is multiplied by another d than here (src/regime/prodigy.rs), which shows where gradients are small.
PRODIGY = {
    "published": (constant, {}),
    "tiny-epsilon": (constant, {"eps": 1e-15}),
    "decay": (inverse_sqrt, {"eps": 1e-15, "weight_decay": 0.1, "d_coef": 2.0, "beta3": 0.9, "d0": 1e-4}),
    "corrected": (constant, {"eps": 1e-15, "use_bias_correction": True, "growth_rate": 1.3}),
    "safeguard": (inverse_sqrt, {"eps": 1e-15, "safeguard_warmup": True, "lr": 0.5}),
}


def prodigy(case):
    schedule, options = PRODIGY[case]
    w = torch.zeros(D, dtype=torch.float64, requires_grad=True)
    usual = {"betas": (0.9, 0.999), "eps": 1e-8, "d0": 1e-6}
    optimizer = Prodigy([w], **{name: f32(value) for name, value in (usual | options).items()})
    group = optimizer.param_groups[0]
    peak = group["lr"]
    for t in range(STEPS):
        loss, g = problem(w.detach().numpy(), t)
        group["lr"] = peak * schedule(t)
        rate = group["d"] * group["lr"]
        w.grad = torch.from_numpy(g)
        optimizer.step()
        yield t, loss, np.linalg.norm(g), np.log(rate), w.detach().numpy()


# The rate of the base optimizer is 1, times the schedule.
MECHANIC = {
    "sgd": (constant, optax.sgd, {}),
    "sgdm": (constant, lambda rate: optax.sgd(rate, momentum=f32(0.9)), {}),
    "adamw": (inverse_sqrt, lambda rate: optax.adamw(rate, b1=f32(0.9), b2=f32(0.999), weight_decay=f32(0.1)), {}),
    "lion": (constant, lambda rate: optax.lion(rate, b1=f32(0.9), b2=f32(0.99), weight_decay=0.0), {"s_init": 1e-4, "weight_decay": 0.1}),
}


def mechanic(case):
    schedule, base, options = MECHANIC[case]
    optimizer = optax.contrib.mechanize(base(schedule_of(schedule)), **options)
    w = jax.numpy.zeros(D)
    state = optimizer.init(w)
    for t in range(STEPS):
        loss, g = problem(np.asarray(w), t)
        updates, state = optimizer.update(jax.numpy.asarray(g), state, w)
        w = optax.apply_updates(w, updates)
        rate = float(state.s.sum()) * schedule(t)
        yield t, loss, np.linalg.norm(g), np.log(rate), np.asarray(w)


def schedule_of(factor):
    factors = jax.numpy.asarray([factor(t) for t in range(STEPS)])
    return lambda count: factors[count]


with open(pathlib.Path(__file__).with_name("rate_free.csv"), "w") as out:
    out.write("regime,case,step,loss,norm,ln_rate,w_first,w_last\n")
    for name, cases, run in (("prodigy", PRODIGY, prodigy), ("mechanic", MECHANIC, mechanic)):
        for case in cases:
            for t, *numbers, w in run(case):
                fields = [f"{x:.17e}" for x in (*numbers, w[0], w[-1])]
                out.write(",".join([name, case, str(t), *fields]) + "\n")
