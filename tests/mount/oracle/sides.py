"""The two trees that must not differ, as one process sees them. Runs in a child; the standard library only.

A step is done in the mount first, then in the local directory, by the same code. What comes of it (a value, or
the name of an errno) goes back for both. Everything is opened with O_NONBLOCK: on a fifo nobody is to wait.
"""

import ctypes
import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PAGE: Final = 4096
_NOT_COMPARED: Final = "user.cachefs."
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD: Final = -100
NOREPLACE: Final = 1
_OPENING: Final = os.O_CLOEXEC | os.O_NONBLOCK
_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes, as far as they must be carried to be compared."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What ``lstat`` shows of a file."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    mtime_ns: int
    atime_ns: int
    ino: int


@dataclass(frozen=True, slots=True)
class Found:
    """One name of a tree, with everything that a program can learn of it."""

    seen: Seen
    target: str | None
    content: Content | None
    attributes: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The errno that a step gave."""

    name: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a step gave on either side, and where their bytes differ first."""

    mount: Any
    local: Any
    note: str = ""


def content_of(data: bytes) -> Content:
    """Condense bytes."""
    return Content(len(data), hashlib.sha256(data).hexdigest()[:16])


def made_of(seed: int, size: int) -> bytes:
    """*size* bytes that no other *seed* gives, and that are different in each block."""
    block = hashlib.sha256(str(seed).encode()).digest() * (PAGE // 32)
    marks = (b"%08d%08d" % (seed, at) for at in range(-(-size // PAGE)))
    return b"".join(mark + block[16:] for mark in marks)[:size]


def _seen(found: os.stat_result) -> Seen:
    return Seen(
        _KINDS[stat.S_IFMT(found.st_mode)],
        stat.S_IMODE(found.st_mode),
        found.st_uid,
        found.st_gid,
        found.st_size,
        found.st_nlink,
        found.st_mtime_ns,
        found.st_atime_ns,
        found.st_ino,
    )


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _whole(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | _OPENING)
    try:
        pieces = []
        while piece := os.read(fd, 1 << 20):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


class Side:
    """One of the trees, with what this process has open in it. Each public method is a step.

    *is_mount* changes nothing in what a step does, but for those that only a mount can bear.
    """

    def __init__(self, root: Path, *, is_mount: bool) -> None:
        self._root = root
        self._is_mount = is_mount
        self._fds: dict[int, int] = {}
        self._maps: dict[int, mmap.mmap] = {}

    def _at(self, path: str) -> Path:
        return self._root / path

    # ---- handles

    def open(self, number: int, path: str, flags: int, mode: int) -> None:
        self._fds[number] = os.open(self._at(path), flags | _OPENING, mode)

    def close(self, number: int) -> None:
        os.close(self._fds.pop(number))

    def pread(self, number: int, offset: int, size: int) -> bytes:
        return os.pread(self._fds[number], size, offset)

    def pread_direct(self, number: int, offset: int, size: int) -> bytes:
        with mmap.mmap(-1, size) as aligned:
            return aligned[: os.preadv(self._fds[number], [aligned], offset)]

    def pwrite(self, number: int, offset: int, seed: int, size: int) -> int:
        return os.pwrite(self._fds[number], made_of(seed, size), offset)

    def pwrite_direct(self, number: int, offset: int, seed: int, size: int) -> int:
        with mmap.mmap(-1, size) as aligned:
            aligned[:] = made_of(seed, size)
            return os.pwritev(self._fds[number], [aligned], offset)

    def read_on(self, number: int, size: int) -> bytes:
        return os.read(self._fds[number], size)

    def write_on(self, number: int, seed: int, size: int) -> int:
        return os.write(self._fds[number], made_of(seed, size))

    def seek(self, number: int, offset: int, whence: int) -> int:
        return os.lseek(self._fds[number], offset, whence)

    def ftruncate(self, number: int, size: int) -> None:
        os.ftruncate(self._fds[number], size)

    def fsync(self, number: int) -> None:
        os.fsync(self._fds[number])

    def fstat(self, number: int) -> Seen:
        return _seen(os.fstat(self._fds[number]))

    def fchmod(self, number: int, mode: int) -> None:
        os.fchmod(self._fds[number], mode)

    def futimens(self, number: int, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._fds[number], ns=(atime_ns, mtime_ns))

    def allocate(self, number: int, offset: int, size: int) -> None:
        os.posix_fallocate(self._fds[number], offset, size)
        os.utime(self._fds[number])  # EMULATED_FALLOCATE in allowed.py

    def copy_range(self, source: int, target: int, at: int, to: int, size: int) -> int:
        done = 0
        while done < size:
            count = os.copy_file_range(
                self._fds[source], self._fds[target], size - done, at + done, to + done
            )
            if not count:
                break
            done += count
        return done

    def forget_pages(self, number: int) -> None:
        """Have the kernel drop the pages it can, so that the next read asks the file system."""
        os.posix_fadvise(self._fds[number], 0, 0, os.POSIX_FADV_DONTNEED)

    # ---- mappings

    def map_file(self, number: int, handle: int, kind: str, offset: int, size: int) -> None:
        flags = mmap.MAP_PRIVATE if kind == "private" else mmap.MAP_SHARED
        prot = mmap.PROT_READ if kind == "read" else mmap.PROT_READ | mmap.PROT_WRITE
        self._maps[number] = mmap.mmap(self._fds[handle], size, flags, prot, offset=offset)

    def unmap(self, number: int) -> None:
        self._maps.pop(number).close()

    def map_read(self, number: int, offset: int, size: int) -> bytes:
        return self._maps[number][offset : offset + size]

    def map_write(self, number: int, offset: int, seed: int, size: int) -> None:
        self._maps[number][offset : offset + size] = made_of(seed, size)

    def map_sync(self, number: int) -> None:
        self._maps[number].flush()

    def size_of(self, number: int, *, mapped: bool) -> int:
        """How long the file behind a descriptor or a mapping is now."""
        return self._maps[number].size() if mapped else os.fstat(self._fds[number]).st_size

    # ---- names

    def write_file(self, path: str, seed: int, size: int) -> None:
        fd = os.open(self._at(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _OPENING, 0o644)
        try:
            _write_all(fd, made_of(seed, size))
        finally:
            os.close(fd)

    def save_file(self, path: str, seed: int, size: int) -> None:
        """As an editor does it: beside, synced, renamed over, with the mode that was there."""
        beside = self._at(f"{path}~")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPENING, 0o600)
        try:
            try:
                _write_all(fd, made_of(seed, size))
                os.fchmod(fd, stat.S_IMODE(os.stat(self._at(path)).st_mode))
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(beside, self._at(path))
        except OSError:
            os.unlink(beside)
            raise

    def read_file(self, path: str) -> bytes:
        return _whole(self._at(path))

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self._at(path), size)

    def stat(self, path: str) -> Seen:
        return _seen(os.stat(self._at(path)))

    def lstat(self, path: str) -> Seen:
        return _seen(os.lstat(self._at(path)))

    def names(self, path: str) -> list[str]:
        return sorted(os.listdir(self._at(path)))

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rename(self, path: str, other: str, flags: int) -> None:
        done = _LIBC.renameat2(
            _AT_FDCWD, bytes(self._at(path)), _AT_FDCWD, bytes(self._at(other)), flags
        )
        if done:
            raise OSError(ctypes.get_errno(), "renameat2")

    def make_node(self, path: str, kind: str, mode: int) -> None:
        os.mknod(self._at(path), mode | (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK))

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._at(path))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self._at(path), uid, gid, follow_symlinks=False)

    def utime(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def touch(self, path: str) -> None:
        os.utime(self._at(path))

    def set_attribute(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def remove_attribute(self, path: str, name: str) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    # ---- everything at once

    def tree(self, path: str, contents: bool) -> dict[str, Found]:
        """Everything at and below *path*, by its path relative to that."""
        found: dict[str, Found] = {}
        self._look("", self._at(path), contents, found)
        return found

    def _look(self, name: str, path: Path, contents: bool, into: dict[str, Found]) -> None:
        seen = _seen(os.lstat(path))
        into[name] = Found(
            seen,
            os.readlink(path) if seen.kind == "link" else None,
            content_of(_whole(path)) if contents and seen.kind == "file" else None,
            _attributes(path),
        )
        if seen.kind == "dir":
            for child in sorted(os.listdir(path)):
                self._look(f"{name}/{child}", path / child, contents, into)

    def remove_tree(self, path: str) -> None:
        """Remove everything, as ``rm -r`` does."""
        for name in os.listdir(self._at(path)):
            inner = f"{path}/{name}"
            if stat.S_ISDIR(os.lstat(self._at(inner)).st_mode):
                self.remove_tree(inner)
            else:
                self.unlink(inner)
        self.rmdir(path)

    def same_file(self, path: str) -> list[int]:
        """The handles that are of the file at *path*."""
        ino = os.stat(self._at(path)).st_ino
        return sorted(n for n, fd in self._fds.items() if os.fstat(fd).st_ino == ino)

    # ---- beside another process that does the same

    def write_stripes(self, path: str, mine: int, of: int, piece: int, count: int) -> None:
        """Write every *of*-th piece, beginning with the *mine*-th."""
        fd = os.open(self._at(path), os.O_WRONLY | _OPENING)
        try:
            for at in range(mine, count, of):
                os.pwrite(fd, made_of(at, piece), at * piece)
        finally:
            os.close(fd)

    def append_lines(self, path: str, line: bytes, count: int) -> None:
        """Append the same line again and again."""
        fd = os.open(self._at(path), os.O_WRONLY | os.O_APPEND | _OPENING)
        try:
            for _ in range(count):
                os.write(fd, line)
        finally:
            os.close(fd)

    # ---- the mount alone

    def read_past(self, names: Sequence[str]) -> None:
        """Read whole files past the kernel's pages, so that they take room in the cache."""
        if not self._is_mount:
            return
        for name in names:
            fd = os.open(self._at(name), os.O_RDONLY | os.O_DIRECT | _OPENING)
            try:
                with mmap.mmap(-1, 1 << 20) as aligned:
                    offset = 0
                    while count := os.preadv(fd, [aligned], offset):
                        offset += count
            finally:
                os.close(fd)


def _attributes(path: Path) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple(
        (name, os.getxattr(path, name, follow_symlinks=False))
        for name in names
        if name.startswith("user.") and not name.startswith(_NOT_COMPARED)
    )


class Pair:
    """Both sides in one process."""

    def __init__(self, mount: Path, local: Path) -> None:
        self._sides = (Side(mount, is_mount=True), Side(local, is_mount=False))

    def do(self, step: str, arguments: Sequence[Any]) -> Answer:
        """Take one step on both sides."""
        mine, other = (_outcome(getattr(side, step), arguments) for side in self._sides)
        note = ""
        if isinstance(mine, bytes) and isinstance(other, bytes):
            note = first_difference(mine, other)
        return Answer(_condensed(mine), _condensed(other), note)

    def local_size(self, number: int, mapped: bool) -> int:
        """As :meth:`Side.size_of`, in the directory; no step."""
        return self._sides[1].size_of(number, mapped=mapped)


def _outcome(step: Callable[..., Any], arguments: Sequence[Any]) -> Any:  # noqa: ANN401
    try:
        return step(*arguments)
    except OSError as error:
        return Failed(errno.errorcode.get(error.errno or 0, str(error.errno)))


def _condensed(value: Any) -> Any:  # noqa: ANN401
    return content_of(value) if isinstance(value, bytes) else value


def first_difference(mount: bytes, local: bytes) -> str:
    """Where two contents begin to differ, and how they go on from there."""
    if mount == local:
        return ""
    at = next((i for i, (m, o) in enumerate(zip(mount, local, strict=False)) if m != o), -1)
    at = min(len(mount), len(local)) if at < 0 else at
    differing = sum(m != o for m, o in zip(mount, local, strict=False))
    return (
        f"{differing} bytes differ, the first at {at} of {len(mount)} and {len(local)}:"
        f" {mount[at : at + 24]!r} in the mount, {local[at : at + 24]!r} in the directory"
    )


_PAIRS: Final[dict[str, Pair]] = {}


def begin(mount: Path, local: Path) -> None:
    """Set the process up."""
    _PAIRS["here"] = Pair(mount, local)


def do(step: str, *arguments: Any) -> Answer:  # noqa: ANN401
    """Take one step on both sides."""
    return _PAIRS["here"].do(step, arguments)


def local_size(number: int, mapped: bool) -> int:
    """How long a file is in the directory: of an open handle, or of a mapping."""
    return _PAIRS["here"].local_size(number, mapped)
