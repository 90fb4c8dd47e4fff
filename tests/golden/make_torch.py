"""Writes torch.csv: parameters after 1, 2, 3, 10, 30 and 100 steps of torch.optim.SGD, Adam, AdamW
(with AMSGrad too), RMSprop, Adagrad, Adafactor, Muon and SparseAdam, in f32 as hexadecimal bits.

    python3 tests/golden/make_torch.py        # needs torch

The gradients are dyadic numbers that follow from step and element, so that both sides have the same to the last bit.
"""
import pathlib
import struct

import torch

D, STEPS, SHOWN = 12, 100, (1, 2, 3, 10, 30, 100)
CASES = {
    "sgd": dict(),
    "sgdm": dict(momentum=0.9),
    "dampened": dict(momentum=0.9, dampening=0.1),
    "nesterov": dict(momentum=0.9, nesterov=True),
    "decay": dict(weight_decay=0.01),
    "sgdm-decay": dict(momentum=0.9, weight_decay=0.01),
    "nesterov-decay": dict(momentum=0.9, nesterov=True, weight_decay=0.01),
    "maximize": dict(momentum=0.9, maximize=True),
    "clip": dict(clip=1.5),
    "sgdm-clip": dict(momentum=0.9, clip=1.5),
    "sgdm-decay-clip": dict(momentum=0.9, weight_decay=0.01, clip=1.5),
    "adam": dict(of=torch.optim.Adam),
    "adam-decay": dict(of=torch.optim.Adam, weight_decay=0.01),
    "adamw": dict(of=torch.optim.AdamW),  # with its default decay of 0.01
    "adamw-strong": dict(of=torch.optim.AdamW, weight_decay=0.5),
    "adamw-betas": dict(of=torch.optim.AdamW, betas=(0.5, 0.75), eps=0.125),
    "adamw-maximize": dict(of=torch.optim.AdamW, maximize=True),
    "adamw-clip": dict(of=torch.optim.AdamW, clip=1.5),
    # The rest of torch.testing._internal.common_optimizers for these optimizers; their defaults have a rate of 1e-3.
    "sgd-default": dict(lr=1e-3),
    "sgdm-default": dict(lr=1e-3, momentum=0.9),
    "decay-half": dict(weight_decay=0.5),
    "decay-maximize": dict(weight_decay=0.1, maximize=True),
    "dampened-half": dict(momentum=0.9, dampening=0.5),
    "sgdm-decay-tenth": dict(momentum=0.9, weight_decay=0.1),
    "nesterov-decay-tenth": dict(momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam-default": dict(of=torch.optim.Adam, lr=1e-3),
    "adam-decay-tenth": dict(of=torch.optim.Adam, weight_decay=0.1),
    "adam-decay-tenth-maximize": dict(of=torch.optim.Adam, weight_decay=0.1, maximize=True),
    "adamw-default": dict(of=torch.optim.AdamW, lr=1e-3),
    "adamw-tenth-maximize": dict(of=torch.optim.AdamW, weight_decay=0.1, maximize=True),
    "rmsprop": dict(of=torch.optim.RMSprop),
    "rmsprop-alpha": dict(of=torch.optim.RMSprop, alpha=0.75, eps=0.125),
    "rmsprop-decay-tenth-maximize": dict(of=torch.optim.RMSprop, weight_decay=0.1, maximize=True),
    "adagrad": dict(of=torch.optim.Adagrad),
    "adagrad-decay-tenth-maximize": dict(of=torch.optim.Adagrad, weight_decay=0.1, maximize=True),
    # Muon with its iteration in f32; its default decay is 0.1.
    "muon": dict(of=torch.optim.Muon, shape=(3, 4)),
    "muon-tall": dict(of=torch.optim.Muon, shape=(4, 3)),
    "muon-match-rms": dict(of=torch.optim.Muon, shape=(3, 4), adjust_lr_fn="match_rms_adamw"),
    "muon-spectral": dict(of=torch.optim.Muon, shape=(2, 6), adjust_lr_fn="spectral_unclamped"),
    "muon-plain": dict(of=torch.optim.Muon, shape=(6, 2), nesterov=False, momentum=0.5, weight_decay=0.0, ns_steps=2),
    # As PyTorch has it, in bf16.
    "muon-bf16": dict(of=torch.optim.Muon, shape=(3, 4), bf16=True),
    "amsgrad": dict(of=torch.optim.AdamW, amsgrad=True),  # with its default decay of 0.01
    "amsgrad-betas": dict(of=torch.optim.AdamW, amsgrad=True, betas=(0.5, 0.75), eps=0.125),
    "amsgrad-decay-tenth-maximize": dict(of=torch.optim.Adam, amsgrad=True, weight_decay=0.1, maximize=True),
    # The rate is relative to the parameters' root mean square.
    "adafactor": dict(of=torch.optim.Adafactor, shape=(3, 4)),
    "adafactor-tall-maximize": dict(of=torch.optim.Adafactor, shape=(4, 3), maximize=True),
    "adafactor-stack": dict(of=torch.optim.Adafactor, shape=(2, 3, 2)),
    "adafactor-flat": dict(of=torch.optim.Adafactor),
    "adafactor-limit": dict(of=torch.optim.Adafactor, shape=(3, 4), d=1.25, beta2_decay=-0.5, eps=(0.25, 1e-3)),
    # Gradients without one of three rows.
    "sparse-adam": dict(of=torch.optim.SparseAdam, shape=(4, 3)),
}


def gradient(t):
    return torch.tensor([((7 * i + 13 * t) % 32 - 16) / 16 + (i - 5) / 64 for i in range(D)])


def sparse(gradient, t):
    rows = [row for row in range(gradient.size(0)) if (row + t) % 3]
    return torch.sparse_coo_tensor(torch.tensor([rows]), gradient[rows], gradient.shape, check_invariants=True)


def orthogonalized(x, coefficients, steps, eps, *_):
    """torch.optim._muon._zeropower_via_newtonschulz without its conversion to bf16."""
    a, b, c = coefficients
    x, tall = (x.T, True) if x.size(0) > x.size(1) else (x, False)
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def main():
    in_bf16 = torch.optim._muon._zeropower_via_newtonschulz
    with open(pathlib.Path(__file__).with_name("torch.csv"), "w") as out:
        out.write(f"# torch {torch.__version__.split('+')[0]}, lr=0.01 where the case has no other\ncase,step," + ",".join(f"w{i}" for i in range(D)) + "\n")
        for name, options in CASES.items():
            options = dict(options)
            clip = options.pop("clip", None)
            of = options.pop("of", torch.optim.SGD)
            shape = options.pop("shape", (D,))
            torch.optim._muon._zeropower_via_newtonschulz = in_bf16 if options.pop("bf16", False) else orthogonalized
            w = torch.nn.Parameter(torch.tensor([(i - 6) / 4 for i in range(D)]).reshape(shape))
            foreach = {} if of in (torch.optim.Muon, torch.optim.SparseAdam) else {"foreach": False}
            optimizer = of([w], **{"lr": 0.01, **foreach, **options})
            for t in range(STEPS):
                w.grad = gradient(t).reshape(shape)
                if of is torch.optim.SparseAdam:
                    w.grad = sparse(w.grad, t)
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_([w], clip, foreach=False)
                optimizer.step()
                if t + 1 in SHOWN:
                    bits = (struct.pack(">f", x).hex() for x in w.flatten().tolist())
                    out.write(f"{name},{t + 1}," + ",".join(bits) + "\n")


main()
