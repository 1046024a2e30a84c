"""Files that are never half-visible, sealed JSON, and locks that die with their process."""

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rebalance
from rebalance import storage
from rebalance.errors import DamagedError, InputError, RebalanceError, RefusedError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def visible(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@contextlib.contextmanager
def other_process(code, *arguments):
    """Run Python code in another process; yield it once it has printed a line, and kill it at the end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(rebalance.__file__).parents[1])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


# Atomic files


def test_written_file_is_complete_and_alone(tmp_path):
    path = tmp_path / "new" / "folder" / "file.bin"
    storage.write_bytes(path, b"abc")
    assert path.read_bytes() == b"abc"
    assert visible(path.parent) == ["file.bin"]


def test_nothing_is_visible_under_the_name_while_writing(tmp_path):
    path = tmp_path / "file.txt"
    with storage.replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".")
    assert path.read_text() == "half"


@pytest.mark.parametrize("before", [None, "old"])
def test_exception_while_writing_leaves_the_folder_as_it_was(tmp_path, before):
    path = tmp_path / "file.txt"
    if before is not None:
        path.write_text(before)
    with pytest.raises(ZeroDivisionError), storage.replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert visible(tmp_path) == ([] if before is None else ["file.txt"])
    assert before is None or path.read_text() == before


def test_keyboard_interrupt_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), storage.replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert visible(tmp_path) == []


def test_content_reaches_the_disk_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def record_replace(source, target):
        events.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with storage.replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("x")
    assert events == [("fsync", temporary.name), ("rename", "file.txt"), ("fsync", tmp_path.name)]


def test_full_disk_is_named_with_its_remedy_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RebalanceError, match="No space left on device") as caught:
        storage.write_text(path, "new")
    assert str(path) in str(caught.value)
    assert "Free some space" in str(caught.value)
    assert path.read_text() == "old"
    assert visible(tmp_path) == ["file.txt"]


def test_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RebalanceError) as caught:
        storage.write_text(tmp_path / "file" / "below.txt", "y")
    assert str(tmp_path / "file" / "below.txt") in str(caught.value)


KILLED_WRITER = """
import sys, time
from pathlib import Path
from rebalance import storage
with storage.replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_killed_writer_leaves_nothing_under_the_name_and_its_rest_can_be_removed(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with other_process(KILLED_WRITER, path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not path.exists()
        assert len(visible(path.parent)) == 1
        storage.remove_partials(tmp_path)
        assert visible(path.parent) == []


def test_remove_partials_takes_files_and_folders_at_any_depth_and_nothing_else(tmp_path):
    with contextlib.suppress(ZeroDivisionError), storage.replacing(tmp_path / "a" / "x.tar") as partial_file:
        raise ZeroDivisionError
    with contextlib.suppress(ZeroDivisionError), storage.replacing_folder(tmp_path / "step-1") as partial_folder:
        raise ZeroDivisionError
    partial_file.write_text("half")
    (partial_folder / "inner").mkdir(parents=True, exist_ok=True)
    (partial_folder / "inner" / "weights").write_text("half")
    kept = ["a/x.tar", "a/.hidden", "x.partial", ".lock"]
    for name in kept:
        (tmp_path / name).write_text("whole")
    storage.remove_partials(tmp_path)
    assert visible(tmp_path) == sorted([*kept, "a"])


# Atomic folders


def test_folder_appears_whole(tmp_path):
    target = tmp_path / "runs" / "step-1"
    with storage.replacing_folder(target) as temporary:
        (temporary / "weights").write_text("w")
        assert not target.exists()
    assert visible(target.parent) == ["step-1", "step-1/weights"]


def test_exception_while_filling_a_folder_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), storage.replacing_folder(tmp_path / "step-1") as temporary:
        (temporary / "weights").write_text("w")
        raise ZeroDivisionError
    assert visible(tmp_path) == []


def test_rest_of_an_earlier_try_is_not_mixed_into_a_folder(tmp_path):
    with contextlib.suppress(ZeroDivisionError), storage.replacing_folder(tmp_path / "step-1") as temporary:
        raise ZeroDivisionError
    temporary.mkdir(exist_ok=True)
    (temporary / "stale").write_text("old")
    with storage.replacing_folder(tmp_path / "step-1") as temporary:
        (temporary / "weights").write_text("w")
    assert visible(tmp_path) == ["step-1", "step-1/weights"]


def test_existing_folder_is_never_replaced(tmp_path):
    target = tmp_path / "step-1"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(RebalanceError, match="step-1"), storage.replacing_folder(target) as temporary:
        (temporary / "weights").write_text("new")
    assert (target / "weights").read_text() == "old"
    assert visible(tmp_path) == ["step-1", "step-1/weights"]


def test_files_of_a_folder_reach_the_disk_before_its_name(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def record_rename(source, target):
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    with storage.replacing_folder(tmp_path / "step-1") as temporary:
        (temporary / "one").write_text("1")
        (temporary / "two").write_text("2")
    before = events[: events.index("rename")]
    assert sorted(before) == sorted(["one", "two", temporary.name])
    assert events[events.index("rename") + 1 :] == [tmp_path.name]


# JSON


@given(value=JSON)
def test_canonical_json_reads_back(value):
    assert json.loads(storage.canonical_json(value)) == value


@given(value=st.dictionaries(st.text(), JSON, max_size=6), seed=st.randoms())
def test_canonical_json_does_not_depend_on_the_order_of_keys(value, seed):
    keys = list(value)
    seed.shuffle(keys)
    assert storage.canonical_json({key: value[key] for key in keys}) == storage.canonical_json(value)


def test_json_file_reads_back_with_sorted_keys(tmp_path):
    value = {"b": [1, 2.5, None], "a": "Ä\n"}
    storage.write_json(tmp_path / "x.json", value)
    assert storage.read_json(tmp_path / "x.json") == value
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text.index('"a"') < text.index('"b"')
    assert "Ä" in text


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_number_that_json_has_not_is_never_written(tmp_path, number):
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(tmp_path / "x.json", {"loss": number})
    assert visible(tmp_path) == []


@pytest.mark.parametrize(
    "content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"plain text"], ids=["empty", "cut", "not UTF-8", "text"]
)
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="is damaged") as caught:
        storage.read_json(path)
    assert str(path) in str(caught.value)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(DamagedError, match=r"state\.json is missing"):
        storage.read_json(tmp_path / "state.json")


def test_folder_in_the_place_of_a_json_file_is_damage(tmp_path):
    with pytest.raises(DamagedError):
        storage.read_json(tmp_path)


def test_hash_of_a_file_longer_than_one_piece(tmp_path):
    data = os.urandom((1 << 20) + 12345)
    (tmp_path / "big").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert storage.sha256_file(tmp_path / "big") == expected
    assert storage.sha256_bytes(data) == expected


# Locks


HOLDER = """
import sys, time
from pathlib import Path
from rebalance import storage
with storage.locked(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_second_holder_in_another_process_is_refused_until_the_first_is_killed(tmp_path):
    with other_process(HOLDER, tmp_path) as process:
        with pytest.raises(RefusedError) as caught, storage.locked(tmp_path):
            pytest.fail("two holders of one lock")
        assert str(tmp_path) in str(caught.value)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        entered = False
        with storage.locked(tmp_path):
            entered = True
        assert entered


def test_shared_locks_let_each_other_in_but_no_exclusive_one(tmp_path):
    with storage.locked(tmp_path, shared=True):
        with storage.locked(tmp_path, shared=True):
            pass
        with pytest.raises(RefusedError, match="another process"), storage.locked(tmp_path):
            pass
    with (
        storage.locked(tmp_path),
        pytest.raises(RefusedError, match="another process"),
        storage.locked(tmp_path, shared=True),
    ):
        pass


def test_lock_is_free_again_after_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), storage.locked(tmp_path):
        raise ZeroDivisionError
    with storage.locked(tmp_path), pytest.raises(RefusedError), storage.locked(tmp_path):
        pytest.fail("two holders of one lock")


def test_lock_makes_its_folder(tmp_path):
    with storage.locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()


def test_existing_folder_says_what_is_there_instead(tmp_path):
    (tmp_path / "file").write_text("x")
    assert storage.existing_folder(tmp_path, "run") == tmp_path
    with pytest.raises(InputError, match="`run` is a file"):
        storage.existing_folder(tmp_path / "file", "run")
    with pytest.raises(InputError, match="`run` does not exist"):
        storage.existing_folder(tmp_path / "none", "run")
