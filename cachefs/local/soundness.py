"""What the end of a session, or somebody who found damage, says of the database file to the next start.

A daemon that ends in order leaves the sum of all bytes of its database in the file ``soundness`` beside it. As long as the
file has the same bytes it is as sound as it was, which is found out in a fraction of the time that SQLite's own checks
take, and which they do not find out at all of a bit that flips within a value.
"""

import contextlib
import json
import os
import zlib
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final

_NAME: Final = "soundness"
_CHUNK: Final = 2**20
_MOST: Final = 2**30
"""Bytes of the largest database that is summed: of others nothing is said, so that no end and no start takes long."""


class Verdict(Enum):
    """What is known of a database before it is opened."""

    PROVEN = auto()
    """It has exactly the bytes that it had at the end of the last session."""
    CHANGED = auto()
    """Some program has written to it since."""
    UNTOLD = auto()
    """Nothing tells: the last session had no end, or is of an older cachefs."""
    DAMAGED = auto()
    """Its bytes are others, and no program wrote them; or it was found damaged before."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict, and its reason where that is damage."""

    verdict: Verdict
    reason: str = ""


class Soundness:
    """Keeps what is known of one database file. Blocks; any thread."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._path = database.with_name(_NAME)

    def judge(self) -> Finding:
        """Tell what is known of the file. Nobody may have it open."""
        said = self._said()
        if said is None or not os.path.lexists(self._database):
            return Finding(Verdict.UNTOLD)
        if isinstance(reason := said.get("damage"), str):
            return Finding(Verdict.DAMAGED, reason)
        try:
            if said.get("file") != self._identity() or self._has_log():
                return Finding(Verdict.CHANGED)
            if said.get("sum") == _sum_of(self._database):
                return Finding(Verdict.PROVEN)
        except OSError as error:
            return Finding(Verdict.DAMAGED, error.strerror or str(error))
        return Finding(Verdict.DAMAGED, "its bytes have changed, and no program wrote them")

    def prove(self) -> None:
        """Note the bytes of the file, which is sound and closed. What cannot be noted is not: the next start checks."""
        with contextlib.suppress(OSError):
            before = self._identity()
            if self._has_log() or self._database.stat().st_size > _MOST:
                return
            total = _sum_of(self._database)
            if self._identity() == before and not self._has_log():  # else somebody writes to it
                self._write({"file": before, "sum": total})

    def condemn(self, reason: str) -> None:
        """Note that the file is damaged, so that the next start sets it aside."""
        with contextlib.suppress(OSError):
            self._write({"damage": reason})

    def forget(self) -> None:
        """Say nothing any more: the file is about to change, or is another one."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _identity(self) -> list[int]:
        status = os.lstat(self._database)
        return [status.st_ino, status.st_size, status.st_mtime_ns]

    def _has_log(self) -> bool:
        """Whether some rows may lie beside the file."""
        try:
            return os.lstat(f"{self._database}-wal").st_size > 0
        except FileNotFoundError:
            return False

    def _said(self) -> dict[str, Any] | None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                said = json.loads(file.read(_CHUNK))
        except (OSError, ValueError):
            return None
        return said if isinstance(said, dict) else None

    def _write(self, said: dict[str, object]) -> None:
        temporary = self._path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o600), "w", encoding="ascii") as file:
                json.dump(said, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def _sum_of(path: Path) -> int:
    total = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            total = zlib.crc32(chunk, total)
    return total
