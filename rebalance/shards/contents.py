"""What a shard is made of, and how it is written: samples, the moments of its images, and the done-marker last."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import webdataset

from rebalance import storage
from rebalance.measures.frechet import StreamingMoments
from rebalance.shards.names import ShardName
from rebalance.shards.records import Marker, SampleRecord, sample_key
from rebalance.shards.shard_moments import write_moments


@dataclass(frozen=True)
class Sample:
    """An image of a shard.

    Attributes:
        ordinal: its number within its class, over the whole output.
        file_format: "jpg", "png" or "webp".
        image: the bytes of its file.
        record: what its JSON says.
    """

    ordinal: int
    file_format: str
    image: bytes
    record: SampleRecord


@dataclass(frozen=True)
class ShardContents:
    """A shard before it is written.

    Attributes:
        samples: its samples in order.
        rejects: rejected images of each class by reason.
        shortfall: slots of each class that no candidate could fill.
        moments: of the images of each class whose distance is measured.
    """

    samples: Sequence[Sample]
    rejects: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    shortfall: Mapping[str, int] = field(default_factory=dict)
    moments: Mapping[str, StreamingMoments] = field(default_factory=dict)


def write_all(
    out: Path, fingerprint: str, names: Iterable[ShardName], contents_of: Callable[[ShardName], ShardContents]
) -> None:
    """Make and write shards one after another; one is written while the next is made.

    Args:
        out: the output folder.
        fingerprint: of its request.
        names: which shards.
        contents_of: makes the contents of a shard.
    """
    with ThreadPoolExecutor(max_workers=1) as writer:
        writing: Future[None] | None = None
        for name in names:
            contents = contents_of(name)
            if writing is not None:
                writing.result()  # so that no more than two shards are in memory
            writing = writer.submit(write_shard, out, name, fingerprint, contents)
        if writing is not None:
            writing.result()


def write_shard(out: Path, name: ShardName, fingerprint: str, contents: ShardContents) -> None:
    """Write a shard, the moments of its images, and then its marker."""
    tar = tar_bytes(contents.samples)
    storage.write_bytes(out / name.tar, tar)
    marker = Marker(
        shard=name.tar,
        fingerprint=fingerprint,
        images=len(contents.samples),
        counts=dict(Counter(sample.record.class_name for sample in contents.samples)),
        rejects=contents.rejects,
        shortfall=contents.shortfall,
        moments=write_moments(out / name.moments, contents.moments),
        bytes=len(tar),
        sha256=storage.sha256_bytes(tar),
    )
    storage.write_sealed_json(out / name.marker, marker.to_json())


def tar_bytes(samples: Iterable[Sample]) -> bytes:
    """Return a tar file of samples without times and owners, so that equal samples give equal bytes."""
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, user="", group="", mode=0o644, mtime=0, encoder=False) as writer:
        for sample in samples:
            record = sample.record
            writer.write(
                {
                    "__key__": sample_key(record.label, sample.ordinal),
                    sample.file_format: sample.image,
                    "cls": str(record.label).encode(),
                    "json": storage.canonical_json(record.to_json()).encode(),
                }
            )
    return buffer.getvalue()
