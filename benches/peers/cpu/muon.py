"""Steps of torch.optim.Muon on the processor, as benches/matrices.rs measures this crate's: in bf16 as PyTorch has it and in f32, and a product of
matrices.

    python muon.py [THREADS]        # needs torch
"""
import statistics
import sys
import time

import torch

MUON = torch.optim._muon
IN_BF16 = MUON._zeropower_via_newtonschulz


def in_f32(x, coefficients, steps, eps, *_):
    a, b, c = coefficients
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def median_seconds(call):
    call()
    times = []
    end = time.perf_counter() + 3
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for count, side in [(1, 256), (1, 1024), (64, 128)]:
        operations = count * 30 * side**3
        for name, iteration in [("bf16", IN_BF16), ("f32", in_f32)]:
            MUON._zeropower_via_newtonschulz = iteration
            weights = [torch.nn.Parameter(torch.randn(side, side)) for _ in range(count)]
            for weight in weights:
                weight.grad = torch.randn(side, side)
            seconds = median_seconds(torch.optim.Muon(weights, lr=1e-7).step)
            print(f"{count}x{side} Muon {name}: {1e3 * seconds:.1f} ms, {1e-9 * operations / seconds:.1f} GFLOP/s")
        x = torch.randn(side, side)
        seconds = median_seconds(lambda: x @ x)
        print(f"{side} product f32: {2e-9 * side**3 / seconds:.1f} GFLOP/s")


main()
