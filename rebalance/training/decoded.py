"""The train images of a run, decoded once."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rebalance import storage
from rebalance.config import DataOptions
from rebalance.errors import DamagedError
from rebalance.index import ImageIndex
from rebalance.learning.image_store import ImageStore

logger = logging.getLogger(__name__)


def build_store(
    index: ImageIndex, image_ids: np.ndarray, options: DataOptions, cache: Path, progress: bool = False
) -> ImageStore:
    """Decode images into memory, or into a mapped file below `cache` when they exceed `data.memory_gib`.

    Args:
        index: the data set.
        image_ids: (n,) ascending ids.
        options: size, channels and squaring.
        cache: folder for the mapped file.
        progress: show a progress bar on stderr.
    """
    shape = (len(image_ids), options.size_px, options.size_px, options.channels)
    if np.prod(shape, dtype=np.int64) <= options.memory_gib * 2**30:
        pixels = np.empty(shape, np.uint8)
        _decode_into(pixels, index, image_ids, options, progress)
        return ImageStore(image_ids, pixels)
    key = storage.sha256_bytes(f"{index.fingerprint}{options}{image_ids.tolist()}".encode())[:16]
    path, seal = cache / f"pixels-{key}.npy", cache / f"pixels-{key}.json"
    if not _is_intact(path, seal):
        with storage.replacing(path) as temporary:
            mapped = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            storage.reserve(temporary)
            _decode_into(mapped, index, image_ids, options, progress)
            mapped.flush()
        storage.write_sealed_json(seal, {"sha256": storage.sha256_file(path)})
    return ImageStore(image_ids, np.load(path, mmap_mode="r", allow_pickle=False))


def _is_intact(path: Path, seal: Path) -> bool:
    """Return whether decoded images of an earlier call are as they were written."""
    if not (storage.is_file(path) and storage.is_file(seal)):
        return False
    try:
        intact = storage.read_sealed_json(seal)["sha256"] == storage.sha256_file(path)
    except DamagedError:
        intact = False
    if not intact:
        logger.warning("%s is damaged; it is made again", path)
    return intact


def _decode_into(
    pixels: np.ndarray, index: ImageIndex, image_ids: np.ndarray, options: DataOptions, progress: bool
) -> None:
    def decode(position: int) -> None:
        pixels[position] = index.square(int(image_ids[position]), options)

    with ThreadPoolExecutor() as pool:
        done = pool.map(decode, range(len(image_ids)))
        for _ in tqdm(done, total=len(image_ids), desc="decode", unit="img", disable=not progress, leave=False):
            pass
