"""Seconds of a full training step (discriminator and generator) of the released architecture.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --json

Default: 64 px, 32 base filters, 41 classes, batch 8, R1 every 8 steps, on random images. Every combination of
precision and layout is timed in one run, in turns, so that a machine whose speed drifts treats them alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass, replace

import torch

from rebalance.config import load_recipe
from rebalance.devices import choose_device
from rebalance.methods import PairBatch, make_method
from rebalance.training import Trainer
from rebalance.training.fit import method_loop


@dataclass(frozen=True)
class Result:
    """Seconds of a step in one precision and layout, over all timed steps."""

    precision: str
    memory_format: str
    mean_s: float
    median_s: float
    min_s: float
    max_s: float
    images_per_s: float


def batch(size_px: int, n: int, n_classes: int, seed: int) -> PairBatch:
    rng = torch.Generator().manual_seed(seed)

    def pictures() -> torch.Tensor:
        return torch.rand(n, 3, size_px, size_px, generator=rng) * 2 - 1

    def labels() -> torch.Tensor:
        return torch.randint(n_classes, (n,), generator=rng)

    return PairBatch(pictures(), labels(), pictures(), labels())


def measure(arguments: argparse.Namespace) -> list[Result]:
    device = choose_device(arguments.device)
    overrides = [
        f"data.size_px={arguments.size_px}",
        f"training.batch={arguments.batch}",
        f"balagan.generator.base_filters={arguments.base_filters}",
        f"balagan.discriminator.base_filters={arguments.base_filters}",
        f"training.regularize_every_steps={arguments.r1_every}",
    ]
    recipe = load_recipe("paper-128", overrides, arguments.seed)
    pair = batch(arguments.size_px, arguments.batch, arguments.classes, arguments.seed)
    trainers, seconds = {}, {}
    for precision in arguments.precisions.split(","):
        for memory_format in ("contiguous", "channels_last"):
            options = replace(method_loop(recipe), precision=precision, memory_format=memory_format)
            method = make_method(recipe, arguments.classes, seed=arguments.seed)
            trainers[precision, memory_format] = Trainer(method, options, device)
            seconds[precision, memory_format] = []
    for number in range(arguments.steps + 1):
        for key, trainer in trainers.items():
            start = time.perf_counter()
            trainer.step(pair, number)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:  # the first step warms up
                seconds[key].append(time.perf_counter() - start)
    return [
        Result(
            *key,
            statistics.mean(times),
            statistics.median(times),
            min(times),
            max(times),
            arguments.batch / statistics.mean(times),
        )
        for key, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-px", type=int, default=64)
    parser.add_argument("--base-filters", type=int, default=32)
    parser.add_argument("--classes", type=int, default=41)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--r1-every", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="timed steps; a multiple of --r1-every counts R1 fairly")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results = measure(arguments)
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        print(json.dumps({"machine": machine, "settings": vars(arguments), "results": [asdict(r) for r in results]}))
        return
    print(f"{arguments.steps} steps each, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for r in results:
        print(
            f"{r.precision} {r.memory_format:13}  mean {r.mean_s:.2f} s, median {r.median_s:.2f}, "
            f"{r.min_s:.2f} to {r.max_s:.2f}; {r.images_per_s:.2f} pairs/s"
        )


if __name__ == "__main__":
    main()
