"""How near `generate` comes to the bare generator, and where the rest of the time goes.

    python benchmarks/generate.py --work WORK
    python benchmarks/generate.py --work WORK --sizes 32 --images 50000

The run is one training step of `fashion-cpu` on the digits at each size: speed does not ask what the images show.

    forward     the generator alone on batches in memory, style codes ready, as many at once as there are processes
    generate    the whole command on the same number of processes: images a second from its start to its end, and in
                the long run, which is the difference between n images and a quarter of them, so without start-up
    stations    one process doing only that, one after another: drawing candidates, decoding sources, translating with
                conversion to and from bytes, encoding, writing a tar

Every process computes on one thread. A line for each size and number of processes goes to `results/generate.jsonl`,
with the share of the processors' time that was used and the largest peak memory of any process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

import data_sets
import memory
import torch

import rebalance
from rebalance import images
from rebalance.devices import cpu_count
from rebalance.generation import LoadedRun, Slot, Synthesizer, candidate_stream, load_run
from rebalance.shards.make import tar_bytes
from rebalance.training import RunDirectory

RESULTS = Path(__file__).parent / "results" / "generate.jsonl"
_ASK_AND_ACCEPT = {"min_confidence": 0.0, "max_similarity": 1.0, "keep": 1.0}
_SHARD_SIZE = 250
_SHORT = 4
_FORWARD_SECONDS = 8.0
_STATION_IMAGES = 1024


def fitted(work: Path, size_px: int) -> Path:
    """Return a run of one training step at a size."""
    data, run = data_sets.DATA_SETS["digits"].prepared(work / "digits"), work / f"run-{size_px}px"
    changes = (
        f"data.size_px={size_px}", "data.val_fraction=0", "training.steps=1", "training.precision=fp32",
        "training.threads=1",
    )  # fmt: skip
    rebalance.fit(data, run, "fashion-cpu", balance=amounts(3), overrides=changes, device="cpu")
    return run


def amounts(n_images: int) -> dict[str, int]:
    """Return final counts that ask for n synthetic images over all poor classes."""
    poor = data_sets.DATA_SETS["digits"].targets
    each, rest = divmod(n_images, len(poor))
    return {name: real + each + (number < rest) for number, (name, real) in enumerate(poor.items())}


def _loaded(run: Path) -> LoadedRun:
    torch.set_num_threads(1)
    return load_run(RunDirectory(run), None, torch.device("cpu"))


def _forward(run: Path, start: Any, queue: Any) -> None:
    loaded = _loaded(run)
    batch, size = loaded.recipe.generation.batch, loaded.recipe.data.size_px
    method, sources = loaded.models[0].method, torch.rand(batch, 1, size, size) * 2 - 1
    with torch.inference_mode():
        codes = method.reference_codes(sources, torch.zeros(batch, dtype=torch.int64))
        method.synthesize(sources, codes)
        start.wait()
        begun, made = time.perf_counter(), 0
        while time.perf_counter() - begun < _FORWARD_SECONDS:
            method.synthesize(sources, codes)
            made += batch
    queue.put(made / (time.perf_counter() - begun))


def forward_speed(run: Path, processes: int) -> float:
    """Return images a second of the generator alone, over processes that run at the same time."""
    context = multiprocessing.get_context("spawn")
    start, queue = context.Barrier(processes), context.Queue()
    started = [context.Process(target=_forward, args=(run, start, queue)) for _ in range(processes)]
    for process in started:
        process.start()
    total = sum(queue.get() for _ in started)
    for process in started:
        process.join()
    return total


def _generate(run: Path, out: Path, n_images: int, processes: int, filtered: bool, queue: Any) -> None:
    before = time.perf_counter()
    asked = _ASK_AND_ACCEPT if filtered else {}
    result = rebalance.generate(
        run,
        out,
        balance=amounts(n_images),
        shard_size=_SHARD_SIZE,
        workers=processes,
        device="cpu",
        filter_images=False,
        **asked,
    )
    seconds = time.perf_counter() - before
    if sum(result.counts.values()) != n_images:
        raise RuntimeError(f"{sum(result.counts.values())} of {n_images} images were made")
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak = memory.peak_mib() if processes == 1 else max(memory.peak_mib(), used[1].ru_maxrss / 1024)
    queue.put((seconds, sum(u.ru_utime + u.ru_stime for u in used), peak))


def generation(run: Path, out: Path, n_images: int, processes: int, filtered: bool) -> tuple[float, float, float]:
    """Return seconds, processor seconds and peak MiB of making n images in processes of their own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_generate, args=(run, out, n_images, processes, filtered, queue))
    process.start()
    while True:
        try:
            measured = queue.get(timeout=1)
            break
        except Empty:
            if not process.is_alive():
                raise RuntimeError("the process that generates has died") from None
    process.join()
    shutil.rmtree(out)
    return measured


def stations(run: Path) -> dict[str, float]:
    """Return images a second of each station on its own, on one thread."""
    loaded = _loaded(run)
    stream = candidate_stream("benchmark", loaded.index, loaded.plan, loaded.recipe)
    synthesizer = Synthesizer(loaded, torch.device("cpu"))
    target, size = loaded.plan.targets[0].name, synthesizer.batch
    n = -(-_STATION_IMAGES // size) * size
    speeds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = work()
        speeds[name] = round(n / (time.perf_counter() - begun), 1)
        return result

    candidates = timed("draw", lambda: [stream.draw(Slot(target, number), 0) for number in range(n)])
    sources = timed("decode", lambda: [synthesizer.load(candidate.source) for candidate in candidates])
    synthesizer.make(candidates[:size], sources[:size])  # style codes are computed once
    batches = [slice(first, first + size) for first in range(0, n, size)]
    made = timed("translate", lambda: [m for b in batches for m in synthesizer.make(candidates[b], sources[b])])
    encoded = timed("encode", lambda: [images.encode(m.pixels, "jpg", 95) for m in made])
    samples = [{"__key__": f"{i:08d}", "jpg": data, "cls": "0", "json": {}} for i, data in enumerate(encoded)]
    timed("tar", lambda: tar_bytes(samples))
    return speeds


def measure(work: Path, size_px: int, n_images: int, processes: int, repeats: int, filtered: bool) -> dict[str, Any]:
    """Measure one setting: forward and generate in turns."""
    run = fitted(work, size_px)
    rounds = []
    for _ in range(repeats):
        forward = forward_speed(run, processes)
        short, _, _ = generation(run, work / "out", n_images // _SHORT, processes, filtered)
        seconds, used, peak = generation(run, work / "out", n_images, processes, filtered)
        if seconds < 1.2 * short:
            raise RuntimeError(
                f"{n_images} images took {seconds:.1f} s, a quarter of them {short:.1f} s: take more --images"
            )
        long_run = (n_images - n_images // _SHORT) / (seconds - short)
        rounds.append((forward, n_images / seconds, long_run, used / seconds / cpu_count(), peak))
    forward, whole, long_run, share, peak = (list(column) for column in zip(*rounds, strict=True))
    ratios = [made / bare for made, bare in zip(long_run, forward, strict=True)]
    middle = len(ratios) // 2
    return {
        "size_px": size_px, "images": n_images, "processes": processes, "filtered": filtered, "n": repeats,
        "forward_per_second": round(sorted(forward)[middle], 1),
        "whole_per_second": round(sorted(whole)[middle], 1),
        "long_run_per_second": round(sorted(long_run)[middle], 1),
        "ratio_to_forward": round(sorted(ratios)[middle], 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "processor_share": round(sorted(share)[middle], 2),
        "peak_mib": round(max(peak)),
        "stations_per_second": stations(run),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder outside the repository")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--filter", action="store_true", help="judge every image, and accept it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.images < _SHORT * _SHARD_SIZE * max(arguments.processes):
        parser.error("--images: too few for a shard a process")
    for size_px in arguments.sizes:
        for processes in arguments.processes:
            row = measure(arguments.work, size_px, arguments.images, processes, arguments.repeats, arguments.filter)
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
