"""The index: what is there, bad files with their reason; every form of a data set; copies; validation."""

import dataclasses
import io
import json
import os
import shutil
import tarfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rebalance.errors import DamagedError, InputError
from rebalance.index import ImageIndex, build_index, building, cache, carve_validation, inspect_index
from rebalance.index.image_index import SCHEMA, SPLITS
from rebalance.index.readers.detection import read_listing


def png(level=0, size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("L", size, level).save(buffer, "PNG")
    return buffer.getvalue()


def put(path, data=None):
    """Write a file, by default a small image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)
    return path


def reasons(index):
    """Reason of every row by its path, empty for a usable one."""
    found = dict(zip(index.column("path"), index.column("reason"), strict=True))
    assert all((reason == "") == usable for reason, usable in zip(found.values(), index.usable, strict=True))
    return found


def images_by_class(index):
    """How often each content occurs in each class and split."""
    rows = np.flatnonzero(index.usable)
    return Counter(tuple(index.column(name)[row] for name in ("split", "class", "hash")) for row in rows)


def in_memory(counts, split="train", hashes=None, statuses=None):
    """An index without files: `counts` images of every class, each with a content of its own unless given."""
    classes = [name for name, count in counts.items() for _ in range(count)]
    n = len(classes)
    columns = {
        "id": range(n),
        "path": [f"{name}/{number:05d}.png" for number, name in enumerate(classes)],
        "member": [""] * n,
        "offset": [-1] * n,
        "class": classes,
        "sublabel": [""] * n,
        "split": [split] * n if isinstance(split, str) else split,
        "width": [8] * n,
        "height": [8] * n,
        "bytes": [64] * n,
        "hash": [f"{number:064x}" for number in range(n)] if hashes is None else hashes,
        "status": ["ok"] * n if statuses is None else statuses,
        "reason": [""] * n,
    }
    table = pa.table({name: list(values) for name, values in columns.items()}, schema=SCHEMA)
    return ImageIndex(Path("/nowhere"), tuple(counts), table)


# Image folders


def test_folder_without_splits_is_all_train(image_folder):
    index = build_index(image_folder({"dog": 3, "cat": 2}))
    assert index.classes == ("cat", "dog")
    assert index.counts("train") == {"cat": 2, "dog": 3}
    assert set(index.column("split")) == {"train"}
    assert index.label("dog") == 1


def test_folder_with_splits(image_folder):
    root = image_folder({"train": {"cat": 4, "dog": 3}, "val": {"cat": 2}, "test": {"cat": 1, "dog": 1}})
    index = build_index(root)
    assert index.classes == ("cat", "dog")
    assert index.counts("train") == {"cat": 4, "dog": 3}
    assert index.counts("val") == {"cat": 2, "dog": 0}
    assert index.counts("test") == {"cat": 1, "dog": 1}


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_validation_folder_has_several_names(image_folder, name):
    index = build_index(image_folder({"train": {"cat": 2}, name: {"cat": 1}}))
    assert index.counts("val") == {"cat": 1}


def test_class_of_only_one_split_is_a_class(image_folder):
    index = build_index(image_folder({"train": {"cat": 1}, "test": {"dog": 1}}))
    assert index.classes == ("cat", "dog")
    assert index.counts("train") == {"cat": 1, "dog": 0}


def test_class_that_is_called_like_a_split_stays_a_class(image_folder):
    index = build_index(image_folder({"test": 2, "cat": 1}))
    assert index.counts("train") == {"cat": 1, "test": 2}


def test_every_row_describes_its_image(tmp_path):
    put(tmp_path / "cat" / "a.png", png(5, (6, 4)))
    index = build_index(tmp_path)
    row = {name: index.column(name)[0] for name in SCHEMA.names}
    expected = {"id": 0, "path": "cat/a.png", "class": "cat", "split": "train", "width": 6, "height": 4}
    assert {name: row[name] for name in expected} == expected
    assert row["bytes"] == (tmp_path / "cat" / "a.png").stat().st_size
    assert len(row["hash"]) == 64
    assert (row["status"], row["reason"]) == ("ok", "")


def test_width_and_height_are_those_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "cat").mkdir()
    Image.new("L", (6, 4)).save(tmp_path / "cat" / "turned.png", exif=exif)
    index = build_index(tmp_path)
    assert (index.column("width")[0], index.column("height")[0]) == (4, 6)


def test_nested_files_belong_to_the_class_above(tmp_path):
    for path in ("cat/a.png", "cat/2024/b.png", "cat/2024/may/c.png", "dog/train/d.png"):
        put(tmp_path / path)
    index = build_index(tmp_path)
    assert index.counts("train") == {"cat": 3, "dog": 1}
    assert list(index.column("path")) == sorted(index.column("path"))


def test_empty_class_is_a_class(tmp_path):
    put(tmp_path / "cat" / "a.png")
    (tmp_path / "rare").mkdir()
    index = build_index(tmp_path)
    assert index.classes == ("cat", "rare")
    assert index.counts("train") == {"cat": 1, "rare": 0}
    assert inspect_index(index).imbalance is None


def test_bad_files_are_rows_with_their_reason(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)).save(whole, "JPEG")
    put(tmp_path / "cat" / "cut.jpg", whole.getvalue()[:-200])
    put(tmp_path / "cat" / "good.jpg", whole.getvalue())
    put(tmp_path / "cat" / "nothing.jpg", b"")
    put(tmp_path / "cat" / "text.jpg", b"just words")
    put(tmp_path / "cat" / "film.mp4", b"film")
    put(tmp_path / "cat" / "no-ending", b"?")
    (tmp_path / "cat" / "gone.jpg").symlink_to(tmp_path / "missing.jpg")
    index = build_index(tmp_path)
    found = reasons(index)
    assert found.pop("cat/cut.jpg").startswith("truncated")
    assert found.pop("cat/gone.jpg").startswith("cannot be read")
    assert found == {
        "cat/good.jpg": "",
        "cat/nothing.jpg": "zero-size file",
        "cat/text.jpg": "not an image",
        "cat/film.mp4": "not an image: unknown file ending",
        "cat/no-ending": "not an image: unknown file ending",
    }
    assert index.counts("train") == {"cat": 1}
    assert index.rows("train", "cat").tolist() == [list(index.column("path")).index("cat/good.jpg")]
    assert {bad.path for bad in inspect_index(index).bad} == set(index.column("path")) - {"cat/good.jpg"}


def test_content_decides_what_a_file_is_and_not_its_ending(tmp_path):
    put(tmp_path / "cat" / "really-png.jpg", png())
    assert reasons(build_index(tmp_path)) == {"cat/really-png.jpg": ""}


def test_data_set_of_bad_files_alone_is_indexed_and_inspected(tmp_path):
    put(tmp_path / "cat" / "text.jpg", b"words")
    inspection = inspect_index(build_index(tmp_path))
    assert inspection.counts == {}
    assert [(bad.path, bad.reason) for bad in inspection.bad] == [("cat/text.jpg", "not an image")]
    assert inspection.width_px == (0, 0, 0)


def test_hidden_and_system_files_are_passed_over(tmp_path):
    put(tmp_path / "cat" / "a.png")
    for path in (
        "cat/.hidden.png", "cat/.DS_Store", "cat/Thumbs.db", "cat/desktop.ini", "cat/.cache/b.png",
        "__MACOSX/cat/a.png", ".git/objects/c.png", ".d.png",
    ):  # fmt: skip
        put(tmp_path / path)
    index = build_index(tmp_path)
    assert index.classes == ("cat",)
    assert reasons(index) == {"cat/a.png": ""}


def test_image_outside_every_class_folder_is_a_row_with_a_reason(tmp_path):
    put(tmp_path / "train" / "cat" / "a.png")
    put(tmp_path / "train" / "lost.png")
    put(tmp_path / "loose.png")
    put(tmp_path / "README.md", b"words")
    index = build_index(tmp_path)
    assert reasons(index) == {
        "train/cat/a.png": "",
        "train/lost.png": "not in a class folder",
        "loose.png": "not in a class folder",
    }
    assert index.classes == ("cat",)


def test_name_that_is_not_utf8_is_a_row_with_a_reason(tmp_path):
    put(tmp_path / "cat" / "a.png")
    with open(os.fsencode(tmp_path / "cat") + b"/\xff.png", "wb") as file:
        file.write(png())
    index = build_index(tmp_path)
    assert reasons(index) == {"cat/a.png": "", "cat/\\xff.png": "file name is not UTF-8"}
    index.save(tmp_path / "index.parquet")


def test_symbolic_link_to_a_folder_is_followed(tmp_path):
    put(tmp_path / "elsewhere" / "b.png")
    put(tmp_path / "data" / "cat" / "a.png")
    (tmp_path / "data" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    index = build_index(tmp_path / "data")
    assert list(index.column("path")) == ["cat/a.png", "cat/more/b.png", "dog/b.png"]


@pytest.mark.parametrize("target", ["cat", "cat/deep", "."], ids=["to its class", "to itself", "to the root"])
def test_loop_of_symbolic_links_ends_and_no_image_changes_its_class(tmp_path, target):
    put(tmp_path / "cat" / "deep" / "a.png", png(1))
    put(tmp_path / "dog" / "b.png", png(2))
    (tmp_path / "cat" / "deep" / "loop").symlink_to(tmp_path / target)
    index = build_index(tmp_path)
    assert list(index.column("path")) == ["cat/deep/a.png", "dog/b.png"]


def test_named_pipe_is_a_row_with_a_reason_and_is_not_waited_for(tmp_path):
    put(tmp_path / "cat" / "a.png")
    pipe = tmp_path / "cat" / "pipe.png"
    os.mkfifo(pipe)
    built = []
    worker = threading.Thread(target=lambda: built.append(build_index(tmp_path)))
    worker.start()
    worker.join(5)
    waits = worker.is_alive()
    if waits:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        worker.join(5)
    assert not waits
    assert reasons(built[0])["cat/pipe.png"] != ""


def test_data_that_does_not_exist_or_has_no_classes_is_named(tmp_path):
    with pytest.raises(InputError, match="`data` does not exist") as caught:
        build_index(tmp_path / "none")
    assert str(tmp_path / "none") in str(caught.value)
    put(tmp_path / "flat" / "a.png")
    with pytest.raises(InputError, match="no class folders"):
        build_index(tmp_path / "flat")
    put(tmp_path / "notes.txt", b"words")
    with pytest.raises(InputError, match="unknown form"):
        build_index(tmp_path / "notes.txt")


def test_order_does_not_depend_on_the_order_of_writing(tmp_path):
    names = ["b/2.png", "a/10.png", "a/9.png", "c/x/1.png", "a/B.png"]
    for folder, order in (("one", names), ("two", names[::-1])):
        for name in order:
            put(tmp_path / folder / name, png(len(name)))
    one, two = build_index(tmp_path / "one"), build_index(tmp_path / "two")
    assert one.table.equals(two.table)
    assert list(one.column("path")) == sorted(names)
    assert list(one.column("id")) == list(range(len(names)))


def test_digits_have_the_counts_they_were_written_with(digits_folder):
    index = build_index(digits_folder)
    assert index.classes == tuple("0123456789")
    train = index.counts("train")
    assert {name for name, count in train.items() if count == 20} == {"3", "8", "9"}
    assert set(index.counts("test").values()) == {40}
    assert index.usable.all()
    inspection = inspect_index(index)
    assert inspection.imbalance == max(train.values()) / 20
    assert (inspection.width_px, inspection.height_px) == ((8, 8, 8), (8, 8, 8))
    assert inspection.leaks == ()


# Manifests


def write_csv(root, text, name="manifest.csv"):
    return put(root / name, text.encode())


def test_csv_manifest_without_splits_is_all_train(tmp_path):
    put(tmp_path / "x" / "1.png", png(1))
    put(tmp_path / "x" / "2.png", png(2))
    index = build_index(write_csv(tmp_path, "path,label\nx/2.png,dog\nx/1.png,cat\n"))
    assert list(index.column("path")) == ["x/1.png", "x/2.png"]
    assert list(index.column("class")) == ["cat", "dog"]
    assert set(index.column("split")) == {"train"}
    assert index.usable.all()


@pytest.mark.parametrize("form", ["manifest.csv", "manifest.tsv", "manifest.parquet"])
def test_every_form_of_manifest_gives_the_same_index(tmp_path, form):
    rows = [("1.png", "cat", "train"), ("2.png", "dog", "valid"), ("3.png", "cat", "Test"), ("4.png", "cat", "val")]
    for number, (path, _, _) in enumerate(rows):
        put(tmp_path / path, png(number))
    columns = {
        name: list(values) for name, values in zip(("path", "label", "split"), zip(*rows, strict=True), strict=True)
    }
    if form.endswith("parquet"):
        pq.write_table(pa.table(columns), tmp_path / form)
    else:
        separator = "," if form.endswith("csv") else "\t"
        write_csv(tmp_path, "".join(separator.join(row) + "\n" for row in [tuple(columns), *rows]), form)
    index = build_index(tmp_path / form)
    assert list(index.column("split")) == ["train", "val", "test", "val"]
    assert list(index.column("class")) == ["cat", "dog", "cat", "cat"]
    assert index.usable.all()


@pytest.mark.parametrize(
    "header",
    ["path,label,split", "Path,LABEL,Split", '"path","label","split"', "\ufeffpath,label,split", "path, label, split"],
)
def test_header_of_a_manifest_may_be_written_in_several_ways(tmp_path, header):
    put(tmp_path / "1.png")
    index = build_index(write_csv(tmp_path, f"{header}\n1.png,007,test\n"))
    assert (index.classes, index.column("split")[0]) == (("007",), "test")


def test_other_columns_of_a_manifest_do_not_matter(tmp_path):
    put(tmp_path / "1.png")
    index = build_index(write_csv(tmp_path, 'note,label,path\n"a, b",cat,1.png\n'))
    assert index.counts("train") == {"cat": 1}


def test_absolute_paths_of_a_manifest_are_taken_as_they_are(tmp_path):
    path = put(tmp_path / "elsewhere" / "1.png")
    index = build_index(write_csv(tmp_path / "data", f"path,label\n{path},cat\n"))
    assert index.usable.all()


@pytest.mark.parametrize("missing", ["path", "label"])
def test_missing_column_is_named_with_those_there(tmp_path, missing):
    header = [name if name != missing else "other" for name in ("path", "label")]
    with pytest.raises(InputError, match=f"no column '{missing}'") as caught:
        build_index(write_csv(tmp_path, f"{','.join(header)}\n1.png,cat\n"))
    assert "'other'" in str(caught.value)


def test_unknown_split_of_a_manifest_is_named(tmp_path):
    with pytest.raises(InputError, match="unknown split") as caught:
        build_index(write_csv(tmp_path, "path,label,split\n1.png,cat,holdout\n"))
    assert "'holdout'" in str(caught.value)
    assert "train" in str(caught.value)


def test_file_that_a_manifest_names_but_is_missing_is_a_row_with_a_reason(tmp_path):
    put(tmp_path / "here.png")
    index = build_index(write_csv(tmp_path, "path,label\nhere.png,cat\ngone.png,cat\n"))
    found = reasons(index)
    assert found["here.png"] == ""
    assert found["gone.png"].startswith("cannot be read")


def test_path_listed_twice_is_used_once(tmp_path):
    put(tmp_path / "1.png")
    index = build_index(write_csv(tmp_path, "path,label,split\n1.png,cat,train\n1.png,dog,test\n"))
    assert list(index.column("reason")) == ["", "listed twice"]
    assert list(index.column("class")) == ["cat", "dog"]
    assert index.usable.tolist() == [True, False]


@given(paths=st.lists(st.text("a/é😀 ", min_size=1, max_size=3), max_size=30), block=st.integers(1, 9))
def test_a_listing_is_in_the_order_of_paths_and_then_of_the_manifest(tmp_path_factory, paths, block):
    manifest = tmp_path_factory.getbasetemp() / "order.parquet"
    rows = [(path, str(number)) for number, path in enumerate(paths)]
    columns = {"path": pa.array(paths, pa.string()), "label": pa.array([label for _, label in rows], pa.string())}
    pq.write_table(pa.table(columns), manifest, row_group_size=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rebalance.index.image_index._BLOCK", block)
        listing = read_listing(manifest)
    entries = [entry for first in range(0, len(paths), 4) for entry in listing.entries(first, 4)]
    assert [(entry.path, entry.class_name) for entry in entries] == sorted(rows, key=lambda row: row[0])
    seen = set()
    for entry in entries:
        assert entry.reason == ("listed twice" if entry.path in seen else "")
        seen.add(entry.path)


def test_image_without_a_label_is_a_row_with_a_reason(tmp_path):
    put(tmp_path / "1.png")
    put(tmp_path / "2.png")
    index = build_index(write_csv(tmp_path, "path,label\n1.png,\n2.png,cat\n"))
    assert reasons(index) == {"1.png": "no label", "2.png": ""}
    assert index.classes == ("cat",)


def test_whole_number_labels_keep_their_numeric_order(tmp_path):
    for number in range(3):
        put(tmp_path / f"{number}.png")
    index = build_index(write_csv(tmp_path, "path,label\n0.png,10\n1.png,9\n2.png,2\n"))
    assert index.classes == ("2", "9", "10")
    index = build_index(write_csv(tmp_path, "path,label\n0.png,10\n1.png,9\n2.png,two\n"))
    assert index.classes == ("10", "9", "two")


def test_labels_of_numbers_in_parquet_are_classes(tmp_path):
    put(tmp_path / "0.png")
    put(tmp_path / "1.png")
    pq.write_table(pa.table({"path": ["0.png", "1.png"], "label": [10, 9]}), tmp_path / "m.parquet")
    assert build_index(tmp_path / "m.parquet").classes == ("9", "10")


@pytest.mark.parametrize("label", ["NA", "null", "nan", "None", "true", "1e5", "007", "3.10"])
def test_label_is_text_whatever_it_looks_like(tmp_path, label):
    put(tmp_path / "1.png")
    index = build_index(write_csv(tmp_path, f"path,label\n1.png,{label}\n"))
    assert index.classes == (label,)
    assert index.usable.all()


def test_sublabels_come_from_the_column_that_is_named(tmp_path):
    put(tmp_path / "1.png")
    put(tmp_path / "2.png")
    manifest = write_csv(tmp_path, "path,label,Breed\n1.png,dog,pug\n2.png,dog,\n")
    assert list(build_index(manifest, "breed").column("sublabel")) == ["pug", ""]
    assert list(build_index(manifest).column("sublabel")) == ["", ""]
    with pytest.raises(InputError, match="no column 'colour'"):
        build_index(manifest, "colour")


def test_sublabels_need_a_manifest(image_folder):
    with pytest.raises(InputError, match="needs a manifest"):
        build_index(image_folder({"cat": 1}), "breed")


@pytest.mark.parametrize(
    ("name", "content"),
    [("m.csv", b""), ("m.csv", b"path,label\na,b,c\n"), ("m.csv", b"path,label\n\xff,b\n"), ("m.parquet", b"words")],
    ids=["empty", "ragged", "not UTF-8", "no parquet"],
)
def test_manifest_that_cannot_be_read_is_named(tmp_path, name, content):
    with pytest.raises(InputError, match="cannot read the manifest") as caught:
        build_index(put(tmp_path / name, content))
    assert str(tmp_path / name) in str(caught.value)


# WebDataset shards


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def as_shards(index, root, label_file):
    """Write the usable images of an index as shards of three images, one file a split."""
    for split in SPLITS:
        rows = np.flatnonzero(index.usable & (index.column("split") == split))
        for start in range(0, len(rows), 3):
            members = []
            for row in rows[start : start + 3]:
                members.append((f"{row:06d}.png", index.read(int(row))))
                members.append((f"{row:06d}.{label_file[0]}", label_file[1](index.column("class")[row]).encode()))
            write_tar(root / f"{split}-{start // 3:06d}.tar", members)


LABEL_FILES = {
    "cls": ("cls", lambda name: name),
    "cls with a newline": ("cls", lambda name: f"{name}\n"),
    "json class": ("json", lambda name: json.dumps({"class": name, "width": 8})),
    "json label": ("json", lambda name: json.dumps({"label": name})),
}


@pytest.mark.parametrize("label_file", LABEL_FILES.values(), ids=LABEL_FILES)
def test_shards_hold_the_same_images_as_the_folder(image_folder, tmp_path, label_file):
    folder = build_index(image_folder({"train": {"cat": 5, "dog": 3}, "val": {"cat": 2}, "test": {"dog": 1}}))
    as_shards(folder, tmp_path, label_file)
    index = build_index(tmp_path)
    assert images_by_class(index) == images_by_class(folder)
    assert sum(images_by_class(index).values()) == 11
    assert index.classes == folder.classes
    for name in ("cat", "dog"):
        assert {index.read(int(row)) for row in index.rows("train", name)} == {
            folder.read(int(row)) for row in folder.rows("train", name)
        }
    row = int(index.rows("train", "cat")[0])
    assert np.asarray(index.load(row)).shape == (8, 8)
    assert index.name(row).startswith("train-000000.tar/")


def test_one_tar_file_is_a_data_set(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"0"), ("2.png", png(2)), ("2.cls", b"10")])
    put(tmp_path / "b.tar", b"other")
    index = build_index(tmp_path / "a.tar")
    assert index.counts("train") == {"0": 1, "10": 1}


def test_class_name_in_json_goes_before_the_number_in_cls(tmp_path):
    members = [("1.png", png(1)), ("1.cls", b"0"), ("1.json", b'{"class": "cat"}')]
    for order in (members, members[::-1]):
        assert build_index(write_tar(tmp_path / "a.tar", order)).classes == ("cat",)


def test_number_labels_of_shards_keep_their_numeric_order(tmp_path):
    members = [(f"{n}.{end}", data) for n in (10, 9, 2) for end, data in (("png", png(n)), ("cls", str(n).encode()))]
    assert build_index(write_tar(tmp_path / "a.tar", members)).classes == ("2", "9", "10")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-000000.tar", "train"),
        ("val-000000.tar", "val"),
        ("valid-000000.tar", "val"),
        ("test-000000.tar", "test"),
        ("test/000000.tar", "test"),
        ("Validation/shard-0.tar", "val"),
        ("test_000000.tar", "test"),
        ("test.tar", "test"),
        ("val.000.tar", "val"),
        ("shard-000000.tar", "train"),
        ("latest-000000.tar", "train"),
    ],
)
def test_split_of_a_shard_is_that_of_its_name(tmp_path, name, split):
    write_tar(tmp_path / name, [("1.png", png()), ("1.cls", b"cat")])
    assert list(build_index(tmp_path).column("split")) == [split]


def test_faults_inside_a_shard_are_rows_with_a_reason(tmp_path):
    members = [
        ("ok.png", png(1)), ("ok.cls", b"cat"),
        ("alone.png", png(2)),
        ("twice.png", png(3)), ("twice.png", png(4)), ("twice.cls", b"cat"),
        ("text.jpg", b"words"), ("text.cls", b"cat"),
        ("null.png", png(5)), ("null.json", b'{"class": null}'),
        ("list.png", png(6)), ("list.json", b"[1]"),
        ("cut.png", png(7)), ("cut.json", b'{"class": "ca'),
        ("note.txt", b"words"),
    ]  # fmt: skip
    index = build_index(write_tar(tmp_path / "a.tar", members))
    found = dict(zip(index.column("member"), index.column("reason"), strict=True))
    no_label = "no .cls and no .json label"
    assert found == {
        "ok.png": "", "alone.png": no_label, "twice.png": "key occurs twice in its shard", "text.jpg": "not an image",
        "null.png": no_label, "list.png": no_label, "cut.png": no_label,
    }  # fmt: skip
    assert index.classes == ("cat",)
    assert index.counts("train") == {"cat": 1}


def test_damaged_shard_is_named(tmp_path):
    put(tmp_path / "broken.tar", b"no tar file" * 100)
    with pytest.raises(InputError, match="cannot read the shard") as caught:
        build_index(tmp_path)
    assert "broken.tar" in str(caught.value)


def test_tar_file_beside_class_folders_does_not_replace_them(image_folder):
    root = image_folder({"cat": 2})
    write_tar(root / "original.tar", [("1.png", png()), ("1.cls", b"x")])
    assert build_index(root).counts("train") == {"cat": 2}


# The table


def test_index_saved_and_read_is_the_same(image_folder, tmp_path):
    root = image_folder({"train": {"cat": 2, "rare": 0}, "test": {"cat": 1}})
    put(root / "train" / "cat" / "Ünï, code.jpg", b"words")
    index = build_index(root)
    index.save(tmp_path / "index.parquet")
    again = ImageIndex.read_from(tmp_path / "index.parquet")
    assert again.table.equals(index.table)
    assert (again.root, again.classes, again.fingerprint) == (index.root, index.classes, index.fingerprint)
    assert again.classes == ("cat", "rare")
    assert pq.read_table(tmp_path / "index.parquet").column_names == SCHEMA.names


@pytest.mark.parametrize("content", [None, b"", b"words"])
def test_damaged_index_is_named(tmp_path, content):
    if content is not None:
        put(tmp_path / "index.parquet", content)
    with pytest.raises(DamagedError, match=r"index\.parquet is missing or damaged"):
        ImageIndex.read_from(tmp_path / "index.parquet")


def test_parquet_of_something_else_is_damage(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "index.parquet")
    with pytest.raises(DamagedError):
        ImageIndex.read_from(tmp_path / "index.parquet")


def changed_bytes(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1], lambda data: data + b"\0", changed_bytes, lambda data: png(9, (99, 99))],
    ids=["shorter", "longer", "other bytes", "another image"],
)
def test_changed_file_is_not_read(image_folder, change):
    root = image_folder({"cat": 2})
    index = build_index(root)
    path = root / index.column("path")[1]
    path.write_bytes(change(path.read_bytes()))
    assert index.read(0) == (root / index.column("path")[0]).read_bytes()
    for read in (index.read, index.load):
        with pytest.raises(InputError, match="has changed since it was indexed") as caught:
            read(1)
        assert path.name in str(caught.value)


def test_file_that_has_gone_is_named(image_folder):
    root = image_folder({"cat": 1})
    index = build_index(root)
    (root / index.column("path")[0]).unlink()
    with pytest.raises(InputError, match="cannot read") as caught:
        index.read(0)
    assert index.column("path")[0] in str(caught.value)


def test_moved_data_set_is_the_same(image_folder, tmp_path):
    root = image_folder({"cat": 2, "dog": 1})
    index = build_index(root)
    shutil.copytree(root, tmp_path / "moved")
    assert build_index(tmp_path / "moved").fingerprint == index.fingerprint
    assert index.moved_to(tmp_path / "moved").read(2) == index.read(2)


def fingerprint_after(root, change):
    change(root)
    return build_index(root).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda root: put(root / "cat" / "0000.png", png(200)),
        lambda root: put(root / "cat" / "new.png", png(200)),
        lambda root: (root / "cat" / "0000.png").unlink(),
        lambda root: (root / "cat" / "0000.png").rename(root / "dog" / "9999.png"),
        lambda root: (root / "empty").mkdir(),
    ],
    ids=["content", "added", "removed", "other class", "new class"],
)
def test_fingerprint_tells_another_data_set(image_folder, change):
    root = image_folder({"cat": 2, "dog": 2})
    before = build_index(root).fingerprint
    assert build_index(root).fingerprint == before
    assert fingerprint_after(root, change) != before


@pytest.mark.parametrize("block", [1, 4, 1000])
def test_fingerprint_stays_that_of_the_runs_there_are(monkeypatch, block):
    monkeypatch.setattr("rebalance.index.image_index._BLOCK", block)
    index = in_memory({"cat": 6, "ünï": 3, "none": 0}, split=["train"] * 8 + ["test"], statuses=["bad"] + ["ok"] * 8)
    assert index.fingerprint == "7ca0af24c313fd9e82fda99f3f32128573b8b7ab95de3e25197178882706e43c"


def test_fingerprint_tells_another_split(image_folder):
    train, val = image_folder({"train": {"cat": 3}}), image_folder({"train": {"cat": 3}})
    (val / "val").mkdir()
    (val / "train" / "cat" / "0002.png").rename(put(val / "val" / "cat" / "0002.png"))
    assert build_index(train).fingerprint != build_index(val).fingerprint


# Copies


def test_copies_across_splits_are_leaks_and_copies_within_are_counted(tmp_path):
    for path in ("train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "val/cat/d.png"):
        put(tmp_path / path, png(1))
    put(tmp_path / "train/cat/e.png", png(2))
    put(tmp_path / "test/cat/f.png", png(3))
    put(tmp_path / "test/cat/g.png", png(3))
    inspection = inspect_index(build_index(tmp_path))
    (leak,) = inspection.leaks
    assert sorted(leak.paths) == ["test/cat/c.png", "train/cat/a.png", "train/dog/b.png", "val/cat/d.png"]
    assert set(leak.splits) == {"train", "val", "test"}
    assert inspection.n_duplicates == 2


def test_different_images_and_equal_bad_files_are_no_copies(tmp_path):
    put(tmp_path / "train/cat/a.png", png(1))
    put(tmp_path / "test/cat/b.png", png(2))
    put(tmp_path / "train/cat/x.jpg", b"words")
    put(tmp_path / "test/cat/y.jpg", b"words")
    inspection = inspect_index(build_index(tmp_path))
    assert (inspection.leaks, inspection.n_duplicates) == ((), 0)


@given(contents=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(SPLITS)), min_size=1, max_size=30))
def test_copies_are_counted_as_by_hand(contents):
    index = in_memory(
        {"cat": len(contents)}, split=[split for _, split in contents], hashes=[f"{c:064x}" for c, _ in contents]
    )
    inspection = inspect_index(index)
    splits = {content: {s for c, s in contents if c == content} for content, _ in contents}
    assert len(inspection.leaks) == sum(len(found) > 1 for found in splits.values())
    assert inspection.n_duplicates == len(contents) - len(set(contents))
    assert {frozenset(leak.splits) for leak in inspection.leaks} == {
        frozenset(found) for found in splits.values() if len(found) > 1
    }


def test_inspection_shows_counts_sizes_and_imbalance(tmp_path):
    for number, size in enumerate([(4, 8), (6, 8), (20, 9)]):
        put(tmp_path / "cat" / f"{number}.png", png(number, size))
    put(tmp_path / "dog" / "x.png", png(9, (5, 5)))
    inspection = inspect_index(build_index(tmp_path))
    assert inspection.counts == {"train": {"cat": 3, "dog": 1}}
    assert inspection.imbalance == 3
    assert (inspection.width_px[0], inspection.width_px[2]) == (4, 20)
    assert inspection.height_px == (5, 8, 9)
    assert json.loads(json.dumps(inspection.to_json()))["counts"] == inspection.counts


# Validation


SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=5)
FRACTIONS = st.floats(0, 1)


@given(sizes=SIZES, fraction=FRACTIONS, seed=st.integers(0, 2**31 - 1))
def test_carving_takes_the_share_of_every_class_and_leaves_train_one(sizes, fraction, seed):
    counts = {f"class {number}": size for number, size in enumerate(sizes)}
    carved = carve_validation(in_memory(counts), fraction, seed)
    train, val = carved.counts("train"), carved.counts("val")
    for name, n in counts.items():
        assert train[name] + val[name] == n
        assert train[name] >= min(n, 1)
        assert n * fraction - 1 - 1e-9 < val[name] <= n * fraction + 1e-9
    assert carved.counts("test") == dict.fromkeys(counts, 0)


@given(sizes=SIZES, fraction=FRACTIONS, seed=st.integers(0, 2**31 - 1))
def test_carving_changes_nothing_but_the_split_and_again_gives_the_same(sizes, fraction, seed):
    index = in_memory({f"class {number}": size for number, size in enumerate(sizes)})
    carved = carve_validation(index, fraction, seed)
    assert carved.table.drop_columns("split").equals(index.table.drop_columns("split"))
    assert carved.table.schema.equals(index.table.schema)
    assert carve_validation(index, fraction, seed).table.equals(carved.table)
    assert set(index.column("split")) <= {"train"}


@given(contents=st.lists(st.integers(0, 15), min_size=1, max_size=40), fraction=FRACTIONS, seed=st.integers(0, 99))
def test_no_exact_copy_of_a_train_image_is_carved(contents, fraction, seed):
    half = len(contents) // 2
    counts = {"a": half, "b": len(contents) - half}
    carved = carve_validation(in_memory(counts, hashes=[f"{c:064x}" for c in contents]), fraction, seed)
    hashes, split = carved.column("hash"), carved.column("split")
    assert not set(hashes[split == "val"]) & set(hashes[split == "train"])
    assert inspect_index(carved).leaks == ()


def test_copies_stay_in_train_and_the_rest_is_carved():
    index = in_memory({"a": 6, "b": 6}, hashes=[*"112345", *"167890"])
    carved = carve_validation(index, 0.5, 0)
    assert carved.counts("val") == {"a": 3, "b": 3}
    assert set(carved.column("split")[[0, 1, 6]]) == {"train"}
    carved = carve_validation(in_memory({"a": 4}, hashes=[*"1122"]), 0.5, 0)
    assert carved.counts("val") == {"a": 0}


def test_another_seed_carves_other_images():
    index = in_memory({"cat": 200})
    splits = [carve_validation(index, 0.1, seed).rows("val", "cat").tolist() for seed in (0, 1)]
    assert splits[0] != splits[1]
    assert [len(rows) for rows in splits] == [20, 20]


@given(sizes=SIZES, fraction=st.floats(0.05, 0.6), seed=st.integers(0, 99), least=st.integers(0, 2))
def test_parts_are_as_large_and_take_turns(sizes, fraction, seed, least):
    counts = {f"class {number}": size for number, size in enumerate(sizes)}
    index = in_memory(counts)

    def val(part: int, name: str) -> list[int]:
        return carve_validation(index, fraction, seed, part=part, least=least).rows("val", name).tolist()

    for name, n in counts.items():
        first, second = val(0, name), val(1, name)
        assert len(first) == len(second) < max(n, 1) and len(first) >= int(n >= 3 * least) * min(least, n - 1)
        if 2 * len(first) <= n:
            assert not set(first) & set(second)
        if first and len(counts) == 1:
            assert {row for part in range(-(-n // len(first))) for row in val(part, name)} == set(range(n))
        if least == 0:
            assert first == carve_validation(index, fraction, seed).rows("val", name).tolist()


def test_carved_images_are_spread_over_the_class():
    rows = carve_validation(in_memory({"cat": 1000}), 0.2, 0).rows("val", "cat")
    assert rows.min() < 200
    assert rows.max() > 800


def test_choice_within_a_class_does_not_depend_on_the_other_classes_sizes():
    alone = carve_validation(in_memory({"a": 50, "b": 0}), 0.2, 3).rows("val", "a")
    beside = carve_validation(in_memory({"a": 50, "b": 99}), 0.2, 3).rows("val", "a")
    assert alone.tolist() == beside.tolist()


def test_nothing_is_carved_where_a_validation_split_exists():
    index = in_memory({"cat": 20}, split=["train"] * 19 + ["val"])
    assert carve_validation(index, 0.5, 0).table.equals(index.table)


def test_nothing_is_carved_at_fraction_zero():
    index = in_memory({"cat": 20})
    assert carve_validation(index, 0, 0).table.equals(index.table)


def test_bad_and_test_images_are_never_carved():
    statuses = ["bad"] * 20 + ["ok"] * 40
    index = in_memory({"cat": 60}, split=["train"] * 40 + ["test"] * 20, statuses=statuses)
    carved = carve_validation(index, 0.5, 0)
    assert carved.counts("val") == {"cat": 10}
    assert (carved.column("split")[:20] == "train").all()
    assert (carved.column("split")[40:] == "test").all()


def test_rows_name_usable_images_in_order():
    index = in_memory({"a": 3, "b": 2}, statuses=["ok", "bad", "ok", "ok", "ok"])
    assert index.rows("train", "a").tolist() == [0, 2]
    assert index.rows("train", "b").tolist() == [3, 4]
    assert index.rows("val", "a").tolist() == []
    assert dataclasses.replace(index, root=Path("/else")).counts("train") == {"a": 2, "b": 2}


# The cache


@pytest.fixture
def looked_at(monkeypatch, tmp_path):
    """Names of the files that are decoded, in a cache of the test's own, where files count as settled at once."""
    monkeypatch.setenv("REBALANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_SETTLED_NS", -(10**12))
    names, look = [], building._examined

    def noting(root, entry):
        names.append(f"{entry.path}{entry.member}")
        return look(root, entry)

    monkeypatch.setattr(building, "_examined", noting)
    return names


def test_an_unchanged_data_set_is_not_decoded_again(image_folder, looked_at):
    root = image_folder({"a": 300, "b": 3})
    put(root / "b" / "text.jpg", b"words")
    first = build_index(root)
    assert len(looked_at) == 304
    looked_at.clear()
    again = build_index(root)
    assert looked_at == ["b/text.jpg"], "what is bad may have been so for a moment only"
    assert again.table.equals(first.table) and again.fingerprint == first.fingerprint


def test_only_new_and_changed_files_are_decoded_again(image_folder, monkeypatch, looked_at):
    root = image_folder({"a": 3, "b": 3})
    build_index(root)
    looked_at.clear()
    put(root / "a" / "new.png", png(1))
    put(root / "b" / "0001.png", png(2))
    (root / "b" / "0002.png").unlink()
    found = build_index(root)
    assert sorted(looked_at) == ["a/new.png", "b/0001.png"]
    looked_at.clear()
    assert build_index(root).table.equals(found.table) and looked_at == []
    monkeypatch.setenv("REBALANCE_CACHE", "")
    assert build_index(root).table.equals(found.table) and len(looked_at) == 6


@pytest.mark.parametrize("part", [1, 7, 1000])
def test_the_cache_is_the_same_whatever_the_parts_it_is_written_in(image_folder, monkeypatch, looked_at, part):
    root = image_folder({"a": 20, "b": 9, "c": 20})
    put(root / "b" / "0003.png", b"words")
    monkeypatch.setattr(cache, "_PART", part)
    monkeypatch.setattr(building, "_CHUNK", part)
    first = build_index(root)
    (remembered,) = Path(os.environ["REBALANCE_CACHE"]).iterdir()
    assert pq.read_table(remembered).column("path").to_pylist() == first.column("path")[first.usable].tolist()
    written_ns = remembered.stat().st_mtime_ns
    looked_at.clear()
    assert build_index(root).table.equals(first.table) and looked_at == ["b/0003.png"]
    assert remembered.stat().st_mtime_ns == written_ns, "what is the same is not written again"
    for path in [*root.glob("a/*"), *root.glob("c/001*")]:
        path.unlink()
    put(root / "aa" / "0.png", png(1))
    looked_at.clear()
    assert build_index(root).counts("train") == {"a": 0, "aa": 1, "b": 8, "c": 10}
    assert sorted(looked_at) == ["aa/0.png", "b/0003.png"]
    assert pq.read_table(remembered).num_rows == 19


def test_a_replaced_file_of_the_same_size_and_time_is_decoded_again(image_folder, looked_at):
    root = image_folder({"a": 2})
    first, path = build_index(root), root / "a" / "0000.png"
    status, data = path.stat(), path.read_bytes()
    looked_at.clear()
    put(root / "a" / "other", data[:-1] + b"\0")
    os.utime(root / "a" / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(root / "a" / "other", path)
    assert build_index(root).fingerprint != first.fingerprint and looked_at == ["a/0000.png"]


def test_members_of_shards_are_remembered_until_the_shard_changes(tmp_path, looked_at):
    tar = write_tar(tmp_path / "data" / "a.tar", [("1.png", png(1)), ("1.cls", b"cat")])
    build_index(tar)
    looked_at.clear()
    build_index(tar)
    assert looked_at == []
    write_tar(tar, [("1.png", png(1)), ("1.cls", b"cat"), ("2.png", png(2)), ("2.cls", b"cat")])
    assert build_index(tar).counts("train") == {"cat": 2} and len(looked_at) == 2


def test_files_changed_just_before_are_looked_at_again(image_folder, monkeypatch, looked_at):
    monkeypatch.setattr(cache, "_SETTLED_NS", 2_000_000_000)
    root = image_folder({"a": 2})
    build_index(root)
    looked_at.clear()
    build_index(root)
    assert len(looked_at) == 2, "their next change might have the same time"


@pytest.mark.parametrize("content", [b"", b"PAR1 no table", None])
def test_a_cache_that_is_damaged_or_cannot_be_written_costs_time_only(image_folder, monkeypatch, looked_at, content):
    root, folder = image_folder({"a": 2}), Path(os.environ["REBALANCE_CACHE"])
    if content is None:
        put(folder, b"a file where the folder should be")
    else:
        build_index(root)
        put(next(folder.iterdir()), content)
    looked_at.clear()
    assert build_index(root).counts("train") == {"a": 2} and len(looked_at) == 2


def test_a_member_of_negative_size_is_not_read_for_ever(tmp_path):
    member = tarfile.TarInfo("1.png")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    put(tmp_path / "a.tar", bytes(header) + bytes(2048))
    with pytest.raises(InputError, match="cannot read the shard"):
        build_index(tmp_path / "a.tar")


def test_an_interrupt_ends_indexing_soon(image_folder, monkeypatch, looked_at):
    root = image_folder({"a": 60})
    monkeypatch.setattr(building, "_CHUNK", 1)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(building.tqdm, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_index(root)
    assert len(looked_at) < 30
