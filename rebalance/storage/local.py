"""Local files: temporary name, fsync, rename; and locks that die with their process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from rebalance.errors import RebalanceError, RefusedError
from rebalance.storage.base import FileStatus, Storage

_TEMPORARY_SUFFIX = ".partial"
_TOKEN = os.urandom(4).hex()  # process numbers repeat among containers that share a disk
_LOCK = ".lock"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating-system error met while writing `path` into a message that names it."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            remedy = "Free some space and run the same command again; what was finished before is intact"
        else:
            remedy = "Check the path and its permissions and run the same command again"
        raise RebalanceError(f"cannot write {path}: {error.strerror or error}", remedy=remedy) from error


def _temporary(path: Path) -> Path:
    """Return a name of this process's own, so that none writes into another's file."""
    return path.with_name(f".{path.name}.{os.getpid()}-{_TOKEN}{_TEMPORARY_SUFFIX}")


class LocalStorage(Storage):
    """Files of this machine, or of a disk that it mounts."""

    def read(self, path: Path, offset: int = 0, size: int | None = None) -> bytes:
        """Return the bytes of a file, or `size` of them from `offset` on."""
        with open(path, "rb") as file:
            if offset:
                file.seek(offset)
            return file.read() if size is None else file.read(size)

    @contextlib.contextmanager
    def opened(self, path: Path) -> Iterator[IO[bytes]]:
        """Yield a file, open for reading."""
        with open(path, "rb") as file:
            yield file

    @contextlib.contextmanager
    def appending(self, path: Path) -> Iterator[IO[bytes]]:
        """Yield a file, open for appending."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab")  # noqa: SIM115
        try:
            yield file
        finally:
            with writing(path):
                file.close()

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file to its first `size` bytes."""
        with writing(path):
            os.truncate(path, size)

    @contextlib.contextmanager
    def replacing(self, path: Path) -> Iterator[Path]:
        """Yield a temporary path beside `path`; on success it is fsynced and renamed, else removed."""
        temporary = _temporary(path)
        try:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                yield temporary
                self.sync(temporary)
                os.replace(temporary, path)
                self.sync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def replacing_folder(self, path: Path) -> Iterator[Path]:
        """Yield a temporary folder beside `path`; on success it is fsynced and renamed, else removed."""
        temporary = _temporary(path)
        with writing(path):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            try:
                yield temporary
                for file in temporary.iterdir():
                    self.sync(file)
                self.sync(temporary)
                os.rename(temporary, path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            self.sync(path.parent)

    def status(self, path: Path) -> FileStatus:
        """Return the facts about a file."""
        facts = os.stat(path)
        regular = stat.S_ISREG(facts.st_mode)
        return FileStatus(facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, regular)

    def is_file(self, path: Path) -> bool:
        """Return whether a path is a file."""
        return os.path.isfile(path)

    def is_folder(self, path: Path) -> bool:
        """Return whether a path is a folder."""
        return os.path.isdir(path)

    def names(self, folder: Path) -> list[str]:
        """Return the names in a folder, sorted."""
        return sorted(os.listdir(folder))

    def find(self, folder: Path, pattern: str) -> list[Path]:
        """Return the files below a folder whose names match."""
        return sorted(path for path in folder.rglob(pattern) if path.is_file())

    def walk(
        self, folder: Path, follow_links: bool = False, on_error: Callable[[OSError], object] | None = None
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield each folder below a folder with the names in it."""
        return os.walk(folder, followlinks=follow_links, onerror=on_error)

    def real_path(self, path: str | Path) -> str:
        """Return the absolute path of a file or folder, links followed."""
        return os.path.realpath(path)

    def reserve(self, path: Path) -> None:
        """Allocate all blocks; else a full disk would end the process by a signal when a page is first touched."""
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))

    @contextlib.contextmanager
    def linked(self, path: Path, name: str) -> Iterator[Path]:
        """Yield a temporary folder with a symbolic link."""
        with tempfile.TemporaryDirectory() as folder:
            os.symlink(path.absolute(), Path(folder) / name)
            yield Path(folder)

    def touch(self, path: Path) -> None:
        """Set the time of a file's last change to now."""
        os.utime(path)

    def remove_file(self, path: Path) -> None:
        """Remove a file if it is there."""
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        """Remove a folder with everything below it."""
        shutil.rmtree(path, ignore_errors=True)

    def move(self, path: Path, target: Path) -> None:
        """Give a file another name."""
        with writing(target):
            os.replace(path, target)

    def sync(self, path: Path) -> None:
        """Force a file or folder to the disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def locked(self, folder: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
        """Hold a folder by `flock`; the kernel drops the lock when the process dies."""
        with writing(folder / _LOCK):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise RefusedError(
                    f"another process is working in {folder}", remedy="Wait until it has ended or choose another folder"
                ) from error
            yield
        finally:
            os.close(descriptor)

    def remove_partials(self, folder: Path) -> None:
        """Remove half-written files and folders."""
        for path in folder.rglob(f".*{_TEMPORARY_SUFFIX}"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
