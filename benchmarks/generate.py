"""How near `generate` comes to the bare generator, and where the rest of the time goes.

    python benchmarks/generate.py --work WORK
    python benchmarks/generate.py --work WORK --sizes 32 --images 50000 --filters no
    python benchmarks/generate.py --report

The run is one training step of `fashion-cpu` on the digits at each size: speed does not ask what the images show.

    forward     the generator alone on batches in memory, style codes ready, as many at once as there are processes
    generate    the whole command on the same number of processes: images a second from its start to its end, and in
                the long run, which is the difference between n images and a quarter of them, so without start-up;
                filtered, every image is judged, and accepted
    stations    milliseconds of the processor that an image takes in one process doing only that: the forward, drawing
                candidates, decoding sources, translating with conversion to and from bytes, features and class head
                (which only the filter needs), encoding, writing a tar

Every process computes on one thread. A line for each size, number of processes and filter goes to
`results/generate.jsonl`, with the share of the processors' time that was used and the largest peak memory of any
process. Images a second need a machine that does nothing else. Processor time, of the stations and of the whole, hardly
does: their ratio is the share of the work that is the forward's, which is what two processes on two cores can reach.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import data_sets
import machine
import numpy as np
import torch

import rebalance
from rebalance import imaging
from rebalance.generation.loaded_run import LoadedRun, load_run
from rebalance.generation.slots import Slot
from rebalance.generation.synthesizer import Synthesizer
from rebalance.measures.features import make_extractor
from rebalance.runtime.devices import cpu_count
from rebalance.shards.contents import Sample, tar_bytes
from rebalance.shards.records import SampleRecord
from rebalance.training import RunDirectory

_RECORD = SampleRecord(
    class_name="c", label=0, synthetic=True, method="m", run="r", origin="latent", source="", references=(),
    source_class="c", modality=-1, seed=0, candidate=0, scores={}, width=1, height=1,
)  # fmt: skip
RESULTS = Path(__file__).parent / "results" / "generate.jsonl"
_ASK_AND_ACCEPT = {"min_confidence": 0.0, "max_similarity": 1.0, "keep": 1.0}
_SHARD_SIZE = 125
_SHORT = 4
_FORWARD_SECONDS = 8.0
_STATION_IMAGES = 512


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


def _bare(loaded: LoadedRun) -> Callable[[], int]:
    """Return a forward pass of one batch, in the layout that images have when they come from bytes."""
    batch, size, method = loaded.recipe.generation.batch, loaded.recipe.data.size_px, loaded.models[0].method
    sources = imaging.to_float(torch.randint(0, 256, (batch, size, size, 1), dtype=torch.uint8))
    with torch.inference_mode():
        codes = method.reference_codes(sources, torch.zeros(batch, dtype=torch.int64))

    @torch.inference_mode()
    def forward() -> int:
        method.synthesize(sources, codes)
        return batch

    return forward


def _forward(run: Path, start: Any, queue: Any) -> None:
    work = _bare(_loaded(run))
    work()
    start.wait()
    begun, made = time.perf_counter(), 0
    while time.perf_counter() - begun < _FORWARD_SECONDS:
        made += work()
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
    before, used_before = time.perf_counter(), _processor_seconds()
    limits = _ASK_AND_ACCEPT if filtered else {}
    result = rebalance.generate(
        run,
        out,
        balance=amounts(n_images),
        output=rebalance.OutputOptions(shard_size=_SHARD_SIZE),
        filtering=rebalance.FilterChoice(filter_images=False, **limits),
        workers=processes,
        device="cpu",
        overwrite=True,
    )
    seconds = time.perf_counter() - before
    if sum(result.counts.values()) != n_images:
        raise RuntimeError(f"{sum(result.counts.values())} of {n_images} images were made")
    of_workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024 if processes > 1 else 0.0
    queue.put((seconds, _processor_seconds() - used_before, max(machine.peak_mib(), of_workers)))


def _processor_seconds() -> float:
    """Return the processor's time of this process and of those it has started that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


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
    """Return milliseconds of the processor that an image takes in each station on its own, on one thread."""
    loaded, device = _loaded(run), torch.device("cpu")
    stream = loaded.candidate_stream("benchmark")
    synthesizer = Synthesizer(loaded, device)
    target, size = loaded.plan.targets[0].name, synthesizer.batch
    n = -(-_STATION_IMAGES // size) * size
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = time.process_time()
        result = work()
        found[name] = round(1000 * (time.process_time() - begun) / n, 4)
        return result

    forward, extractor = _bare(loaded), make_extractor(loaded.recipe.features, device)
    forward()
    timed("forward", lambda: [forward() for _ in range(n // size)])
    candidates = timed("draw", lambda: [stream.draw(Slot(target, number), 0) for number in range(n)])
    options = loaded.recipe.data
    sources = timed("decode", lambda: [loaded.index.square(candidate.source, options) for candidate in candidates])
    synthesizer.make(candidates[:size], sources[:size])  # style codes are computed once
    batches = [slice(first, first + size) for first in range(0, n, size)]
    made = timed("translate", lambda: [m for b in batches for m in synthesizer.make(candidates[b], sources[b])])
    pixels = np.stack([m.pixels for m in made])
    extractor.extract(pixels[:size])
    timed("features", lambda: [extractor.extract(pixels[b]) for b in batches])
    timed("class_head", lambda: synthesizer.confidences_of([target], pixels))
    encoded = timed("encode", lambda: [imaging.encode(m.pixels, "jpg", 95) for m in made])
    samples = [Sample(number, "jpg", data, _RECORD) for number, data in enumerate(encoded)]
    timed("tar", lambda: tar_bytes(samples))
    return found


@dataclass(frozen=True)
class Round:
    """What one round gave: the forward alone, then a quarter of the images, then all.

    Attributes:
        forward_per_second: images a second of the forward, over all processes.
        images: how many images were made in all.
        short: seconds, processor seconds and peak MiB of the quarter.
        whole: the same of all.
    """

    forward_per_second: float
    images: int
    short: tuple[float, float, float]
    whole: tuple[float, float, float]

    @property
    def long_run_per_second(self) -> float:
        """Images a second without start-up."""
        return self._images_between / (self.whole[0] - self.short[0])

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of the processor that an image takes, without start-up."""
        return 1000 * (self.whole[1] - self.short[1]) / self._images_between

    @property
    def _images_between(self) -> int:
        return self.images - self.images // _SHORT


def row_of(rounds: Sequence[Round], cores: int, of_stations: Mapping[str, float]) -> dict[str, Any]:
    """Return the medians over rounds, and every round's ratio to its own forward."""

    def middle(values: Iterable[float], digits: int) -> float:
        return round(statistics.median(values), digits)

    ratios = [r.long_run_per_second / r.forward_per_second for r in rounds]
    cpu_ms = middle((r.cpu_ms for r in rounds), 3)
    return {
        "n": len(rounds),
        "forward_per_second": middle((r.forward_per_second for r in rounds), 1),
        "whole_per_second": middle((r.images / r.whole[0] for r in rounds), 1),
        "long_run_per_second": middle((r.long_run_per_second for r in rounds), 1),
        "ratio_to_forward": middle(ratios, 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "cpu_ms": cpu_ms,
        "cpu_ratio_to_forward": round(of_stations["forward"] / cpu_ms, 3),
        "stations_cpu_ms": dict(of_stations),
        "processor_share": middle((r.whole[1] / r.whole[0] / cores for r in rounds), 2),
        "peak_mib": round(max(r.whole[2] for r in rounds)),
    }


def measure(work: Path, size_px: int, n_images: int, processes: int, repeats: int, filtered: bool) -> dict[str, Any]:
    """Measure one setting: forward and generate in turns."""
    run, rounds = fitted(work, size_px), []
    if filtered:
        generation(run, work / "out", _SHARD_SIZE, 1, filtered)  # calibrates, once
    for _ in range(repeats):
        forward = forward_speed(run, processes)
        short = generation(run, work / "out", n_images // _SHORT, processes, filtered)
        whole = generation(run, work / "out", n_images, processes, filtered)
        if whole[0] < 1.2 * short[0]:
            raise RuntimeError(
                f"{n_images} images took {whole[0]:.1f} s, a quarter of them {short[0]:.1f} s: take more --images"
            )
        rounds.append(Round(forward, n_images, short, whole))
    setting = {"size_px": size_px, "images": n_images, "processes": processes, "filtered": filtered}
    machine = {"cores": os.cpu_count(), "torch": torch.__version__}
    return setting | row_of(rounds, cpu_count(), stations(run)) | machine


def report_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as two Markdown tables: speed, and the processor's time by station."""
    lines = [
        "| px | images | processes | filter | forward, images a second | generate: long run, from start to end "
        "| ratio to the forward (each round) | processors used | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        ratios = ", ".join(f"{ratio:.2f}" for ratio in r["ratios"])
        lines.append(
            f"| {r['size_px']} | {r['images']} | {r['processes']} | {'yes' if r['filtered'] else 'no'} "
            f"| {r['forward_per_second']:.0f} | {r['long_run_per_second']:.0f}, {r['whole_per_second']:.0f} "
            f"| {r['ratio_to_forward']:.2f} ({ratios}) | {r['processor_share']:.2f} | {r['peak_mib']} |"
        )
    names = list(rows[0]["stations_cpu_ms"]) if rows else []
    lines += ["", f"| px | processes | filter | {' | '.join(names)} | generate | forward / generate |"]
    lines.append("|---" * (len(names) + 5) + "|")
    for r in rows:
        times = " | ".join(f"{r['stations_cpu_ms'][name]:.2f}" for name in names)
        lines.append(
            f"| {r['size_px']} | {r['processes']} | {'yes' if r['filtered'] else 'no'} | {times} "
            f"| {r['cpu_ms']:.2f} | {r['cpu_ratio_to_forward']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder outside the repository")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--filters", nargs="+", choices=("no", "yes"), default=["no", "yes"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print what was measured and measure nothing")
    arguments = parser.parse_args()
    if arguments.report:
        lines = arguments.results.read_text(encoding="utf-8").splitlines()
        print(report_text([json.loads(line) for line in lines]))
        return
    if arguments.work is None:
        parser.error("--work is needed, or --report")
    if arguments.images < _SHORT * _SHARD_SIZE * max(arguments.processes):
        parser.error("--images: too few for a shard a process")
    settings = itertools.product(arguments.sizes, arguments.processes, arguments.filters)
    for size_px, processes, asked in settings:
        row = measure(arguments.work, size_px, arguments.images, processes, arguments.repeats, asked == "yes")
        with arguments.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
