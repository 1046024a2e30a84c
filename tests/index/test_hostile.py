"""Hostile and broken input: any file, folder, manifest or shard ends as images, rows with a reason, or one message.

The long run: `pytest tests/index/test_hostile.py --hypothesis-profile long` tries 10,000 damaged files.
"""

import builtins
import errno
import io
import json
import os
import resource
import tarfile
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from toys import generate, tiny_recipe, write_classes

import rebalance
from rebalance import imaging, storage
from rebalance.errors import InputError
from rebalance.imaging.decoding import BadImageError
from rebalance.index import build_index
from rebalance.training import fit

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (9, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
ALPHA = np.dstack([COLOUR, RNG.integers(0, 256, (9, 7), dtype=np.uint8)])
SECONDS = 5.0
"""More than any small file may take, whatever it holds."""


def saved(pixels: np.ndarray | Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def everything_pillow_writes() -> dict[str, bytes]:
    """One small picture of every format and mode that Pillow writes, by format and mode."""
    Image.init()
    found = {}
    for file_format in sorted(Image.SAVE):
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found[f"{file_format} {mode}"] = saved(Image.fromarray(COLOUR).convert(mode), file_format)
            except Exception:  # a mode or a format that this Pillow does not write
                continue
    return found


def oddities() -> dict[str, bytes]:
    """Files that are rare and right, or wrong in a way of their own."""
    rgb, exif = Image.fromarray(COLOUR), Image.Exif()
    exif[0x0112] = 6
    frames = [Image.fromarray(np.roll(COLOUR, n, 0)) for n in range(3)]
    return {
        "orientation": saved(rgb, "JPEG", exif=exif),
        "bad exif": saved(rgb, "JPEG", exif=b"Exif\0\0" + b"\xff" * 40),
        "bad icc": saved(rgb, "PNG", icc_profile=b"not a profile"),
        "animated gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated webp": saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "animated png": saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "pages": saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "one pixel": saved(COLOUR[:1, :1], "PNG"),
        "sliver": saved(np.zeros((1, 3000), np.uint8), "PNG"),
        "column": saved(np.zeros((3000, 1, 3), np.uint8), "JPEG"),
        "progressive": saved(rgb, "JPEG", progressive=True),
        "compressed tiff": saved(rgb, "TIFF", compression="tiff_lzw"),
        "script": b"#!/bin/sh\nexit 1\n",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        "html": b"<html><body>404</body></html>",
        "zip": b"PK\x03\x04" + bytes(60),
    }


CORPUS = {**everything_pillow_writes(), **oddities()}
mutations = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("splice"), st.floats(0, 1), st.integers(0, len(CORPUS) - 1)),
        st.tuples(st.just("huge"), st.floats(0, 1), st.integers(1, 4)),
        st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(1, 3)),
    ),
    max_size=5,
)


def mutated(data: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """Flip bits, cut, splice in another file, write large numbers, repeat parts."""
    for kind, where, value in changes:
        place = int(where * max(len(data) - 1, 0))
        if kind == "flip" and data:
            data = data[:place] + bytes([data[place] ^ 1 << value]) + data[place + 1 :]
        elif kind == "cut":
            data = data[:place]
        elif kind == "splice":
            data = data[:place] + list(CORPUS.values())[value][place // 2 :]
        elif kind == "huge":
            data = data[:place] + b"\xff" * value + data[place + value :]
        elif kind == "repeat":
            data = data[:place] * (value + 1) + data[place:]
    return data


@settings(max_examples=max(300, settings.default.max_examples))
@given(original=st.sampled_from(sorted(CORPUS)), changes=mutations)
def test_any_damaged_file_is_decoded_or_has_a_reason(original, changes):
    data = mutated(CORPUS[original], changes)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            image = imaging.decode(data)
        except BadImageError as error:
            assert str(error)
        else:
            assert image.mode in ("L", "RGB") and min(image.size) > 0
            assert imaging.to_square(image, 16, 3, "pad").shape == (16, 16, 3)
    assert time.process_time() - start < SECONDS
    # A declared size within the limit may be allocated before the file turns out to be short.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3 * 4 * imaging.MAX_PIXELS / 1024


def test_every_format_that_is_read_keeps_its_pixels():
    lossless = ("BMP", "DIB", "GIF", "PNG", "PPM", "TIFF")
    seen = set()
    for name, data in everything_pillow_writes().items():
        file_format, _, mode = name.partition(" ")
        if file_format not in (*imaging.FORMATS, "MPO"):  # several JPEGs in one file, of which the first is shown
            with pytest.raises(BadImageError):
                imaging.decode(data)
        elif file_format in lossless and mode in ("RGB", "L", "1"):
            expected = Image.fromarray(COLOUR).convert(mode).convert("RGB")
            found = np.asarray(imaging.decode(data).convert("RGB"), int)
            # GIF has 256 colours for these 63 pixels, so it loses nothing either.
            assert np.abs(found - np.asarray(expected, int)).max() == 0, name
            seen.add(file_format)
    assert seen >= {"BMP", "GIF", "PNG", "PPM", "TIFF"}


def test_a_folder_of_the_whole_corpus_is_indexed_and_used(tmp_path):
    folder, endings = tmp_path / "data" / "odd", (".jpg", ".png", ".webp", ".tif", ".gif", ".bmp")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number in range(300):
        name = sorted(CORPUS)[number % len(CORPUS)]
        kinds = ("flip", "cut", "splice", "huge", "repeat")
        changes = [(kinds[rng.integers(5)], float(rng.random()), int(rng.integers(1, 4))) for _ in range(number % 3)]
        (folder / f"{number:03d}{endings[number % 6]}").write_bytes(mutated(CORPUS[name], changes))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = build_index(tmp_path / "data")
    assert index.table.num_rows == 300
    assert all(
        bool(reason) != bool(usable) for reason, usable in zip(index.column("reason"), index.usable, strict=True)
    )
    assert 50 < index.usable.sum() < 290
    for row in np.flatnonzero(index.usable):
        assert index.square(int(row), tiny_recipe().data).shape == (8, 8, 3)


def test_orientations_show_as_in_a_viewer():
    turned = {
        1: COLOUR, 2: COLOUR[:, ::-1], 3: COLOUR[::-1, ::-1], 4: COLOUR[::-1], 5: COLOUR.transpose(1, 0, 2),
        6: np.rot90(COLOUR, -1), 7: COLOUR[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(COLOUR),
    }  # fmt: skip
    for orientation, expected in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for file_format in ("PNG", "TIFF"):
            found = np.asarray(imaging.decode(saved(COLOUR, file_format, exif=exif)))
            assert np.array_equal(found, expected), (orientation, file_format)


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path):
    (tmp_path / "cat").mkdir()
    with open(tmp_path / "cat" / "huge.png", "wb") as file:
        file.truncate(imaging.MAX_BYTES + 1)  # a hole: it takes no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index = build_index(tmp_path)
    assert index.column("reason").tolist() == [f"too large: {imaging.MAX_BYTES + 1} bytes"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


# Names


NAMES = ["ünï çødé", "with space ", "new\nline", "dots..and.more.", "-option", "quote'\"", "CASE", "case", "😀", "a\\b"]


def test_strange_names_of_classes_and_files_go_the_whole_way(tmp_path):
    data = write_classes(tmp_path / "data", {"rich": 12, "also rich": 10})
    for number, name in enumerate(NAMES):
        (data / name).mkdir()
        for copy in range(2):
            pixels = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(data / name / f"{name[:3]}{'x' * 200}{number}.{copy}.png")
    recipe = tiny_recipe(training={"steps": 1}, generation={"batch": 4})
    fit(data, tmp_path / "run", recipe, balance=dict.fromkeys(NAMES, 3))
    result = generate(tmp_path / "run", tmp_path / "out", include_real=True, device="cpu")
    assert result.counts == dict.fromkeys(NAMES, 1)
    assert rebalance.verify(tmp_path / "out").exit_code == rebalance.verify(tmp_path / "run").exit_code == 0
    for tar in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(tar) as archive:
            assert all(member.name.split(".")[0].replace("-", "").isdigit() for member in archive)


@pytest.mark.parametrize("label", ["../../up", "/root", "a/b", "..", "nul\0", "bell\a", "x" * 300, "| c |\n# h"])
def test_a_class_name_never_becomes_a_path(tmp_path, label):
    data = write_classes(tmp_path / "data", {"rich": 12, "poor": 3})
    rows = [(path.relative_to(data).as_posix(), path.parent.name) for path in sorted(data.rglob("*.png"))]
    lines = ["path,label", *(f'{path},"{label if name == "poor" else name}"' for path, name in rows)]
    (data / "all.csv").write_text("\n".join(lines) + "\n")
    recipe = tiny_recipe(training={"steps": 1}, generation={"batch": 4})
    if "\0" in label:
        index = build_index(data / "all.csv")
        assert index.classes == ("rich",) and set(index.column("reason")) == {"", "its label holds a NUL character"}
        return
    fit(data / "all.csv", tmp_path / "run", recipe, balance={label: 5})
    generate(tmp_path / "run", tmp_path / "out", device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "run", "out"}
    with tarfile.open(tmp_path / "out" / "synthetic-000000.tar") as archive:
        names = archive.getnames()
        fields = json.loads(archive.extractfile(next(name for name in names if name.endswith(".json"))).read())
    assert all(name.startswith("00000-0") or name.startswith("00001-0") for name in names)
    assert fields["class"] == label
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("\n| ") == 3 and card.count("\n# ") == 1


# Manifests


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("gone.png", "cannot be read: No such file"),
        ("../outside/secret.png", ""),
        ("/dev/zero", "not a file"),
        ("nul\0.png", "cannot be read"),
        ("data", "not a file"),
        ("x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_paths_of_a_manifest_that_lead_anywhere(tmp_path, path, reason):
    (tmp_path / "outside").mkdir()
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "outside" / "secret.png").write_bytes(saved(GRAY, "PNG"))

    pq.write_table(pa.table({"path": [path], "label": ["a"]}), tmp_path / "set" / "all.parquet")
    index = build_index(tmp_path / "set" / "all.parquet")
    assert index.column("reason")[0].startswith(reason) and bool(index.column("reason")[0]) == bool(reason)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_manifest_in_another_encoding_is_named(tmp_path, encoding):
    (tmp_path / "all.csv").write_bytes("path,label\nä.png,käse\n".encode(encoding))
    with pytest.raises(InputError, match=r"all\.csv"):
        build_index(tmp_path / "all.csv")


# Shards


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for member, data in members:
            member.size = len(data) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_a_tar_that_wants_out_stays_inside(tmp_path):
    png = saved(GRAY, "PNG")
    tar = tar_of(
        tmp_path / "a.tar",
        [
            (member("../up.png"), png), (member("../up.cls"), b"a"),
            (member("/etc/root.png"), png), (member("/etc/root.cls"), b"a"),
            (member("link.png", tarfile.SYMTYPE, "/etc/passwd"), b""), (member("link.cls"), b"a"),
            (member("hard.png", tarfile.LNKTYPE, "../up.png"), b""), (member("hard.cls"), b"a"),
            (member("pipe.png", tarfile.FIFOTYPE), b""), (member("pipe.cls"), b"a"),
            (member("bad\udcff.png"), png), (member("bad\udcff.cls"), b"a"),
            (member("deep.png"), png), (member("deep.json"), b"[" * 200_000),
            (member("label.png"), png), (member("label.cls"), b"\xff\xfe a"),
            (member("nul.png"), png), (member("nul.cls"), b"a\0b"),
        ],
        encoding="utf-8", errors="surrogateescape",
    )  # fmt: skip
    index = build_index(tar)
    found = dict(zip(index.column("member"), index.column("reason"), strict=True))
    special = "a link or a special file inside its shard"
    assert found == {
        "../up.png": "", "/etc/root.png": "", "link.png": special, "hard.png": special, "pipe.png": special,
        "bad\\xff.png": "file name is not UTF-8", "deep.png": "no .cls and no .json label", "label.png": "",
        "nul.png": "its label holds a NUL character",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_giants_inside_a_tar_are_rows_and_cost_nothing(tmp_path):
    info = member("sparse.png")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 45)}
    tar = tar_of(
        tmp_path / "a.tar", [(info, b"0\n" + bytes(510)), (member("sparse.cls"), b"a"), (member("last.cls"), b"a")]
    )
    giant = member("giant.png")
    giant.size = 1 << 42
    tar.write_bytes(tar.read_bytes().rstrip(b"\0") + bytes(512 * 2))
    with open(tmp_path / "b.tar", "wb") as file:
        file.write(giant.tobuf(tarfile.GNU_FORMAT) + b"short")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("a.tar", "b.tar"):
        try:
            index = build_index(tmp_path / name)
        except InputError as error:
            assert name in str(error)
        else:
            assert not index.usable.any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_pillow_can_read_what_is_promised():
    assert features.check("jpg") and features.check("webp") and features.check("zlib")


# Folders


def test_a_class_that_is_only_in_test_takes_no_part(tmp_path):
    write_classes(tmp_path / "data" / "train", {"poor": 3, "rich": 12})
    write_classes(tmp_path / "data" / "test", {"poor": 2, "unseen": 4})
    recipe = tiny_recipe(training={"steps": 1}, generation={"batch": 4})
    with pytest.raises(InputError, match="unseen"):
        fit(tmp_path / "data", tmp_path / "run", recipe, balance={"unseen": 9})
    fit(tmp_path / "data", tmp_path / "run", recipe, balance={"poor": 5})
    result = generate(tmp_path / "run", tmp_path / "out", include_real=True, device="cpu")
    classes = storage.read_json(result.out / "manifest.json")["classes"]
    assert {row["class"]: row["synthetic"] + row["real"] for row in classes} == {"poor": 5, "rich": 12, "unseen": 0}


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    data = write_classes(tmp_path / "data", {"poor": 3, "locked": 4})
    scandir = os.scandir

    def refusing(path: str | Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # because root may read everything
    with pytest.raises(InputError, match=r"cannot read the folder .*locked: Permission denied"):
        build_index(data)


def test_a_file_that_may_not_be_read_is_a_row_with_a_reason(tmp_path, monkeypatch):
    data = write_classes(tmp_path / "data", {"poor": 3})
    opened = open

    def refusing(path: str | Path, *arguments: object, **options: object) -> object:
        if str(path).endswith("001.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refusing)
    assert build_index(data).column("reason").tolist() == ["", "cannot be read: Permission denied", ""]
