"""The same job on a CUDA device."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rebalance import shards
from rebalance.training import fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TINY = Path(__file__).parent / "tiny.yaml"


@pytest.fixture
def data(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name, count in {"rich": 30, "poor": 5}.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number:03d}.png")
    return tmp_path / "data"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fit_and_generate_on_cuda(data, tmp_path, precision):
    overrides = (f"training.precision={precision}", "training.memory_format=channels_last", "training.steps=10")
    result = fit(data, tmp_path / "run", TINY, balance={"poor": 15}, device="cuda", overrides=overrides)
    assert result.steps == {"joint": 10}
    made = shards.generate(tmp_path / "run", tmp_path / "out", device="cuda")
    assert made.counts == {"poor": 10} and shards.verify(tmp_path / "out").exit_code == 0
