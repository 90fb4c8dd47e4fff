"""What is lost by keeping the moments of AdamW in 8 bits, on made-up gradients: codes of this crate (random, and rounded to the nearest) and
those of FlashOptim's definition (arXiv:2602.23349, groups of 32, scales in f16). Needs numpy.

    python3 benches/state.py

A row: the root mean square of the difference of the direction from that in f64, relative to the direction; the median of √v relative to f64's;
the largest direction of the last 200 of 3,000 steps. Then of a momentum alone: the root mean square of its difference.
"""

import numpy as np

BLOCKS, BLOCK, STEPS = 64, 32, 3000
rng = np.random.default_rng(0)


def flash_momentum(x):
    scale = np.maximum(np.abs(x).max(1, keepdims=True), 1e-12)
    y = x / scale
    code = np.floor(127 * 2 * y / (1 + np.abs(y)) + 0.5) / 127
    return code / (2 - np.abs(code)) * scale.astype(np.float16).astype(float)


def flash_squares(v):
    root = np.sqrt(v)
    scale = np.maximum(root.max(1, keepdims=True), 1e-12)
    return (np.floor(255 * root / scale + 0.5) / 255 * scale.astype(np.float16).astype(float)) ** 2


def codes(x, most, is_random):
    """Of magnitudes x: 8 significant bits of scale, and squares of whole numbers."""
    bits = (x.max(1, keepdims=True) / most**2 + 2.0**-100).astype(np.float32).view(np.uint32)
    scale = ((bits + 0xFFFF) & np.uint32(0xFFFF0000)).view(np.float32).astype(float)
    code = np.floor(np.sqrt(x / scale))
    between = rng.random(x.shape) if is_random else 0.5
    code = np.minimum(code + (x >= scale * (code * code + between * (2 * code + 1))), most)
    return code, scale


def momentum(x, is_random):
    code, scale = codes(np.abs(x), 127, is_random)
    return np.sign(x) * code * code * scale


def squares(v, is_random):
    code, scale = codes(np.sqrt(v), 255, is_random)
    return (np.where(v > 0, np.maximum(code, 1), 0) ** 2 * scale) ** 2


KINDS = {
    "f64": (lambda m: m, lambda v: v),
    "FlashOptim": (flash_momentum, flash_squares),
    "nearest": (lambda m: momentum(m, False), lambda v: squares(v, False)),
    "random": (lambda m: momentum(m, True), lambda v: squares(v, True)),
}


def adamw(sizes, beta_1, beta_2):
    state = {kind: [np.zeros((BLOCKS, BLOCK)), np.zeros((BLOCKS, BLOCK))] for kind in KINDS}
    seen = {kind: [] for kind in KINDS}
    for step in range(STEPS):
        g = sizes(step) * rng.standard_normal((BLOCKS, BLOCK))
        directions = {}
        for kind, (m, v) in state.items():
            m, v = beta_1 * m + (1 - beta_1) * g, beta_2 * v + (1 - beta_2) * g * g
            first, second = 1 - beta_1 ** (step + 1), 1 - beta_2 ** (step + 1)
            directions[kind] = m / first / (np.sqrt(v / second) + 1e-8)
            state[kind] = [keep(x) for keep, x in zip(KINDS[kind], (m, v))]
        if step >= STEPS - 200:
            exact = directions["f64"]
            for kind, u in directions.items():
                root = np.median(np.sqrt(state[kind][1] / state["f64"][1]))
                seen[kind].append((np.sqrt(((u - exact) ** 2).mean() / (exact**2).mean()), root, np.abs(u).max()))
    return {kind: (np.mean(rows, 0)[0], np.mean(rows, 0)[1], np.max(rows, 0)[2]) for kind, rows in seen.items()}


def momentum_alone(beta, smooth):
    base = rng.standard_normal((BLOCKS, BLOCK))
    state = {kind: np.zeros((BLOCKS, BLOCK)) for kind in KINDS}
    seen = {kind: [] for kind in KINDS}
    for step in range(1500):
        g = base * np.cos(step / 300) + 0.3 if smooth else rng.standard_normal((BLOCKS, BLOCK))
        for kind, m in state.items():
            state[kind] = KINDS[kind][0](beta * m + (1 - beta) * g)
        if step > 500:
            exact = state["f64"]
            for kind, m in state.items():
                seen[kind].append(((m - exact) ** 2).mean() / (exact**2).mean())
    return {kind: np.sqrt(np.mean(rows)) for kind, rows in seen.items()}


log_normal = np.exp(1.5 * rng.standard_normal((BLOCKS, BLOCK)))
half = np.arange(BLOCK) % 2 == 0
CASES = {
    "one size": lambda step: 1.0,
    "log-normal sizes, sigma 1.5": lambda step: log_normal,
    "all ten times smaller from step 1500": lambda step: 1.0 if step < 1500 else 0.1,
    "half of them": lambda step: np.where(half, 1.0, 1.0 if step < 1500 else 0.1),
}
for name, sizes in CASES.items():
    for beta_2 in (0.999, 0.95):
        print(f"{name}, beta_2 {beta_2}")
        for kind, (off, root, largest) in adamw(sizes, 0.9, beta_2).items():
            print(f"    {kind:12} off {off:8.4f}   median root {root:6.3f}   largest {largest:10.1f}")
for beta in (0.9, 0.99):
    for smooth in (False, True):
        rows = momentum_alone(beta, smooth).items()
        print(f"momentum {beta}, {'smooth' if smooth else 'noise'}:", ", ".join(f"{kind} {off:.3f}" for kind, off in rows))
