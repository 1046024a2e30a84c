"""A full disk or a place that cannot be written, at every write: a clear error, nothing lost, and it goes on later."""

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from toys import generate, tiny_recipe, write_classes

from rebalance.errors import RebalanceError
from rebalance.storage.local import LocalStorage
from rebalance.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = {"a": 24, "b": 16, "poor": 4}
BALANCE = {"poor": 16}
RECIPE = tiny_recipe(filtering={"pool_images": 8, "floor_draws": 2, "dimensions": 2}, generation={"batch": 4})
GENERATION = {"shard_size": 6, "max_fid": "1000x", "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def _no_cache() -> Iterator[None]:
    """Let only writes of the work itself be counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REBALANCE_CACHE", "")
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Data, a run and an output that nothing disturbed."""
    root, before = tmp_path_factory.mktemp("disk"), torch.get_num_threads()
    fit(write_classes(root / "data", COUNTS), root / "run", RECIPE, balance=BALANCE)
    generate(root / "run", root / "out", **GENERATION)
    torch.set_num_threads(before)
    return root


def last(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.glob("checkpoints/joint/step-00000004/*.safetensors")}


def outputs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


def failing_from(number: int, code: int, patch: pytest.MonkeyPatch) -> list[Path]:
    """Let every write from a number on fail before it reaches the disk; return the paths written until then."""
    written: list[Path] = []

    def sync(storage: LocalStorage, path: Path) -> None:
        written.append(Path(path))
        if len(written) > number:
            raise OSError(code, "No space left on device" if code == errno.ENOSPC else "Read-only file system")

    patch.setattr(LocalStorage, "sync", sync)
    return written


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("work", ["fit", "generate"])
def test_every_write_may_fail_and_the_same_command_goes_on(made, tmp_path, work, code):
    def fitting(place: Path) -> None:
        fit(made / "data", place, RECIPE, balance=BALANCE)

    def generating(place: Path) -> None:
        generate(made / "run", place, **GENERATION)

    call, place = {"fit": fitting, "generate": generating}[work], tmp_path / "place"
    number = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            written = failing_from(number, code, patch)
            try:
                call(place)
                break
            except RebalanceError as error:
                assert "cannot write" in str(error) and str(place) in str(error)
                assert ("Free some space" in str(error)) == (code == errno.ENOSPC)
        assert len(written) == number + 1, "work went on after a write had failed"
        assert not list(place.rglob("*.partial"))
        number += 1
    assert number > 6
    if work == "fit":
        assert last(place) == last(made / "run")
    else:
        assert outputs(place) == outputs(made / "out")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """A factory: a disk of so many KiB, the same one each time with another size."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")

    def resize(kib: int) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={kib}k", str(place)], check=True)
        return place

    yield resize
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_really_full(made, small_disk):
    place = small_disk(16)
    failures = 0
    for kib in (16, 24, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 4096):
        small_disk(kib)
        try:
            fit(made / "data", place / "run", RECIPE, balance=BALANCE)
            generate(place / "run", place / "out", **GENERATION)
            break
        except RebalanceError as error:
            failures += 1
            assert "cannot write" in str(error) and str(place) in str(error) and "Free some space" in str(error)
    assert failures > 5
    assert last(place / "run") == last(made / "run")
    assert outputs(place / "out") == outputs(made / "out")
