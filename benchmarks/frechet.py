"""How fast and how near to another implementation the Fréchet distance in all dimensions is.

    python benchmarks/frechet.py
    python benchmarks/frechet.py --report

Features of two sets of n images in d dimensions, drawn once with a covariance whose eigenvalues fall as 1 / i; then, in
turns and on the same threads:

    package      `frechet.unreduced_distance` from features
    clean-fid    what clean-fid does with features: mean, `numpy.cov` and its own `frechet_distance`, which takes the
                 square root of the product of the covariances

clean-fid 0.1.35 asks SciPy's `sqrtm` for a second value with `disp=False`, which newer SciPy does not
give. So that it runs on any, its `linalg` is replaced by one whose `sqrtm` takes that argument and calls SciPy's.
A line goes to `results/frechet.jsonl`. Times are of the process's processors, not of the clock, beside which the
clock's are given.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cleanfid.fid
import numpy as np
import scipy
import scipy.linalg
from threadpoolctl import threadpool_limits

from rebalance.measures import frechet

RESULTS = Path(__file__).parent / "results" / "frechet.jsonl"


def sqrtm(matrix: np.ndarray, disp: bool = True) -> Any:
    """SciPy's square root of a matrix, with the error estimate that `disp=False` used to add (none: -1)."""
    root = scipy.linalg.sqrtm(matrix)
    return root if disp else (root, -1.0)


def by_clean_fid(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return clean-fid's distance of features (n, d) and (m, d)."""
    cleanfid.fid.linalg = SimpleNamespace(sqrtm=sqrtm)
    statistics = [part for x in (real, synthetic) for part in (np.mean(x, axis=0), np.cov(x, rowvar=False))]
    return float(cleanfid.fid.frechet_distance(*statistics))


def draw(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of features (n, d) float32, the second with another covariance and mean."""
    rng = np.random.default_rng(seed)
    scales = np.arange(1, d + 1) ** -0.5
    real, synthetic = (rng.standard_normal((n, d)) * scales for _ in range(2))
    turned = synthetic @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    return real.astype(np.float32), (0.7 * synthetic + 0.3 * turned + 0.02).astype(np.float32)


def measure(n: int, d: int, repeats: int, threads: int, seed: int) -> dict[str, Any]:
    """Return seconds of both, in turns, and how far apart their distances are."""
    sets = draw(n, d, seed)
    ways: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "package": frechet.unreduced_distance,
        "clean-fid": by_clean_fid,
    }
    used: dict[str, list[float]] = {name: [] for name in ways}
    clock: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    with threadpool_limits(threads):
        for number in range(repeats):
            for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
                begun = time.perf_counter(), time.process_time()
                found[name] = ways[name](*sets)
                clock[name].append(time.perf_counter() - begun[0])
                used[name].append(time.process_time() - begun[1])
            print(number, {name: round(seconds[-1], 2) for name, seconds in used.items()}, flush=True)
    ratios = [slow / fast for slow, fast in zip(used["clean-fid"], used["package"], strict=True)]
    return {
        "n": n, "d": d, "repeats": repeats, "threads": threads, "seed": seed, "distances": found,
        "relative_difference": abs(found["package"] / found["clean-fid"] - 1),
        "processor_seconds": {name: [round(s, 3) for s in seconds] for name, seconds in used.items()},
        "clock_seconds": {name: [round(s, 3) for s in seconds] for name, seconds in clock.items()},
        "times_faster": float(np.median(ratios)), "least": min(ratios), "most": max(ratios),
        "cores": os.cpu_count(), "numpy": np.__version__, "scipy": scipy.__version__, "clean-fid": version("clean-fid"),
    }  # fmt: skip


def report(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = ["| n | d | threads | times faster (least to most) | relative difference |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['n']} | {r['d']} | {r['threads']} | {r['times_faster']:.1f} ({r['least']:.1f} to {r['most']:.1f}) "
        f"| {r['relative_difference']:.1e} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print what was measured and measure nothing")
    arguments = parser.parse_args()
    if arguments.report:
        print(report([json.loads(line) for line in arguments.results.read_text(encoding="utf-8").splitlines()]))
        return
    row = measure(arguments.images, arguments.dimensions, arguments.repeats, arguments.threads, arguments.seed)
    with arguments.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(report([row]))


if __name__ == "__main__":
    main()
