"""System calls that Python has no name for. Everything here runs in a child process; the standard library only."""

import ctypes
import fcntl
import mmap
import os
import socket
import struct
from pathlib import Path
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD: Final = -100

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

FALLOCATE_MODES: Final = {
    "plain": 0,
    "keep size": 0x01,
    "punch a hole": 0x03,
    "collapse": 0x08,
    "zero": 0x10,
    "insert": 0x20,
    "unshare": 0x40,
}

_EVENTS: Final = {
    0x2: "modify",
    0x4: "attributes",
    0x8: "close after write",
    0x40: "moved from",
    0x80: "moved to",
    0x100: "create",
    0x200: "delete",
}
_EVENT: Final = struct.Struct("iIII")


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def rename(old: Path, new: Path, flags: int) -> None:
    """renameat2(2)."""
    _checked(
        _libc.renameat2(
            _AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)
        )
    )


def fallocate(path: Path, mode: int, offset: int, length: int) -> None:
    """fallocate(2), which unlike posix_fallocate(3) is not emulated where it is missing."""
    fd = os.open(path, os.O_RDWR)
    try:
        _checked(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))
    finally:
        os.close(fd)


def posix_fallocate(path: Path, offset: int, length: int) -> None:
    """posix_fallocate(3)."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(fd, offset, length)
    finally:
        os.close(fd)


def swap_on(path: Path) -> None:
    """swapon(2)."""
    _checked(_libc.swapon(os.fsencode(path), 0))


def file_flags(path: Path) -> int:
    """What lsattr(1) shows."""
    fd = os.open(path, os.O_RDONLY)
    try:
        answer = fcntl.ioctl(fd, 0x80086601, struct.pack("l", 0))
    finally:
        os.close(fd)
    return int(struct.unpack("l", answer)[0])


def clone(source: Path, target: Path) -> None:
    """What ``cp --reflink=always`` does."""
    with source.open("rb") as one, target.open("wb") as other:
        fcntl.ioctl(other.fileno(), 0x40049409, one.fileno())


def make_socket(path: Path) -> None:
    """Bind a socket to a name."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def open_unnamed(directory: Path) -> None:
    """Open with O_TMPFILE."""
    os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600))


def seek(path: Path, offset: int, whence: int) -> int:
    """lseek(2)."""
    with path.open("rb", buffering=0) as file:
        return os.lseek(file.fileno(), offset, whence)


def extend(path: Path, size: int) -> None:
    """ftruncate(2)."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def lock_elsewhere(path: Path) -> None:
    """Take the whole file, and keep it until this process ends."""
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---- inotify --------------------------------------------------------------------------------


def watch(path: Path) -> int:
    """Begin to listen to what happens in a directory."""
    fd = _checked(_libc.inotify_init1(os.O_NONBLOCK))
    _checked(_libc.inotify_add_watch(fd, os.fsencode(path), sum(_EVENTS)))
    return fd


def events(fd: int) -> list[tuple[str, str]]:
    """What has happened since the last call: name and event."""
    try:
        raw = os.read(fd, 1 << 16)
    except BlockingIOError:
        return []
    found = []
    while raw:
        _, mask, _, length = _EVENT.unpack_from(raw)
        name = os.fsdecode(raw[_EVENT.size : _EVENT.size + length].rstrip(b"\0"))
        found += [(name, what) for bit, what in _EVENTS.items() if mask & bit]
        raw = raw[_EVENT.size + length :]
    return found


# ---- direct access, and memory that is the file ---------------------------------------------


def write_directly(path: Path, offset: int, content: bytes) -> None:
    """Write past the page cache; offset and length are multiples of a page."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    try:
        with mmap.mmap(-1, len(content)) as aligned:  # which O_DIRECT wants
            aligned[:] = content
            assert os.pwritev(fd, [aligned], offset) == len(content)
    finally:
        os.close(fd)


def read_directly(path: Path, offset: int, length: int) -> bytes:
    """Read past the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as aligned:
            count = os.preadv(fd, [aligned], offset)
            return aligned[:count]
    finally:
        os.close(fd)


_maps: dict[str, mmap.mmap] = {}


def map_shared(path: Path) -> None:
    """Map the whole file, shared, and keep it mapped."""
    with path.open("r+b") as file:
        _maps[str(path)] = mmap.mmap(file.fileno(), 0)


def peek(path: Path, offset: int, length: int) -> bytes:
    """Read the memory that is the file."""
    return _maps[str(path)][offset : offset + length]


def poke(path: Path, offset: int, content: bytes) -> None:
    """Write the memory that is the file."""
    _maps[str(path)][offset : offset + len(content)] = content


def unmap(path: Path) -> None:
    """Write back, and let go."""
    one = _maps.pop(str(path))
    one.flush()
    one.close()


def poke_and_unmap(path: Path, offset: int, content: bytes) -> None:
    """Write the memory that is the file, and write it back."""
    poke(path, offset, content)
    unmap(path)
