"""A disk that remembers what is safe on it and what is not, and what may be found after the power was cut.

Two file systems: *journaled* (ext4, XFS: any fsync commits all changes of names before it) and *strict* (POSIX to
the letter: a name is safe once its directory was synced). Unsynced changes of names survive as a prefix, unsynced
pages of files in any combination.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096
_Change = Callable[[bytearray], None]


@dataclass(eq=False)
class File:
    """One inode: what is safe of it, and the changes since, in order."""

    safe: bytearray = field(default_factory=bytearray)
    now: bytearray = field(default_factory=bytearray)
    pending: list[_Change] = field(default_factory=list)

    def change(self, changes: list[_Change]) -> None:
        for each in changes:
            each(self.now)
        self.pending += changes

    def sync(self) -> None:
        self.safe = bytearray(self.now)
        self.pending.clear()


Names = dict[str, File]


def _writes(offset: int, data: bytes) -> list[_Change]:
    """Return one change for each page."""
    changes: list[_Change] = []
    while data:
        room = PAGE - offset % PAGE
        changes.append(lambda content, at=offset, part=data[:room]: _write(content, at, part))  # type: ignore[misc]
        offset, data = offset + room, data[room:]
    return changes


def _write(content: bytearray, at: int, part: bytes) -> None:
    content.extend(bytes(max(0, at - len(content))))
    content[at : at + len(part)] = part


def _cut(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


class Disk:
    """The files below one directory."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._names: Names = {}
        self._safe: Names = {}
        self._pending: list[Callable[[Names], None]] = []
        self._directories: list[str] = []

    def mkdir(self, path: str) -> None:
        self._directories.append(path)

    def create(self, path: str) -> None:
        if path not in self._names:
            file = File()
            self._rename(lambda names: names.update({path: file}))

    def write(self, path: str, offset: int, data: bytes) -> None:
        self._names[path].change(_writes(offset, data))

    def truncate(self, path: str, size: int) -> None:
        self._names[path].change([lambda content: _cut(content, size)])

    def content(self, path: str) -> bytes:
        return bytes(self._names[path].now)

    def rename(self, old: str, new: str) -> None:
        self._rename(lambda names: names.update({new: names.pop(old)} if old in names else {}))

    def unlink(self, path: str) -> None:
        def remove(names: Names) -> None:
            names.pop(path, None)

        self._rename(remove)

    def _rename(self, change: Callable[[Names], None]) -> None:
        change(self._names)
        self._pending.append(change)

    def sync(self, path: str) -> None:
        """The file or directory at *path* was synced."""
        if path in self._names:
            self._names[path].sync()
            if self._strict:
                return
        self._safe = dict(self._names)
        self._pending.clear()

    def image(self, target: Path, root: str, chance: random.Random | None, *, keep: float) -> None:
        """Write to *target* what may be found below *root*: of what is unsafe, each page with probability *keep*."""
        names = dict(self._safe)
        kept = len(self._pending) if keep == 1 else 0
        if chance is not None:
            kept = chance.randint(0, len(self._pending))
        for change in self._pending[:kept]:
            change(names)
        target.mkdir(mode=0o700)
        for path in self._directories:
            if path != root:
                (target / path[len(root) + 1 :]).mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, file in names.items():
            content = bytearray(file.safe)
            for page in file.pending:
                if keep == 1 or (chance is not None and chance.random() < keep):
                    page(content)
            (target / path[len(root) + 1 :]).write_bytes(content)
