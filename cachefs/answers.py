"""What the daemon's answers are to a program: values, and the errors that it would get in a mount."""

import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ECONNRESET, EIO
from stat import S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK
from typing import Any, Final

from cachefs.client import ControlError, NoDaemon
from cachefs.core.errors import CachefsError, errno_of

StrPath = str | os.PathLike[str]

_FORMAT: Final = {
    "file": S_IFREG,
    "dir": S_IFDIR,
    "symlink": S_IFLNK,
    "fifo": S_IFIFO,
    "socket": S_IFSOCK,
}


@dataclass(frozen=True, slots=True)
class Info:
    """What a path stands for."""

    path: str
    """Relative to what the client is of."""
    kind: str
    """``file``, ``dir``, ``symlink``, ``fifo`` or ``socket``."""
    size: int
    mode: int
    """As ``os.stat`` has it."""
    uid: int
    gid: int
    mtime_ns: int
    etag: str | None
    """The version that the store has; None: a directory, or bytes that wait for upload."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return self.kind == "dir"

    @property
    def is_file(self) -> bool:
        """Whether it is a plain file."""
        return self.kind == "file"


@contextmanager
def telling(*paths: StrPath) -> Iterator[None]:
    """Turn what the daemon says into what a program would get."""
    names = [relative(path) for path in paths]
    first, second = [*names, None, None][:2]
    try:
        yield
    except NoDaemon as error:
        raise ConnectionResetError(ECONNRESET, str(error), first) from error
    except CachefsError as error:
        told = error.errno if isinstance(error, ControlError) else errno_of(error)
        raise OSError(told or EIO, str(error), first, None, second) from error


def relative(path: StrPath) -> str:
    """Return *path* without slashes around it; ``..`` does not lead out."""
    return posixpath.normpath("/" + os.fsdecode(path)).lstrip("/")


def parsed_mode(mode: str) -> tuple[str, bool, bool]:
    """Return the letter of ``r``, ``w``, ``x``, ``a`` in *mode*, whether it has a ``+``, and whether it is text."""
    letters = set(mode)
    kinds = letters & set("rwxa")
    if (
        len(letters) != len(mode)
        or len(kinds) != 1
        or letters - set("rwxa+bt")
        or letters >= set("bt")
    ):
        raise ValueError(f"invalid mode: {mode!r}")
    return kinds.pop(), "+" in letters, "b" not in letters


def row_of(answer: object) -> Mapping[str, object]:
    """Return an answer that has names and values. Raise ``OSError`` if it has not."""
    if not isinstance(answer, dict):
        raise OSError(EIO, "the daemon's answer is not one")
    return answer


def rows_of(answer: object) -> list[Mapping[str, Any]]:
    """Return an answer that is a list of such. Raise ``OSError`` if it is not."""
    if not isinstance(answer, list):
        raise OSError(EIO, "the daemon's answer is not one")
    return [row_of(each) for each in answer]


def info_of(answer: object, path: str) -> Info:
    """Return what was told of *path*."""
    row: Any = row_of(answer)
    return Info(
        path=path,
        kind=row["kind"],
        size=row["size"],
        mode=_FORMAT[row["kind"]] | row["mode"],
        uid=row["uid"],
        gid=row["gid"],
        mtime_ns=row["mtime_ns"],
        etag=row["etag"],
    )
