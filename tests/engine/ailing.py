"""A cache directory's disk that fails as it is told to: the calls of the system, and those of SQLite."""

import errno
import os
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from cachefs.local.db import Database

_CALLS: Final = ("pwrite", "write", "open", "fsync", "fdatasync", "rename", "ftruncate")
_CODES: Final = {
    errno.ENOSPC: (sqlite3.SQLITE_FULL, "SQLITE_FULL"),
    errno.EIO: (sqlite3.SQLITE_IOERR_WRITE, "SQLITE_IOERR_WRITE"),
}


@dataclass
class Ailment:
    """What goes wrong: one in *each* of the calls that take room of the disk; 0: none, 1: all."""

    chance: random.Random
    number: int = errno.ENOSPC
    each: int = 0
    met: list[str] = field(default_factory=list)
    """What has failed, in order."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def strikes(self, what: str) -> bool:
        """Whether the call *what* is to fail."""
        with self._lock:
            if not self.each or self.chance.randrange(self.each):
                return False
            self.met.append(what)
            return True

    def os_error(self) -> OSError:
        return OSError(self.number, os.strerror(self.number))

    def sqlite_error(self) -> sqlite3.OperationalError:
        error = sqlite3.OperationalError("told to fail")
        error.sqlite_errorcode, error.sqlite_errorname = _CODES[self.number]
        return error

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let everything succeed for a while."""
        each, self.each = self.each, 0
        try:
            yield
        finally:
            self.each = each


class AilingConnection:
    """*connection*, of which statements that write fail, and commits: those are taken back, or left as they are."""

    def __init__(self, connection: sqlite3.Connection, ailment: Ailment) -> None:
        self._connection = connection
        self._ailment = ailment
        self._commits = 0

    def execute(self, sql: str, values: Any = ()) -> sqlite3.Cursor:  # noqa: ANN401
        verb = sql.split(None, 1)[0]
        if verb not in {"SELECT", "WITH", "ROLLBACK", "PRAGMA"} and self._ailment.strikes(verb):
            if verb == "COMMIT":
                self._commits += 1
                if self._commits % 2:
                    self._connection.execute("ROLLBACK")
            raise self._ailment.sqlite_error()
        return self._connection.execute(sql, values)

    def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:  # noqa: ANN401
        if self._ailment.strikes("many"):
            raise self._ailment.sqlite_error()
        return self._connection.executemany(sql, rows)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def close(self) -> None:
        self._connection.close()


def ail(patch: pytest.MonkeyPatch, db: Database, ailment: Ailment) -> None:
    """Give *db*, and this process's calls of the system on files, that ailment."""
    patch.setattr(db, "_connection", AilingConnection(db._connection, ailment))
    for name in _CALLS:
        patch.setattr(os, name, _ailing(name, getattr(os, name), ailment))


def _ailing(name: str, call: Callable[..., Any], ailment: Ailment) -> Callable[..., Any]:
    def ailing(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        takes_room = name != "open" or bool(args[1] & os.O_CREAT)
        if not takes_room or not ailment.strikes(name):
            return call(*args, **kwargs)
        if (
            name == "pwrite" and len(args[1]) > 1
        ):  # a part of it is written, as on a disk that fills up
            call(args[0], args[1][: len(args[1]) // 2], args[2])
        raise ailment.os_error()

    return ailing
