"""How fast a data set of many small files is indexed, beside what else reads a folder of images.

    python benchmarks/index.py --work WORK --files 100000
    python benchmarks/index.py --work WORK --files 1000000

The files are made first, in WORK/data, and deleted in the end; a million take 4 GB of a disk with blocks of 4 KiB.

    image_folder   torchvision's ImageFolder: walks the folder and opens no file
    pillow_verify  one loop that opens each file with Pillow and calls `verify`, which decodes nothing
    first          `build_index` with an empty cache: reads, hashes and decodes every file
    again          the same, of the unchanged folder

Each is measured in a process of its own, after a walk has warmed the file system's cache. One line for each goes to
`results/index.jsonl`: seconds, files a second, and peak memory beyond that of the imports, in all and for each file.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torchvision
from PIL import Image

from rebalance.index import build_index

RESULTS = Path(__file__).parent / "results" / "index.jsonl"
_CLASSES = 100


def write_files(folder: Path, n: int) -> None:
    """Write n JPEG files of 32 px in 100 classes, each with its own bytes."""
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    ramp = np.linspace(0, 255, 32)[:, None, None] * np.ones((32, 32, 3))
    Image.fromarray((ramp * 0.7 + rng.random((32, 32, 3)) * 70).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    for number in range(_CLASSES):
        (folder / f"class-{number:03d}").mkdir(parents=True, exist_ok=True)
    for number in range(n):
        # What follows the end of a JPEG is not looked at, so it makes each file another one.
        path = folder / f"class-{number % _CLASSES:03d}" / f"{number:08d}.jpg"
        path.write_bytes(buffer.getvalue() + number.to_bytes(8, "little"))


def image_folder(folder: Path) -> int:
    return len(torchvision.datasets.ImageFolder(str(folder)))


def pillow_verify(folder: Path) -> int:
    found = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            with Image.open(os.path.join(directory, name)) as image:
                image.verify()
            found += 1
    return found


def rebalance_index(folder: Path) -> int:
    return int(build_index(folder).usable.sum())


WORKS: dict[str, Callable[[Path], int]] = {
    "image_folder": image_folder,
    "pillow_verify": pillow_verify,
    "first": rebalance_index,
    "again": rebalance_index,
}


def _measure(name: str, folder: Path, queue: Any) -> None:
    before = machine.peak_mib()
    begun = time.perf_counter()
    found = WORKS[name](folder)
    seconds = time.perf_counter() - begun
    queue.put((found, seconds, machine.peak_mib() - before))


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Run one work in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(name, folder, queue))
    process.start()
    found, seconds, peak_mib = queue.get()
    process.join()
    return {
        "work": name, "files": found, "seconds": round(seconds, 2), "files_per_second": round(found / seconds),
        "peak_mib": round(peak_mib), "peak_bytes_per_file": round(peak_mib * 2**20 / found),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="empty folder outside the repository")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if (arguments.work / "data").exists():
        parser.error("--work: holds a folder `data` already, which would be deleted")
    os.environ["REBALANCE_CACHE"] = str(arguments.work / "cache")
    try:
        write_files(arguments.work / "data", arguments.files)
        time.sleep(3)  # files changed within the last two seconds are not taken from the cache
        rows = [measure(name, arguments.work / "data") for name in WORKS]
    finally:
        for name in ("data", "cache"):
            shutil.rmtree(arguments.work / name, ignore_errors=True)
    for row in rows:
        if row["files"] != arguments.files:
            raise RuntimeError(f"{row['work']} found {row['files']} of {arguments.files} files")
    with arguments.results.open("a", encoding="utf-8") as file:
        for row in rows:
            row |= {"ratio_to_pillow_verify": round(row["seconds"] / rows[1]["seconds"], 2), "cores": os.cpu_count()}
            file.write(json.dumps(row) + "\n")
            print(json.dumps(row))


if __name__ == "__main__":
    main()
