"""Storage: the only room that touches a disk, and what it promises."""

import ast
from pathlib import Path

import pytest
from toys import write_classes

import rebalance
from rebalance import storage
from rebalance.errors import InputError, RebalanceError
from rebalance.storage.local import LocalStorage

PACKAGE = Path(rebalance.__file__).parent

PATH_METHODS = {
    "open", "glob", "rglob", "is_file", "is_dir", "exists", "iterdir", "mkdir", "rmdir", "unlink", "rename", "touch",
    "stat", "lstat", "is_symlink", "read_bytes", "read_text", "write_bytes", "write_text", "symlink_to", "hardlink_to",
}  # fmt: skip
OS_FUNCTIONS = {
    "replace", "rename", "renames", "remove", "unlink", "mkdir", "makedirs", "listdir", "scandir", "walk", "stat",
    "open", "truncate", "utime", "rmdir", "symlink", "link", "fsync", "removedirs", "lstat", "access", "chmod",
    "readlink", "posix_fallocate",
}  # fmt: skip
OS_PATH_FUNCTIONS = {"isfile", "isdir", "exists", "lexists", "getsize", "getmtime", "getctime", "islink", "realpath"}
MODULES_OF_FILES = {"shutil", "tempfile"}
# Readers of libraries, which would pass by the storage if they were given a path; they take an opened file.
READERS = {"pq.read_table", "pa_csv.read_csv"}
OPENED = "file"
# Calls of these names that touch no path: a picture in memory, an opened archive, the package's own module.
HARMLESS_BASES = {"Image", "storage"}
# Where clean-fid looks for its weights is the folder of temporary files, whose name alone is asked.
EXCEPTIONS = {("measures/features.py", "tempfile.gettempdir")}


def touched(call: ast.Call) -> str:
    """Return the name of a call that touches a file by its path, "" for any other."""
    function = call.func
    if isinstance(function, ast.Name):
        return "open" if function.id == "open" else ""
    if not isinstance(function, ast.Attribute):
        return ""
    base = function.value.id if isinstance(function.value, ast.Name) else ""
    if base in MODULES_OF_FILES or (base == "os" and function.attr in OS_FUNCTIONS):
        return f"{base}.{function.attr}"
    if f"{base}.{function.attr}" in READERS:
        return "" if ast.unparse(call.args[0]) == OPENED else f"{base}.{function.attr}"
    if base == "tarfile":
        by_path = function.attr == "open" and not any(keyword.arg == "fileobj" for keyword in call.keywords)
        return "tarfile.open" if by_path else ""
    if isinstance(function.value, ast.Attribute) and ast.unparse(function.value) == "os.path":
        return f"os.path.{function.attr}" if function.attr in OS_PATH_FUNCTIONS else ""
    if function.attr in PATH_METHODS and base not in HARMLESS_BASES and base != "os":
        return f".{function.attr}"
    return ""


def touches(path: Path) -> list[tuple[str, str, int]]:
    name = path.relative_to(PACKAGE).as_posix()
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return [(name, touched(call), call.lineno) for call in calls if touched(call)]


def imported_by_name(path: Path) -> list[str]:
    """Return the modules of files from which names are imported: the search sees only calls through a module."""
    imports = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom))
    return [str(node.module) for node in imports if node.module in {*MODULES_OF_FILES, "os", "os.path"}]


def test_nothing_outside_the_storage_touches_a_file():
    modules = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "storage" not in path.parents]
    assert len(modules) > 50
    calls = [call for path in modules for call in touches(path)]
    assert not [call for call in calls if call[:2] not in EXCEPTIONS]
    assert {call[:2] for call in calls} == EXCEPTIONS, "an exception that nothing needs any more"
    assert not [path for path in modules if imported_by_name(path)]


def test_the_search_for_touched_files_sees_every_kind(tmp_path):
    code = "open(p)\np.read_bytes()\nos.replace(a, b)\nshutil.rmtree(p)\nos.path.isfile(p)\ntarfile.open(p)\n"
    code += "os.path.realpath(p)\npq.read_table(p)\n"
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert all(touched(call) for call in calls)
    harmless = "storage.read_bytes(p)\nImage.open(buffer)\ntarfile.open(fileobj=file)\nos.path.join(a, b)\n"
    harmless += "pq.read_table(file)\n"
    assert not any(touched(node) for node in ast.walk(ast.parse(harmless)) if isinstance(node, ast.Call))


@pytest.mark.parametrize(
    "url", ["s3://bucket/data", "gs://bucket", "https://host/x", "S3://bucket", Path("s3://bucket")]
)
def test_urls_are_refused_with_what_is_allowed(url):
    with pytest.raises(InputError, match=r"a URL is no path here.*a path of this machine"):
        storage.storage_of(url)


URL = "s3://bucket/data"
CALLS_WITH_A_URL = {
    "inspect": lambda folder: rebalance.inspect(URL),
    "plan": lambda folder: rebalance.plan(URL, "digits-cpu", device="cpu"),
    "plan, recipe": lambda folder: rebalance.plan(folder, f"{URL}.yaml", device="cpu"),
    "fit, data": lambda folder: rebalance.fit(URL, folder.parent / "run", "digits-cpu", device="cpu"),
    "fit, run": lambda folder: rebalance.fit(folder, URL, "digits-cpu", device="cpu"),
    "generate, run": lambda folder: rebalance.generate(URL, folder.parent / "out", device="cpu"),
    "filter, images": lambda folder: rebalance.filter(URL, folder, folder.parent / "out", device="cpu"),
    "filter, real": lambda folder: rebalance.filter(folder, URL, folder.parent / "out", device="cpu"),
    "filter, out": lambda folder: rebalance.filter(folder, folder, URL, device="cpu"),
    "verify": lambda folder: rebalance.verify(URL),
    "evaluate, synthetic": lambda folder: rebalance.evaluate(URL, folder, device="cpu"),
    "evaluate, real": lambda folder: rebalance.evaluate(folder, URL, device="cpu"),
    "downstream, data": lambda folder: rebalance.downstream(URL, folder, device="cpu"),
    "downstream, synthetic": lambda folder: rebalance.downstream(folder, URL, device="cpu"),
    "downstream, results": lambda folder: rebalance.downstream(folder, folder, results=URL, device="cpu"),
    "load_shards": lambda folder: rebalance.load_shards(URL),
}


@pytest.mark.parametrize("call", CALLS_WITH_A_URL.values(), ids=CALLS_WITH_A_URL)
def test_public_functions_refuse_a_url_and_write_nothing(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_classes(tmp_path / "data", {"a": 12, "b": 12, "poor": 4})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="a URL is no path here"):
        call(folder)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == []


@pytest.mark.parametrize("path", ["a", "/a/b:c", "./x:y", Path("data"), "C:/x", "a:b"])
def test_paths_are_local(path):
    assert isinstance(storage.storage_of(path), LocalStorage)


def test_a_range_is_read_and_ends_at_the_end(tmp_path):
    storage.write_bytes(tmp_path / "x", bytes(range(10)))
    assert storage.read_bytes(tmp_path / "x", 3, 4) == bytes([3, 4, 5, 6])
    assert storage.read_bytes(tmp_path / "x", 8, 10) == bytes([8, 9])
    assert storage.read_bytes(tmp_path / "x", 7) == bytes([7, 8, 9])


def test_lists_are_sorted_and_empty_where_there_is_nothing(tmp_path):
    for name in ("b.json", "a.json", "c.tar"):
        storage.write_bytes(tmp_path / name, b"")
    (tmp_path / "sub.json").mkdir()
    assert [path.name for path in storage.list_files(tmp_path, "*.json")] == ["a.json", "b.json"]
    assert [path.name for path in storage.list_folders(tmp_path, "*.json")] == ["sub.json"]
    assert storage.list_names(tmp_path) == ["a.json", "b.json", "c.tar", "sub.json"]
    assert storage.list_names(tmp_path / "none") == storage.list_files(tmp_path / "none") == []


def test_two_names_of_a_folder_have_one_real_path(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    assert storage.real_path(tmp_path / "link") == storage.real_path(str(tmp_path / "folder"))
    assert storage.is_inside(tmp_path / "link" / "file", tmp_path / "folder")
    assert not storage.is_inside(tmp_path, tmp_path / "folder")


def test_faults_are_injected_in_one_place(tmp_path, monkeypatch):
    """Every way of writing goes through the same step, so a test that breaks it breaks them all."""

    def fails(self: LocalStorage, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalStorage, "sync", fails)
    for number, write in enumerate(
        (
            lambda path: storage.write_bytes(path, b"x"),
            lambda path: storage.write_text(path, "x"),
            lambda path: storage.write_json(path, {}),
            lambda path: storage.write_sealed_json(path, {}),
        )
    ):
        with pytest.raises(RebalanceError, match="Free some space"):
            write(tmp_path / str(number))
    with pytest.raises(RebalanceError), storage.replacing_folder(tmp_path / "folder") as folder:
        (folder / "x").write_bytes(b"x")
    assert storage.list_names(tmp_path) == []
