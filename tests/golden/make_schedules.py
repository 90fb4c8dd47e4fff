"""Writes schedules.csv: the factors of torch.optim.lr_scheduler over 60 steps, in f64.

    python3 tests/golden/make_schedules.py        # needs torch

The cases are in the order of `golden_schedules` in src/cpu/schedule.rs. A warm-up is SequentialLR with LinearLR, as the documentation of
Schedule says. What PyTorch has no class for (the inverse square root, 1 - sqrt, cosine decay after a level part) is LambdaLR with the formula of
Hugging Face's transformers.optimization.
"""
import math
import pathlib

import torch
from torch.optim.lr_scheduler import (
    ConstantLR, CosineAnnealingLR, CosineAnnealingWarmRestarts, ExponentialLR, LambdaLR, LinearLR, OneCycleLR, PolynomialLR, SequentialLR,
    StepLR,
)

STEPS = 60


def after(warmup, make):
    if warmup == 0:
        return make
    warm = lambda o: LinearLR(o, start_factor=1 / warmup, end_factor=1.0, total_iters=max(warmup - 1, 1))
    return lambda o: SequentialLR(o, [warm(o), make(o)], milestones=[warmup])


def stable(warmup, level, fall):
    """`fall` is a function of the share that is done of 15 steps."""
    return after(warmup, lambda o: LambdaLR(o, lambda t: 1.0 if t < level else fall(min((t - level) / 15, 1.0))))


level = lambda o: ConstantLR(o, factor=1.0)
CASES = {
    "warmup-constant": after(8, level),
    "cosine": lambda o: CosineAnnealingLR(o, T_max=60, eta_min=0.1),
    "warmup-cosine": after(8, lambda o: CosineAnnealingLR(o, T_max=52)),
    "linear": lambda o: PolynomialLR(o, total_iters=50, power=1.0),
    "warmup-linear": after(8, lambda o: LinearLR(o, start_factor=1.0, end_factor=0.25, total_iters=32)),
    "polynomial-2": lambda o: PolynomialLR(o, total_iters=50, power=2.0),
    "polynomial-half": after(8, lambda o: PolynomialLR(o, total_iters=42, power=0.5)),
    "polynomial-3": lambda o: PolynomialLR(o, total_iters=60, power=3.0),
    "exponential": lambda o: ExponentialLR(o, gamma=0.875),
    "warmup-exponential": after(8, lambda o: ExponentialLR(o, gamma=0.9375)),
    "restarts-1": lambda o: CosineAnnealingWarmRestarts(o, T_0=13),
    "restarts-2": lambda o: CosineAnnealingWarmRestarts(o, T_0=7, T_mult=2, eta_min=0.1),
    "warmup-restarts-3": after(8, lambda o: CosineAnnealingWarmRestarts(o, T_0=3, T_mult=3)),
    "stable-linear": stable(8, 20, lambda x: 1 - x),
    "stable-sqrt": stable(8, 20, lambda x: 1 - math.sqrt(x)),
    "stable-cosine": stable(8, 20, lambda x: (1 + math.cos(math.pi * x)) / 2),
    "inverse-sqrt": lambda o: LambdaLR(o, lambda t: (t + 1) / 8 if t < 8 else math.sqrt(8 / (t + 1))),
    "step": lambda o: StepLR(o, step_size=9, gamma=0.375),
    "one-cycle": lambda o: OneCycleLR(o, max_lr=1.0, total_steps=61, pct_start=19 / 61, div_factor=25, final_div_factor=1e3, cycle_momentum=False),
    "table": lambda o: LambdaLR(o, lambda t: [0.5, 0.25, 1.0, 0.75, 0.125][min(t, 4)]),
}


def main():
    with open(pathlib.Path(__file__).with_name("schedules.csv"), "w") as out:
        out.write(f"# torch {torch.__version__.split('+')[0]}\ncase," + ",".join(f"t{t}" for t in range(STEPS)) + "\n")
        for name, make in CASES.items():
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))], lr=1.0)
            scheduler = make(optimizer)
            factors = []
            for _ in range(STEPS):
                factors.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
            out.write(name + "," + ",".join(f"{float(factor):.12g}" for factor in factors) + "\n")


main()
