"""A peer as a worker of peers.py, with the protocol of src/main.rs: python worker.py torch|optax THREADS POWER."""

import sys
import time

import numpy as np

CASES = ["sgd", "sgdm", "adamw", "sgd+clip", "sgdm+clip", "adamw+clip"]

# The constants below must equal those of src/main.rs, because the results are compared.
CHECK_RATE = 0.1
RUN_RATE = 1e-4
MOMENTUM = 0.9
WEIGHT_DECAY = 0.01  # of AdamW
CLIP_PER_ROOT = 0.165
SAMPLES = 64


def inputs(elements):
    """Parameters of magnitude 1 to 2 and gradients of magnitude 1/8 to 1/2, the same bits as in src/main.rs."""
    index = np.arange(elements, dtype=np.uint32)

    def signed(hashes, magnitude):
        return np.where(hashes & np.uint32(0x80), -magnitude, magnitude)

    def fraction(hashes):
        return (hashes >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24)

    param_hash = index * np.uint32(2_654_435_761)
    grad_hash = index * np.uint32(2_246_822_519) + np.uint32(374_761_393)
    return (
        signed(param_hash, np.float32(1.0) + fraction(param_hash)),
        signed(grad_hash, np.float32(0.125) + np.float32(0.375) * fraction(grad_hash)),
    )


class Torch:
    """torch.optim.SGD(fused=True) or AdamW(fused=True), and clip_grad_norm_(foreach=True) before it."""

    def __init__(self, params, grads, threads):
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        # torch allocates the memory, because numpy requests huge pages and torch does not.
        self.start, self.given = self.copied(params), self.copied(grads)
        self.params = torch.nn.Parameter(self.copied(params))
        self.params.grad = self.copied(grads)
        self.max_norm = CLIP_PER_ROOT * len(params) ** 0.5

    def copied(self, values):
        tensor = self.torch.empty(len(values))
        return tensor.copy_(self.torch.from_numpy(values))

    def optimizer(self, case, rate):
        if case.startswith("adamw"):
            rule = self.torch.optim.AdamW([self.params], lr=rate, weight_decay=WEIGHT_DECAY, fused=True)
        else:
            momentum = MOMENTUM if case.startswith("sgdm") else 0.0
            rule = self.torch.optim.SGD([self.params], lr=rate, momentum=momentum, fused=True)
        return rule, case.endswith("+clip")

    def restore(self):
        with self.torch.no_grad():
            self.params.copy_(self.start)
            # clip_grad_norm_ overwrites the gradient with the clipped one.
            self.params.grad.copy_(self.given)

    def steps(self, optimizer, count):
        rule, clips = optimizer
        for _ in range(count):
            if clips:
                self.torch.nn.utils.clip_grad_norm_([self.params], self.max_norm, foreach=True)
            rule.step()

    def values(self):
        return self.params.detach().numpy()


class Optax:
    """optax.sgd or optax.adamw under jit, and optax.clip_by_global_norm before it; parameters and state are donated."""

    def __init__(self, params, grads, _threads):
        import jax
        import optax

        self.jax, self.optax = jax, optax
        self.start, self.grads = params, jax.numpy.array(grads)
        self.max_norm = CLIP_PER_ROOT * len(params) ** 0.5
        self.params = None
        self.restore()

    def optimizer(self, case, rate):
        if case.startswith("adamw"):
            rule = self.optax.adamw(rate, weight_decay=WEIGHT_DECAY)
        else:
            momentum = MOMENTUM if case.startswith("sgdm") else None
            rule = self.optax.sgd(rate, momentum=momentum)
        if case.endswith("+clip"):
            rule = self.optax.chain(self.optax.clip_by_global_norm(self.max_norm), rule)

        def step(params, state, grads):
            updates, state = rule.update(grads, state, params)
            return self.optax.apply_updates(params, updates), state

        return {"step": self.jax.jit(step, donate_argnums=(0, 1)), "state": rule.init(self.params)}

    def restore(self):
        self.params = self.jax.numpy.array(self.start)
        self.jax.block_until_ready(self.params)

    def steps(self, optimizer, count):
        step, params, state = optimizer["step"], self.params, optimizer["state"]
        for _ in range(count):
            params, state = step(params, state, self.grads)
        self.params, optimizer["state"] = self.jax.block_until_ready((params, state))

    def values(self):
        return np.asarray(self.params)


class Worker:
    def __init__(self, peer, elements):
        self.peer = peer
        self.elements = elements
        # For each case that has run: its optimizer, and the steps per second.
        self.running = {}

    def answer(self, line):
        words = line.split()
        if len(words) < 2 or words[1] not in CASES:
            raise ValueError(f"not a command: {line.strip()}")
        if words[0] == "check":
            return "values " + " ".join(map(repr, self.check(words[1])))
        return f"ns {self.run(words[1], 1e-3 * float(words[2]))}"

    def check(self, case):
        optimizer = self.peer.optimizer(case, CHECK_RATE)
        self.peer.restore()
        self.peer.steps(optimizer, 3)
        values = self.peer.values().astype(np.float64)
        return values[:: self.elements // SAMPLES].tolist() + [float(np.abs(values).sum())]

    def run(self, case, seconds):
        if case not in self.running:
            optimizer = self.peer.optimizer(case, RUN_RATE)
            self.time(optimizer, 2)
            self.running[case] = optimizer, 4 / self.time(optimizer, 4)
        optimizer, pace = self.running[case]
        self.peer.restore()
        count = max(1, int(seconds * pace))
        # One step is not timed, so that the state of the caches after the copy or a pause has no influence.
        self.time(optimizer, 1)
        taken = self.time(optimizer, count)
        sizes = np.abs(self.peer.values())
        if not np.isfinite(sizes).all() or ((sizes > 0) & (sizes < np.finfo(np.float32).tiny)).any():
            raise ValueError(f"{case}: parameters became denormal or infinite")
        return 1e9 * taken / count / self.elements

    def time(self, optimizer, count):
        start = time.perf_counter()
        self.peer.steps(optimizer, count)
        return time.perf_counter() - start


def main():
    name, threads, power = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    elements = 1 << power
    try:
        peer = {"torch": Torch, "optax": Optax}[name](*inputs(elements), threads)
        worker = Worker(peer, elements)
    except Exception as error:
        print("error", " ".join(str(error).split()), flush=True)
        return
    print("ready", *CASES, flush=True)
    for line in sys.stdin:
        try:
            print(worker.answer(line), flush=True)
        except Exception as error:
            print("error", " ".join(str(error).split()), flush=True)


main()
