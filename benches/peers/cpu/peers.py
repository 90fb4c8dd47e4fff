#!/usr/bin/env python3
"""SGD and AdamW of PyTorch and optax on the CPU against the CPU path of wgpu-optim, in turn: every peer is a process that waits while
another one is measured. Makes a virtual environment for the peers, builds our worker, checks what all compute, measures.
Needs Python 3.10 and cargo; see ../README.md."""

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
PACKAGES = {"torch": ["torch", "numpy"], "optax": ["optax", "jax[cpu]", "numpy"]}
# Largest error after three steps, relative to the parameter.
RELATIVE = 1e-5
# Additional error that a peer's clip may cause, relative to the step.
MOST_OFF = 1e-3


class Failure(Exception):
    """What ends the program, in one line."""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--power", type=int, default=24, help="parameters, as a power of two (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds in which all take turns (default: %(default)s)")
    parser.add_argument("--round-ms", type=float, default=500, help="length of a turn (default: %(default)s)")
    parser.add_argument("--peers", default="torch,optax", help="whom to measure ourselves against (default: %(default)s)")
    parser.add_argument("--threads", default="1,all", help="thread counts, numbers or `all` (default: %(default)s)")
    parser.add_argument("--cases", help="only these cases, such as sgd,sgdm+clip (default: every case of every worker)")
    parser.add_argument(
        "--venv",
        type=Path,
        default=REPOSITORY / "target" / "peers-venv",
        help="the peers' virtual environment; made where there is none, and what it lacks is installed (default: target/peers-venv)",
    )
    parser.add_argument("--pip-args", default="", help="further arguments of `pip install`, such as an index of builds without CUDA")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args()
    args.peers = [peer for peer in args.peers.split(",") if peer]
    for peer in args.peers:
        if peer not in PACKAGES:
            parser.error(f"no such peer: {peer} (there are {', '.join(PACKAGES)})")
    if not 6 <= args.power <= 30:
        parser.error("--power: from 6 to 30")
    if args.rounds < 1:
        parser.error("--rounds: at least 1")
    if not args.round_ms > 0:
        parser.error("--round-ms: above 0")
    args.cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    counts = []
    for word in args.threads.split(","):
        if word != "all" and not (word.isdecimal() and 1 <= int(word) <= len(args.cores)):
            parser.error(f"--threads: from 1 to {len(args.cores)} or `all`, not {word}")
        counts.append(len(args.cores) if word == "all" else int(word))
    args.threads = sorted(set(counts))
    return args


def environment_python(args):
    """The peers' Python, with all they need."""
    python = args.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not args.peers:
        return python
    if not python.exists():
        say(f"making {args.venv}")
        venv.create(args.venv, with_pip=True)
    wanted = sorted({package for peer in args.peers for package in PACKAGES[peer]})
    modules = [package.partition("[")[0] for package in wanted]
    looked = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if not u.find_spec(m)])"
    lacking = output_of([python, "-c", looked, *modules]).split()
    packages = [package for package, module in zip(wanted, modules) if module in lacking]
    if packages:
        say(f"installing {' '.join(packages)}")
        run([python, "-m", "pip", "install", "--quiet", *shlex.split(args.pip_args), *packages])
    return python


def our_worker():
    """Our worker's path, built."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target" / "peers"))
    manifest = HERE / "Cargo.toml"
    run(["cargo", "build", "--quiet", "--release", "--locked", "--manifest-path", manifest, "--target-dir", target])
    return target / "release" / ("wgpu-optim-peers-cpu" + (".exe" if os.name == "nt" else ""))


class Worker:
    """A process that measures what it is told to, and otherwise waits for the next line without a thread that spins."""

    def __init__(self, peer, threads, command, cores):
        self.peer, self.threads = peer, threads
        count = str(threads)
        env = os.environ | {
            "RAYON_NUM_THREADS": count,
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "OMP_WAIT_POLICY": "passive",
            "JAX_PLATFORMS": "cpu",
        }
        if threads == 1:
            env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

        def pin():
            # XLA uses as many threads as there are cores that it may run on.
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cores[:threads])

        self.process = subprocess.Popen(
            [str(word) for word in command], env=env, preexec_fn=pin, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.cases = self.answer("ready")

    def __str__(self):
        return f"{self.peer}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def ask(self, question, expected):
        try:
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Failure(f"{self}: the worker is gone") from error
        return self.answer(expected)

    def answer(self, expected):
        line = self.process.stdout.readline()
        if not line:
            raise Failure(f"{self}: the worker is gone")
        kind, _, rest = line.strip().partition(" ")
        if kind != expected:
            raise Failure(f"{self}: {rest if kind == 'error' else 'unexpected answer: ' + line.strip()}")
        return rest.split()

    def check(self, case):
        return [float(word) for word in self.ask(f"check {case}", "values")]

    def norm(self):
        """Of the gradients, in f64."""
        return float(self.ask("norm", "norm")[0])

    def run(self, case, milliseconds):
        return float(self.ask(f"run {case} {milliseconds}", "ns")[0])

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def exact_samples(case, power, norm, samples):
    """Starts of the sampled parameters, and where three steps lead them, in f64; the numbers are those of the workers."""
    elements = 1 << power

    def value(index, factor, summand, least, width):
        hashed = (index * factor + summand) % (1 << 32)
        magnitude = least + width * (hashed >> 8) / (1 << 24)
        return -magnitude if hashed & 0x80 else magnitude

    rule, _, extra = case.partition("+")
    # The gradient is the same in each step. With momentum 0.9 the sum is 1 + 1.9 + 2.71 times the gradient.
    way = 0.1 * (5.61 if rule == "sgdm" else 3.0)
    if extra == "clip":
        way *= min(1.0, 0.165 * elements**0.5 / norm)

    def end(start, gradient):
        if rule != "adamw":
            return start - way * gradient
        # A constant gradient equals its first moment and, in magnitude, the root of its second. A step is the decay, and the rate times the sign.
        for _ in range(3):
            start = start * (1 - 0.1 * 0.01) - math.copysign(0.1, gradient)
        return start

    indices = range(0, elements, elements // samples)
    starts = [value(index, 2_654_435_761, 0, 1.0, 1.0) for index in indices]
    gradients = [value(index, 2_246_822_519, 374_761_393, 0.125, 0.375) for index in indices]
    return [(start, end(start, gradient)) for start, gradient in zip(starts, gradients)]


def require_right(workers, power):
    """A benchmark of wrong results is worth nothing: ends the program unless all are right.

    A peer's clip may be off by up to MOST_OFF, since PyTorch adds up millions of squares in f32: by how much, relative to the length of
    the steps, comes back by worker and case, to be said beside the times.
    """
    norm = next(worker for worker in workers if worker.peer == "ours").norm()
    sums, off = {}, {}
    for worker in workers:
        for case in worker.cases:
            extra = case.partition("+")[2]
            if extra not in ("", "clip", "unchecked"):
                continue  # Only wgpu-optim has this case, and the crate's own tests cover it.
            *found, total = worker.check(case)
            allowed = MOST_OFF if worker.peer != "ours" and extra == "clip" else 0.0
            for value, (start, end) in zip(found, exact_samples(case, power, norm, len(found))):
                error, length = abs(value - end), abs(end - start)
                # The comparison is false for NaN.
                if not error <= RELATIVE * abs(end) + allowed * length:
                    raise Failure(f"{worker}: {case}: {start!r} became {value!r} after three steps instead of {end!r}")
                if error > RELATIVE * abs(end):
                    off[worker, case] = max(off.get((worker, case), 0.0), error / length)
            # The sum covers the parameters that are not sampled.
            first = sums.setdefault(case.removesuffix("+unchecked"), total)
            if not abs(total - first) <= (RELATIVE + allowed) * first:
                raise Failure(f"{worker}: {case}: magnitudes add up to {total!r} after three steps, ours to {first!r}")
    return off


def measure(workers, cases, rounds, milliseconds):
    """Nanoseconds per parameter, by worker and case, round by round."""
    times = {}
    # The first round warms up.
    for number in range(rounds + 1):
        for case in cases:
            for worker in workers:
                if case in worker.cases:
                    time = worker.run(case, milliseconds)
                    if number:
                        times.setdefault((worker, case), []).append(time)
        say(f"round {number} of {rounds}")
    return times


def rows_of(times, off):
    ours = {(worker.threads, case): found for (worker, case), found in times.items() if worker.peer == "ours"}
    rows = []
    for (worker, case), found in times.items():
        rule, _, extra = case.partition("+")
        # Only wgpu-optim has regimes. They are compared with its own fixed rate.
        same = ours.get((worker.threads, case if extra == "clip" else rule))
        rows.append(
            {
                "peer": worker.peer,
                "threads": worker.threads,
                "case": case,
                "ns_per_param": statistics.median(found),
                "lowest": min(found),
                "highest": max(found),
                # The ratio is taken in each round, so that load which slows both down has no influence.
                "by_ours": statistics.median(a / b for a, b in zip(found, same)) if same else None,
                "step_off_by": off.get((worker, case)),
            }
        )
    return sorted(rows, key=lambda row: row["threads"])


def versions(python, peers):
    modules = sorted({package.partition("[")[0] for peer in peers for package in PACKAGES[peer]})
    looked = "import importlib.metadata as m, sys; print(*[n + ' ' + m.version(n) for n in sys.argv[1:]], sep=', ')"
    return output_of([python, "-c", looked, *modules]).strip() if modules else ""


def show(report):
    print(f"{report['processor']}, {report['cores']} cores; {report['versions']}; load before {report['load']}")
    print(f"2^{report['power']} parameters, ns per parameter, {report['rounds']} rounds of {report['round_ms']:g} ms")
    print(f"{'case':<16} {'peer':<6} {'threads':>7} {'median':>8} {'min':>8} {'max':>8} {'/ ours':>8}")
    for row in report["rows"]:
        ratio = "" if row["by_ours"] is None else f"{row['by_ours']:.2f}"
        note = "" if row["step_off_by"] is None else f"  step off by {row['step_off_by']:.1e}"
        print(
            f"{row['case']:<16} {row['peer']:<6} {row['threads']:>7} {row['ns_per_param']:>8.3f} {row['lowest']:>8.3f} "
            f"{row['highest']:>8.3f} {ratio:>8}{note}"
        )


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def say(line):
    print(line, file=sys.stderr, flush=True)


def run(command):
    """Its standard output goes to ours for errors, which is for those who read along."""
    try:
        subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failure(f"{Path(command[0]).name}: {error}") from error


def output_of(command):
    try:
        return subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failure(f"{Path(command[0]).name}: {error}") from error


def main():
    args = arguments()
    python, binary = environment_python(args), our_worker()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    workers = []
    try:
        for threads in args.threads:
            workers.append(Worker("ours", threads, [binary, "--power", args.power], args.cores))
            for peer in args.peers:
                command = [python, HERE / "worker.py", peer, threads, args.power]
                workers.append(Worker(peer, threads, command, args.cores))
        offered = list(dict.fromkeys(case for worker in workers for case in worker.cases))
        cases = args.cases.split(",") if args.cases else offered
        for case in cases:
            if case not in offered:
                raise Failure(f"no such case: {case} (there are {', '.join(offered)})")
        off = require_right(workers, args.power)
        times = measure(workers, cases, args.rounds, args.round_ms)
    finally:
        for worker in workers:
            worker.stop()
    report = {
        "processor": processor(),
        "cores": len(args.cores),
        "versions": versions(python, args.peers),
        "load": round(load, 2),
        "power": args.power,
        "rounds": args.rounds,
        "round_ms": args.round_ms,
        "rows": rows_of(times, off),
    }
    if args.json:
        print(json.dumps(report))
    else:
        show(report)


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
