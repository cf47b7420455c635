"""In what a mount may differ from a local directory, and why. It may in nothing else.

What is not even tried, because an object store cannot bear it, is in the README: hard links, devices, and the rest.
"""

from dataclasses import dataclass, replace
from typing import Final

from tests.mount.oracle.sides import Answer, Failed, Found, Seen

LATEST_SET_NS: Final = 1_500_000_000 * 10**9
"""The steps set times before this one (2017) only: a later one says that the kernel or the mount set it."""
_NOW: Final = -1


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that the comparison leaves out."""

    what: str
    why: str


CLOCK: Final = Difference(
    "times that nobody set",
    "the two sides do a step one after the other; that both are of now is compared",
)
ATIME: Final = Difference(
    "a time of access that reading has moved",
    "the directory is mounted relatime; the mount stores no access times, as noatime, for each would be a request"
    " to the store. A time of access that was set, and that the directory still shows, is compared.",
)
CTIME: Final = Difference("times of change", "nobody can set them")
DIRECTORY_SIZE: Final = Difference(
    "size and link count of directories", "POSIX leaves them open; the mount says 0 and 1"
)
MAPPED_MTIME: Final = Difference(
    "the time of modification of a file with pages written through a mapping and not synced",
    "POSIX: it may be moved at any time between the write and the next msync",
)
DIRECTORY_MTIME: Final = Difference(
    "in the store and in another mount: a directory's time of modification that a change of its content has moved",
    "it is kept by the mount that made the change; to store it would be one more request for each file made",
)
MOVED_MTIME: Final = Difference(
    "in another mount: the time of modification of an object without metadata (another client's) that was renamed",
    "it has none but the time at which the store took it in, and a rename is a copy",
)
LOST_VERSION: Final = Difference(
    "ESTALE for a read through a handle that was open before another client replaced or removed the object",
    "all bytes read through one handle are of one version; when the store no longer has it, what was not fetched"
    " cannot be read",
)
REMOVED_NODE: Final = Difference(
    "fstat of a directory or a fifo that was removed while it was open: ESTALE (they are not opened here)",
    "the kernel tells the daemon of open files only; what else has no name is forgotten",
)
EMULATED_FALLOCATE: Final = Difference(
    "posix_fallocate: EBADF through a handle that may not read, or that appends; a time of modification that does"
    " not move where nothing had to be written",
    "pyfuse3 has no fallocate, and the C library's stand-in reads a byte of each block, and writes it if it is zero",
)


@dataclass(frozen=True, slots=True)
class Where:
    """What is known of a step that bears on what is allowed."""

    mapped: frozenset[int] = frozenset()
    """The inode numbers, in the directory, of files with pages that wait for an msync."""
    is_lost: bool = False
    """It was taken through a handle whose version another client has replaced."""
    is_other_mount: bool = False
    """It was taken in a mount that did not make the changes."""


def differences(answer: Answer, where: Where) -> str:
    """Say how the two sides differ beyond what is allowed; empty: they do not."""
    mine, other = answer.mount, answer.local
    if where.is_lost and mine == Failed("ESTALE"):
        return ""  # LOST_VERSION
    if isinstance(mine, Seen) and isinstance(other, Seen):
        mine, other = _comparable(mine, other, where)
    elif isinstance(mine, dict) and isinstance(other, dict):
        return _tree_differences(mine, other, where)
    if mine == other:
        return ""
    return f"the mount gave {mine}, the directory {other}. {answer.note}".rstrip()


def _tree_differences(mount: dict[str, Found], local: dict[str, Found], where: Where) -> str:
    wrong = []
    for name in sorted({*mount, *local}):
        mine, other = mount.get(name), local.get(name)
        if mine is not None and other is not None:
            seen, other_seen = _comparable(mine.seen, other.seen, where)
            mine, other = replace(mine, seen=seen), replace(other, seen=other_seen)
        if mine != other:
            wrong.append(f"{name or '.'!r}: the mount has {mine}, the directory {other}")
    return "\n".join(wrong)


def _comparable(mine: Seen, other: Seen, where: Where) -> tuple[Seen, Seen]:
    if not _was_set(other.atime_ns):  # ATIME
        mine = replace(mine, atime_ns=other.atime_ns)
    if other.ino in where.mapped:  # MAPPED_MTIME
        mine = replace(mine, mtime_ns=other.mtime_ns)
    if where.is_other_mount and other.kind == "dir" and not _was_set(other.mtime_ns):
        mine = replace(mine, mtime_ns=other.mtime_ns)  # DIRECTORY_MTIME
    return _plain(mine), _plain(other)


def _plain(seen: Seen) -> Seen:
    """Leave out what says nothing: inode numbers, times of now (CLOCK), sizes of directories (DIRECTORY_SIZE)."""
    is_dir = seen.kind == "dir"
    return replace(
        seen,
        ino=0,
        mtime_ns=seen.mtime_ns if _was_set(seen.mtime_ns) else _NOW,
        atime_ns=seen.atime_ns if _was_set(seen.atime_ns) else _NOW,
        size=0 if is_dir else seen.size,
        links=1 if is_dir else seen.links,
    )


def _was_set(time_ns: int) -> bool:
    return time_ns <= LATEST_SET_NS
