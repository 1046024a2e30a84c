"""The interface of a storage: everything that stations ask of a disk or of an object store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class FileStatus:
    """Facts about a file that tell it from a changed one.

    Attributes:
        size: bytes.
        modified_ns: time of the last change of its contents.
        changed_ns: time of the last change of its entry, which no program can set back.
        inode: number of its entry.
        regular: whether it is a file, not a pipe or a device.
    """

    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    regular: bool


class Storage(ABC):
    """Files by path. Nothing is ever half-visible: what is written appears in one step, or not at all."""

    @abstractmethod
    def read(self, path: Path, offset: int = 0, size: int | None = None) -> bytes:
        """Return the bytes of a file, or `size` of them from `offset` on, fewer at its end.

        Raises:
            OSError: it cannot be read.
        """

    @abstractmethod
    def opened(self, path: Path) -> AbstractContextManager[IO[bytes]]:
        """Yield a file, open for reading."""

    @abstractmethod
    def appending(self, path: Path) -> AbstractContextManager[IO[bytes]]:
        """Yield a file, open for appending; its folder is made if it does not exist."""

    @abstractmethod
    def truncate(self, path: Path, size: int) -> None:
        """Cut a file to its first `size` bytes."""

    @abstractmethod
    def replacing(self, path: Path) -> AbstractContextManager[Path]:
        """Yield a temporary local path; on success its contents become those of `path`, durably and in one step.

        Raises:
            RebalanceError: the place is full or cannot be written; `path` is then as it was.
        """

    @abstractmethod
    def replacing_folder(self, path: Path) -> AbstractContextManager[Path]:
        """Yield a temporary local folder; on success it becomes `path`, durably and in one step."""

    @abstractmethod
    def status(self, path: Path) -> FileStatus:
        """Return the facts about a file, of the one that a link names.

        Raises:
            OSError: there is none.
        """

    @abstractmethod
    def is_file(self, path: Path) -> bool:
        """Return whether a path is a file."""

    @abstractmethod
    def is_folder(self, path: Path) -> bool:
        """Return whether a path is a folder."""

    @abstractmethod
    def names(self, folder: Path) -> list[str]:
        """Return the names in a folder, sorted.

        Raises:
            OSError: it cannot be read.
        """

    @abstractmethod
    def find(self, folder: Path, pattern: str) -> list[Path]:
        """Return the files anywhere below a folder whose names match a pattern, sorted."""

    @abstractmethod
    def walk(
        self, folder: Path, follow_links: bool = False, on_error: Callable[[OSError], object] | None = None
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield each folder below a folder with the names of its folders and files, as `os.walk` does.

        Args:
            folder: where to begin.
            follow_links: enter folders that links name too. The caller may shorten the list of folders.
            on_error: is told of a folder that cannot be read; None passes it over.
        """

    @abstractmethod
    def real_path(self, path: str | Path) -> str:
        """Return the absolute path of a file or folder, links followed; equal for two names of one folder."""

    @abstractmethod
    def reserve(self, path: Path) -> None:
        """Have the disk keep room for all bytes of a sparse file, so that a full one is noticed at once."""

    @abstractmethod
    def linked(self, path: Path, name: str) -> AbstractContextManager[Path]:
        """Yield a temporary local folder in which a file has another name."""

    @abstractmethod
    def touch(self, path: Path) -> None:
        """Set the time of a file's last change to now."""

    @abstractmethod
    def remove_file(self, path: Path) -> None:
        """Remove a file if it is there."""

    @abstractmethod
    def remove_folder(self, path: Path) -> None:
        """Remove a folder with everything below it, as far as it is there."""

    @abstractmethod
    def move(self, path: Path, target: Path) -> None:
        """Give a file another name in the same storage, replacing what has that name."""

    @abstractmethod
    def sync(self, path: Path) -> None:
        """Force a file or folder to the disk."""

    @abstractmethod
    def locked(self, folder: Path, *, shared: bool = False, wait: bool = False) -> AbstractContextManager[None]:
        """Hold a folder for this process alone; it is made if it does not exist.

        Args:
            folder: the folder.
            shared: let others in that also ask to share.
            wait: wait until whoever holds it has ended, instead of an error.

        Raises:
            RefusedError: another process holds it.
        """

    @abstractmethod
    def remove_partials(self, folder: Path) -> None:
        """Remove what killed processes left half-written anywhere below a folder."""
